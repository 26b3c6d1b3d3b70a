"""Counts of pairs against a naive recount, and what a user's later items added to them."""

import numpy as np
import pytest

from diffgr_jax.rerank.counts import count_covisits
from tests.rerank import shops

SHAPES = [(repeats, window) for repeats in (False, True) for window in (0, 1, 3)]


@pytest.mark.parametrize("repeats, window", SHAPES)
def test_counts_are_those_of_a_recount(repeats, window):
  rng = np.random.default_rng()
  histories = shops.random_shop(rng, users=12, items=9, repeats=repeats).histories
  counts = count_covisits(histories, 9, window)
  expected = [[shops.followed(histories, a, b, window) for b in range(9)] for a in range(9)]
  np.testing.assert_array_equal(counts.followed.toarray(), expected)
  np.testing.assert_array_equal(counts.takers, [shops.takers(histories, item) for item in range(9)])
  before, after = rng.integers(9, size=(2, 4, 5))
  np.testing.assert_array_equal(counts.pairs(before, after), np.array(expected)[before, after])


@pytest.mark.parametrize("repeats, window", SHAPES)
def test_what_is_lost_is_the_difference_to_a_recount(repeats, window):
  rng = np.random.default_rng()
  histories = shops.random_shop(rng, users=8, items=7, repeats=repeats, longest=7).histories
  counts = count_covisits(histories, 7, window)
  for user, history in enumerate(histories):
    for place in range(1, len(history) + 1):
      known = count_covisits(shops.as_known(histories, user, place), 7, window)
      lost = np.zeros((7, 7), int)
      for pair in counts.lost_pairs(user, place, range(7)):
        lost[pair] = 1
      np.testing.assert_array_equal(counts.followed.toarray() - lost, known.followed.toarray())
      gone = np.isin(np.arange(7), list(counts.lost_takers(user, place)))
      np.testing.assert_array_equal(counts.takers - gone, known.takers)
      among = {int(item) for item in rng.integers(7, size=2)}
      some = {pair for pair in counts.lost_pairs(user, place, range(7)) if among & set(pair)}
      assert counts.lost_pairs(user, place, among) == some


def test_nothing_counted_is_nothing_found():
  counts = count_covisits([], 3)
  assert counts.pairs(np.array([0, 1]), np.array([1, 2])).tolist() == [0, 0]
  assert counts.takers.tolist() == [0, 0, 0]
