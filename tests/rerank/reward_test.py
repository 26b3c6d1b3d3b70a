"""The reward: the paper's formula answer by answer, its bounds, and what it must never pay for."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.rerank import reward as r
from diffgr_jax.rerank.answer import Answers, Verdict


def one(before, after, candidates, valid=True, alpha=0.2):
  arrays = (np.array([value]) for value in (before, after, candidates, valid))
  return float(r.ranking_rewards(*arrays, alpha)[0])


def by_the_papers(before, after, candidates, valid, alpha):
  if not valid:
    return -1.0
  rank_before, rank_after = before + 1, after + 1
  moved_up, kept_first = rank_after < rank_before, rank_before == 1 and rank_after == 1
  return (rank_before - rank_after) / candidates + (alpha if moved_up or kept_first else 0.0)


def test_every_case_of_short_lists():
  for candidates in (1, 2, 3, 10):
    places = np.array([(b, a) for b in range(candidates) for a in range(candidates)])
    for valid in (True, False):
      rewards = r.ranking_rewards(
        places[:, 0], places[:, 1], np.full(len(places), candidates), np.full(len(places), valid), 0.3
      )
      expected = [by_the_papers(b, a, candidates, valid, 0.3) for b, a in places.tolist()]
      np.testing.assert_allclose(rewards, expected, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(candidates=st.integers(1, 50), alpha=st.floats(0, 2), data=st.data())
def test_bounds_and_order(candidates, alpha, data):
  before = data.draw(st.integers(0, candidates - 1))
  rewards = [one(before, after, candidates, alpha=alpha) for after in range(candidates)]
  assert all(-1 < reward <= 1 + alpha for reward in rewards)
  assert all(better > worse for better, worse in itertools.pairwise(rewards))  # the higher, the more
  assert one(before, 0, candidates, valid=False, alpha=alpha) == -1
  if before > 0:
    assert rewards[before] == 0  # a copy of the input order earns nothing


def test_copying_pays_only_where_the_target_is_first():
  assert one(0, 0, 10) == pytest.approx(0.2)
  assert one(4, 4, 10) == 0
  assert one(4, 3, 10) == pytest.approx(0.3)
  assert one(4, 5, 10) == pytest.approx(-0.1)


def test_parsed_answers():
  verdict = np.array([Verdict.OK, Verdict.OK, Verdict.DUPLICATE, Verdict.TRUNCATED, Verdict.OK])
  entries = np.array([[2, 0, 1], [0, 1, 2], [2, 2, 0], [-2, -2, -2], [1, 2, 0]])
  zeros = np.zeros(5, int)
  answers = Answers(verdict, entries, zeros, zeros, zeros, np.full(5, 3))
  rewards = r.answer_rewards(answers, np.array([2, 2, 2, 0, 0]))
  np.testing.assert_allclose(rewards, [2 / 3 + 0.2, 0, -1, -1, -2 / 3], atol=1e-6)
  nothing = Answers(np.array([5]), np.zeros((1, 0), int), zeros[:1], zeros[:1], zeros[:1], np.array([3]))
  assert r.answer_rewards(nothing, np.array([1])).tolist() == [-1]


def test_a_place_outside_the_list_is_named():
  with pytest.raises(ValueError, match="row 0: the target's place before is -1 among 10"):
    one(-1, 0, 10)
  with pytest.raises(ValueError, match="place after is 10 among 10"):
    one(1, 10, 10)
  assert one(1, 99, 10, valid=False) == -1
