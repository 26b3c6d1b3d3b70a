"""The reader and writer of safetensors files, against the safetensors library."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffgr_jax.models import tensor_file


def random_tensors(seed):
  rng = np.random.default_rng(seed)
  return {
    "b.weight": rng.standard_normal((3, 5)).astype(np.float32),
    "a.half": rng.standard_normal((4,)).astype(ml_dtypes.bfloat16),
    "ids": rng.integers(0, 99, (1, 7)),
    "flag": rng.random((2, 2)) < 0.5,
    "scalar": np.array(rng.standard_normal(), np.float32),
  }


def same_bits(one, other):
  return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def test_reads_what_the_library_wrote(tmp_path):
  tensors = random_tensors(0)
  safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
  stored = tensor_file.read_tensors(tmp_path)
  assert stored.keys() == tensors.keys()
  for name, tensor in tensors.items():
    assert same_bits(np.asarray(stored[name].view()), tensor), name


def test_the_library_reads_what_it_wrote(tmp_path):
  tensors = random_tensors(1)
  path = tmp_path / "x.safetensors"
  tensor_file.write_file(path, tensors.items())
  read = safetensors.numpy.load_file(path)
  assert all(same_bits(read[name], tensor) for name, tensor in tensors.items())
  assert read.keys() == tensors.keys()


def test_a_transposed_view_is_written_row_by_row(tmp_path):
  matrix = np.arange(6, dtype=np.float32).reshape(2, 3).T
  tensor_file.write_file(tmp_path / "x.safetensors", [("m", matrix)])
  np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "x.safetensors")["m"], matrix)


def write_header(path, header, data=b""):
  raw = json.dumps(header).encode()
  path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


@pytest.mark.parametrize(
  "entry, message",
  [
    ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, "tensor w needs 16 bytes, but has those from 0 to 12"),
    ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "tensor w ends at byte .*, but the file has"),
    ({"dtype": "F32", "shape": [3]}, "entry of tensor w has no dtype, shape and two data_offsets"),
    ({"dtype": "F8_E5M2", "shape": [2], "data_offsets": [0, 2]}, "tensor w has dtype F8_E5M2"),
  ],
)
def test_a_header_that_lies_is_refused(tmp_path, entry, message):
  write_header(tmp_path / "model.safetensors", {"w": entry}, bytes(12))
  with pytest.raises(ValueError, match=message):
    tensor_file.read_tensors(tmp_path)


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
  (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04 a zip of pickles, renamed")
  with pytest.raises(ValueError, match="no safetensors file"):
    tensor_file.read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.pth"])
def test_pickles_are_refused_by_name(tmp_path, name):
  (tmp_path / name).write_bytes(b"\x80\x04.")
  with pytest.raises(ValueError, match=f"{name} is a pickle and is never opened"):
    tensor_file.read_tensors(tmp_path)


def index_of(folder, places):
  (folder / tensor_file.INDEX_FILE).write_text(json.dumps({"weight_map": places}))


def test_an_index_must_agree_with_its_files(tmp_path):
  for name in ("a", "b"):
    tensor_file.write_file(tmp_path / f"{name}.safetensors", [(name, np.zeros(2, np.float32))])
  index_of(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
  assert tensor_file.read_tensors(tmp_path).keys() == {"a", "b"}
  index_of(tmp_path, {"a": "b.safetensors", "b": "a.safetensors"})
  with pytest.raises(ValueError, match=r"places tensor a in b.safetensors, but it is in a.safetensors"):
    tensor_file.read_tensors(tmp_path)
  index_of(tmp_path, {"a": "a.safetensors", "b": "../b.safetensors"})
  with pytest.raises(ValueError, match=r"names the weight file '../b.safetensors'"):
    tensor_file.read_tensors(tmp_path)
  index_of(tmp_path, {"a": "a.safetensors", "b": "c.safetensors"})
  with pytest.raises(FileNotFoundError, match=r"names c.safetensors, which is not in the folder"):
    tensor_file.read_tensors(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
  for name in ("a", "b"):
    tensor_file.write_file(tmp_path / f"{name}.safetensors", [("same", np.zeros(2, np.float32)), (name, np.ones(1))])
  index_of(tmp_path, {"same": "a.safetensors", "a": "a.safetensors", "b": "b.safetensors"})
  with pytest.raises(ValueError, match=r"tensor same is also in a.safetensors"):
    tensor_file.read_tensors(tmp_path)
