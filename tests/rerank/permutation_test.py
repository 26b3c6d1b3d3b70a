"""Permutations by force, against the enumeration of all of them."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy.special import log_softmax

from diffgr_jax.rerank import permutation as pm

SEEDS = st.integers(0, 2**32 - 1)


def random_scores(seed, rows, size):
  return log_softmax(3 * np.random.default_rng(seed).normal(size=(rows, size, size)), axis=-1)


def everything(size):
  return np.array(list(itertools.permutations(range(size))))


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 6))
def test_the_optimum_is_that_of_all_permutations(seed, size):
  scores = random_scores(seed, 3, size)
  best = pm.optimal_permutations(scores)
  for row in range(3):
    sums = scores[row][np.arange(size), everything(size)].sum(axis=1)
    assert math.isclose(sums.max(), pm.permutation_scores(scores, best)[row], rel_tol=1e-12)
    assert best[row].tolist() == everything(size)[sums.argmax()].tolist()


def slow_greedy(scores, surest):
  free, open_positions, result = set(range(len(scores))), set(range(len(scores))), {}
  while free:
    best = {}
    for position in open_positions:
      chance = {j: math.exp(scores[position, j]) for j in free}
      top = max(chance, key=chance.__getitem__)
      best[position] = (chance[top] / sum(chance.values()), top)
    position = max(best, key=lambda i: best[i][0]) if surest else min(open_positions)
    result[position] = best[position][1]
    open_positions.remove(position)
    free.remove(result[position])
  return [result[i] for i in range(len(scores))]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 7))
def test_greedy_goes_as_one_would_by_hand(seed, size):
  scores = random_scores(seed, 4, size)
  for order in ("left_to_right", "surest_first"):
    expected = [slow_greedy(matrix, order == "surest_first") for matrix in scores]
    assert pm.greedy_permutations(scores, order).tolist() == expected


def test_draws_follow_the_product_of_what_remains():
  scores = random_scores(11, 1, 4)
  draws = 40_000
  rankings, log_prob = pm.sampled_permutations(scores.repeat(draws, 0), np.random.default_rng(0), temperature=1.5)
  exact = {}
  for ranking in itertools.permutations(range(4)):
    left, chance = np.exp(scores[0] / 1.5), 1.0
    for position, candidate in enumerate(ranking):
      chance *= left[position, candidate] / left[position].sum()
      left[:, candidate] = 0
    exact[ranking] = chance
  assert math.isclose(sum(exact.values()), 1, rel_tol=1e-9)
  assert np.allclose(log_prob, [math.log(exact[tuple(r)]) for r in rankings.tolist()])
  found, counts = np.unique(rankings, axis=0, return_counts=True)
  for ranking, count in zip(found.tolist(), counts, strict=True):
    chance = exact[tuple(ranking)]
    assert abs(count / draws - chance) < 5 * math.sqrt(chance / draws)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, size=st.integers(1, 10), share=st.floats(0, 1))
def test_impossible_candidates_still_give_permutations(seed, size, share):
  rng = np.random.default_rng(seed)
  scores = np.where(rng.random((3, size, size)) < share, -np.inf, random_scores(seed, 3, size))
  for rankings in (
    pm.optimal_permutations(scores),
    pm.greedy_permutations(scores, "surest_first"),
    pm.greedy_permutations(scores, "left_to_right"),
    pm.sampled_permutations(scores, rng)[0],
  ):
    assert (np.sort(rankings, axis=1) == np.arange(size)).all()


def test_an_impossible_candidate_is_avoided_where_that_can_be():
  scores = np.array([[[-np.inf, -9.0], [-0.1, -0.2]]])
  for rankings in (pm.optimal_permutations(scores), pm.greedy_permutations(scores, "left_to_right")):
    assert rankings.tolist() == [[1, 0]]


def test_scores_of_positions_are_sums_over_levels():
  rng = np.random.default_rng()
  log_probs = log_softmax(rng.normal(size=(2, 5, 3, 20)), axis=-1)  # rows, positions, levels, tokens
  candidates = rng.integers(0, 20, (2, 4, 3))
  scores = pm.position_scores(log_probs, candidates)
  assert scores.shape == (2, 5, 4)
  for row, position, candidate in itertools.product(range(2), range(5), range(4)):
    expected = sum(log_probs[row, position, level, candidates[row, candidate, level]] for level in range(3))
    assert math.isclose(scores[row, position, candidate], expected, rel_tol=1e-12)
  assert np.array_equal(pm.position_scores(log_probs[0], candidates[0]), scores[0])


def test_what_is_no_score_is_said():
  bad = np.full((1, 2, 2), np.nan)
  for decode in (pm.optimal_permutations, lambda s: pm.greedy_permutations(s, "surest_first")):
    with pytest.raises(ValueError, match="NaN"):
      decode(bad)
  with pytest.raises(ValueError, match="temperature is greater than 0, not 0"):
    pm.sampled_permutations(np.zeros((1, 2, 2)), np.random.default_rng(0), 0.0)
