"""Controls: what each keeps and what it destroys."""

import numpy as np
import pytest

from diffgr_jax.docid import code_report, controls
from diffgr_jax.docid.collisions import in_collision


@pytest.mark.parametrize("count, levels, size", [(16, 2, 4), (13, 2, 4), (500, 3, 16), (4000, 4, 256)])
def test_random_codes_are_distinct_even_and_seeded(count, levels, size):
  codes = controls.random_codes(count, levels, size, seed=1)
  assert codes.shape == (count, levels)
  assert in_collision(codes) == 0
  assert 0 <= codes.min() <= codes.max() < size
  np.testing.assert_array_equal(codes, controls.random_codes(count, levels, size, seed=1))
  if count == 4000:  # perplexity of 4,000 even draws from 256 codes: 256 (1 - 255 / 8000), about 248
    assert all(240 < use.perplexity < 254 for use in code_report.level_uses(codes, (size,) * levels))


def test_more_random_codes_than_there_are_is_refused():
  with pytest.raises(ValueError, match="2 levels of 4 codes name 16 documents, not 17"):
    controls.random_codes(17, 2, 4, seed=0)


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_permuted_levels_are_the_old_columns_in_another_order(levels):
  codes = np.random.default_rng(0).integers(9, size=(20, levels)).astype(np.int32)
  sizes = tuple(range(9, 9 + levels))
  permuted, new_sizes, order = controls.permute_levels(codes, sizes, seed=3)
  assert sorted(order) == list(range(levels))
  assert levels == 1 or order != list(range(levels))
  np.testing.assert_array_equal(permuted, codes[:, order])
  assert new_sizes == tuple(sizes[level] for level in order)


def test_shuffled_documents_keep_the_rows_and_lose_their_owners():
  codes = np.random.default_rng(0).integers(50, size=(200, 3)).astype(np.int32)
  shuffled = controls.shuffle_documents(codes, seed=0)
  assert sorted(map(tuple, shuffled.tolist())) == sorted(map(tuple, codes.tolist()))
  assert (shuffled == codes).all(axis=1).mean() < 0.1


def test_the_use_of_a_level_by_hand():
  codes = np.array([[0, 0], [0, 1], [1, 0], [1, 0]], np.int32)
  first, second = code_report.level_uses(codes, (2, 4))
  assert (first.used, first.perplexity, first.in_collision) == (2, pytest.approx(2.0), 4)
  assert second.perplexity == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
  assert (second.utilisation, second.largest_share, second.in_collision) == (0.5, 0.75, 2)
