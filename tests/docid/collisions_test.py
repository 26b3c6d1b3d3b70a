"""Rules for collisions: no two rows alike afterwards, and the optimal one equals enumeration."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.docid import collisions


def codes_of(count, levels, size, seed):
  return np.random.default_rng(seed).integers(size, size=(count, levels)).astype(np.int32)


def naive_in_collision(codes):
  rows = [tuple(row) for row in codes.tolist()]
  return sum(rows.count(row) > 1 for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 10**6))
def test_after_every_rule_no_two_rows_are_alike_and_prefixes_stay(count, levels, seed):
  codes = codes_of(count, levels, 4, seed)
  codes[:, -1] %= 3
  assert collisions.in_collision(codes) == naive_in_collision(codes)
  extra, sizes = collisions.resolve("extra_level", codes, (4,) * levels)
  assert collisions.in_collision(extra) == 0
  np.testing.assert_array_equal(extra[:, :-1], codes)
  assert sizes == (4,) * levels + (extra[:, -1].max() + 1,)
  costs = np.random.default_rng(seed).random((count, 30)).astype(np.float32)
  for rule in ("random", "optimal"):
    told, sizes = collisions.resolve(
      rule, codes, (4,) * (levels - 1) + (30,), costs=lambda rows: costs[rows], seed=seed
    )
    assert collisions.in_collision(told) == 0
    np.testing.assert_array_equal(told[:, :-1], codes[:, :-1])
    assert told.max() < 30
  assert collisions.resolve("none", codes, (4,) * levels)[0] is codes


def test_an_extra_level_counts_in_corpus_order():
  codes = np.array([[1, 2], [0, 0], [1, 2], [1, 2], [0, 0], [3, 3]], np.int32)
  assert collisions.resolve("extra_level", codes, (4, 4))[0][:, 2].tolist() == [0, 0, 1, 2, 1, 0]


def test_random_keeps_the_first_and_draws_what_the_group_does_not_use():
  codes = np.array([[1, 2], [1, 2], [1, 3], [1, 2], [0, 2], [1, 0]], np.int32)
  told, _ = collisions.resolve("random", codes, (4, 6), seed=5)
  assert told[[0, 2, 4, 5]].tolist() == codes[[0, 2, 4, 5]].tolist()
  assert set(told[[1, 3], 1].tolist()) <= {1, 4, 5}
  again, _ = collisions.resolve("random", codes, (4, 6), seed=5)
  np.testing.assert_array_equal(told, again)


@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_rule_is_the_best_of_all_assignments(seed, monkeypatch):
  monkeypatch.setattr(collisions, "_BATCH", 5)  # several batches of groups
  rng = np.random.default_rng(seed)
  prefix = rng.permutation(np.arange(11) % 3)[:, None]  # groups of at most 4
  costs = rng.random((11, 6)).astype(np.float32)
  codes = np.concatenate([prefix, costs.argmin(1)[:, None]], axis=1).astype(np.int32)
  told, _ = collisions.resolve("optimal", codes, (3, 6), costs=lambda rows: costs[rows])
  for value in range(3):
    rows = np.flatnonzero(prefix[:, 0] == value)
    best = min(
      sum(costs[row, code] for row, code in zip(rows, chosen, strict=True))
      for chosen in itertools.permutations(range(6), len(rows))
    )
    assert sum(costs[row, told[row, 1]] for row in rows) == pytest.approx(best)


def test_what_cannot_be_told_apart_is_said_with_the_numbers():
  codes = np.zeros((5, 2), np.int32)
  for rule in ("random", "optimal"):
    with pytest.raises(ValueError, match="5 documents share their first 1 codes, but the last level has only 4"):
      collisions.resolve(rule, codes, (4, 4), costs=lambda rows: np.zeros((len(rows), 4), np.float32))
  with pytest.raises(ValueError, match="optimal needs a quantiser"):
    collisions.resolve("optimal", codes, (4, 9))
  with pytest.raises(ValueError, match="one of none, extra_level, random, optimal, not 'best'"):
    collisions.resolve("best", codes, (4, 4))
