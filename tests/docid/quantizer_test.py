"""Residual and product quantisation against numpy, one document at a time."""

import numpy as np
import pytest

from diffgr_jax.docid.product_quantizer import ProductQuantizer, fit_product_quantizer, random_rotation
from diffgr_jax.docid.quantizer import Quantizer, relative_errors
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer, fit_residual_quantizer


def vectors_of(count, width, seed=0):
  return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float16)


def separate_codebooks(levels=3, codes=5, width=8, seed=0):
  """Each level a tenth of the one before it: sums of codes come apart again."""
  rng = np.random.default_rng(seed)
  directions = np.stack([np.linalg.qr(rng.normal(size=(width, width)))[0][:codes] for _ in range(levels)])
  return (directions * 0.1 ** np.arange(levels)[:, None, None]).astype(np.float32)


def encode_by_hand(codebooks, vector):
  rest, codes = np.asarray(vector, np.float64), []
  for codebook in codebooks.astype(np.float64):
    codes.append(int(((rest - codebook) ** 2).sum(1).argmin()))
    rest = rest - codebook[codes[-1]]
  return codes


def test_codes_are_the_nearest_of_what_is_left():
  vectors = vectors_of(60, 6)
  quantizer = fit_residual_quantizer(vectors, 3, 7)
  assert isinstance(quantizer, Quantizer)
  assert quantizer.encode(vectors).tolist() == [encode_by_hand(quantizer.codebooks, vector) for vector in vectors]


def test_sums_of_codes_are_decoded_and_encoded_to_themselves():
  quantizer = ResidualQuantizer(separate_codebooks())
  codes = np.random.default_rng(1).integers(5, size=(40, 3))
  vectors = quantizer.decode(codes)
  expected = [sum(quantizer.codebooks[level, code] for level, code in enumerate(row)) for row in codes]
  np.testing.assert_allclose(vectors, expected, atol=1e-6)
  np.testing.assert_array_equal(quantizer.encode(vectors), codes)
  assert relative_errors(quantizer, vectors, codes)[-1] < 1e-10


@pytest.mark.parametrize("fit", [fit_residual_quantizer, fit_product_quantizer])
def test_the_error_falls_with_every_level_and_is_numpys(fit):
  vectors = vectors_of(300, 12)
  quantizer = fit(vectors, 3, 16)
  codes = quantizer.encode(vectors)
  errors = relative_errors(quantizer, vectors, np.pad(codes, ((0, 0), (0, 1))))
  assert 1 > errors[0] > errors[1] > errors[2] > 0
  exact = vectors.astype(np.float64)
  spread = ((exact - exact.mean(0)) ** 2).sum()
  for level, error in enumerate(errors):
    np.testing.assert_allclose(
      error, ((exact - quantizer.decode(codes[:, : level + 1])) ** 2).sum() / spread, rtol=1e-4
    )


@pytest.mark.parametrize("fit", [fit_residual_quantizer, fit_product_quantizer])
def test_a_seed_decides_everything(fit):
  vectors = vectors_of(90, 6)
  first, second, other = (fit(vectors, 2, 8, seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.codebooks, second.codebooks)
  assert not np.array_equal(first.codebooks, other.codebooks)


@pytest.mark.parametrize("fit", [fit_residual_quantizer, fit_product_quantizer])
def test_costs_of_the_last_level_are_the_errors_with_each_code(fit):
  vectors = vectors_of(40, 6)
  quantizer = fit(vectors, 2, 5)
  codes = quantizer.encode(vectors)
  costs = quantizer.last_level_costs(vectors, codes)
  np.testing.assert_array_equal(costs.argmin(1), codes[:, -1])
  errors = np.stack(
    [((vectors - quantizer.decode(np.c_[codes[:, :-1], np.full(40, code)])) ** 2).sum(1) for code in range(5)], axis=1
  )
  # Product: the parts before the last cost the same whatever the last code.
  np.testing.assert_allclose(costs - costs.min(1, keepdims=True), errors - errors.min(1, keepdims=True), atol=1e-3)


def test_product_codes_are_the_nearest_of_each_part():
  vectors = vectors_of(50, 6)
  quantizer = fit_product_quantizer(vectors, 3, 6)
  rotated = vectors.astype(np.float64) @ quantizer.rotation
  for level in range(3):
    part = rotated[:, 2 * level : 2 * level + 2]
    distance = ((part[:, None] - quantizer.codebooks[level][None]) ** 2).sum(-1)
    np.testing.assert_array_equal(quantizer.encode(vectors)[:, level], distance.argmin(1))


def test_a_rotation_is_one_and_none_is_the_identity():
  rotation = random_rotation(9, seed=2)
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(9), atol=1e-6)
  plain = fit_product_quantizer(vectors_of(30, 4), 2, 4, rotate=False)
  np.testing.assert_array_equal(plain.rotation, np.eye(4))


def test_arrays_are_the_whole_quantiser():
  vectors = vectors_of(40, 6)
  for kind, fit in ((ResidualQuantizer, fit_residual_quantizer), (ProductQuantizer, fit_product_quantizer)):
    quantizer = fit(vectors, 2, 8)
    again = kind.from_arrays(quantizer.arrays())
    np.testing.assert_array_equal(again.encode(vectors), quantizer.encode(vectors))


def test_what_does_not_fit_is_said():
  vectors = vectors_of(20, 6)
  with pytest.raises(ValueError, match="width 6 into equal parts: 4 levels do not fit"):
    fit_product_quantizer(vectors, 4, 4)
  with pytest.raises(ValueError, match=r"21 codes a level need .* there are 20"):
    fit_residual_quantizer(vectors, 2, 21)
  with pytest.raises(ValueError, match="at least 1 level, not 0"):
    fit_residual_quantizer(vectors, 0, 4)
  with pytest.raises(ValueError, match=r"vectors of width 6, not an array of shape \(20, 5\)"):
    fit_residual_quantizer(vectors, 1, 4).encode(vectors[:, :5])
