"""Document vectors: chunks, samples and moments against numpy, and files that are none."""

import numpy as np
import pytest

from diffgr_jax.docid import vectors as vec


def test_chunks_are_the_rows_in_order_filled_up_with_zeros():
  rows = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float16)
  blocks = list(vec.chunks(rows, 4))
  assert [(place.start, place.stop) for place, _ in blocks] == [(0, 4), (4, 8), (8, 10)]
  stacked = np.concatenate([block for _, block in blocks])
  assert stacked.shape == (12, 3)
  assert stacked.dtype == np.float32
  np.testing.assert_array_equal(stacked[:10], rows.astype(np.float32))
  assert not stacked[10:].any()


def test_a_sample_is_distinct_rows_in_order():
  rows = np.arange(100.0)[:, None]
  sample = vec.sample_rows(rows, 30, seed=1)[:, 0]
  assert (np.diff(sample) > 0).all()
  assert len(sample) == 30
  np.testing.assert_array_equal(vec.sample_rows(rows, 100, seed=1), rows)


def test_mean_and_variance_are_numpys():
  rows = 3 + np.random.default_rng(2).normal(size=(vec.CHUNK + 5, 4))
  mean, variance = vec.mean_and_variance(rows)
  np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-5)
  np.testing.assert_allclose(variance, ((rows - rows.mean(0)) ** 2).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize(
  "array, message",
  [
    (np.zeros(4), r"has shape \(4,\); document vectors are"),
    (np.zeros((0, 4)), r"shape \(0, 4\)"),
    (np.zeros((2, 4), int), "has type int64"),
    (np.array([[0.0], [np.nan]]), "row 1 holds NaN or infinity"),
    (np.array([[object()]]), "is no .npy file of numbers"),
  ],
)
def test_a_file_that_holds_no_vectors_is_named(array, message, tmp_path):
  np.save(tmp_path / "v.npy", array, allow_pickle=True)
  with pytest.raises(ValueError, match=message) as error:
    vec.read_vectors(tmp_path / "v.npy")
  assert str(tmp_path / "v.npy") in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'"])
def test_a_broken_file_is_one_line(content, tmp_path):
  (tmp_path / "v.npy").write_bytes(content)
  with pytest.raises(ValueError, match=r"is no \.npy file of numbers") as error:
    vec.read_vectors(tmp_path / "v.npy")
  assert "\n" not in str(error.value)


def test_an_archive_is_no_matrix(tmp_path):
  np.savez(tmp_path / "v.npz", a=np.ones((2, 2)))
  with pytest.raises(ValueError, match="archive of arrays"):
    vec.read_vectors(tmp_path / "v.npz")
