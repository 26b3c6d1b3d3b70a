"""Counts of pairs against a naive recount, and what a user's later items added to them."""

import numpy as np
import pytest

from diffgr_jax.rerank.counts import count_covisits
from tests.rerank import shops

SHAPES = [
  (repeats, window, fade)
  for repeats in (False, True)
  for window, fade in ((0, 1.0), (1, 1.0), (3, 1.0), (0, 0.7), (3, 0.6))
]


@pytest.mark.parametrize("repeats, window, fade", SHAPES)
def test_counts_are_those_of_a_recount(repeats, window, fade):
  rng = np.random.default_rng()
  histories = shops.random_shop(rng, users=12, items=9, repeats=repeats).histories
  counts = count_covisits(histories, 9, window, fade)
  expected = [[shops.followed(histories, a, b, window, fade) for b in range(9)] for a in range(9)]
  np.testing.assert_array_equal(counts.followed.toarray(), expected)
  np.testing.assert_array_equal(counts.takers, [shops.takers(histories, item) for item in range(9)])
  before, after = rng.integers(9, size=(2, 4, 5))
  np.testing.assert_array_equal(counts.pairs(before, after), np.array(expected)[before, after])


@pytest.mark.parametrize("repeats, window, fade", SHAPES)
def test_what_is_lost_is_the_difference_to_a_recount(repeats, window, fade):
  rng = np.random.default_rng()
  histories = shops.random_shop(rng, users=8, items=7, repeats=repeats, longest=7).histories
  counts = count_covisits(histories, 7, window, fade)
  for user, history in enumerate(histories):
    for place in range(1, len(history) + 1):
      known = count_covisits(shops.as_known(histories, user, place), 7, window, fade)
      lost = np.zeros((7, 7))
      for pair, weight in counts.lost_pairs(user, place, range(7)).items():
        lost[pair] = weight
      np.testing.assert_array_equal(counts.followed.toarray() - lost, known.followed.toarray())
      gone = np.isin(np.arange(7), list(counts.lost_takers(user, place)))
      np.testing.assert_array_equal(counts.takers - gone, known.takers)
      among = {int(item) for item in rng.integers(7, size=2)}
      every = counts.lost_pairs(user, place, range(7))
      some = {pair: weight for pair, weight in every.items() if among & set(pair)}
      assert counts.lost_pairs(user, place, among) == some


def test_nothing_counted_is_nothing_found():
  counts = count_covisits([], 3)
  assert counts.pairs(np.array([0, 1]), np.array([1, 2])).tolist() == [0, 0]
  assert counts.takers.tolist() == [0, 0, 0]


def test_a_fade_is_a_share():
  for fade in (0.0, -0.5, 1.1):
    with pytest.raises(ValueError, match=f"at most 1, not {fade}"):
      count_covisits([(0, 1)], 2, fade=fade)
