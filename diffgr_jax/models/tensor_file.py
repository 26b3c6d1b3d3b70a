"""Reading and writing safetensors files one tensor at a time, without holding a second copy of anything.

A file is eight bytes (the header's length), a JSON header, then the tensors' bytes, row-major and little-endian:

    | 8: length N | N: {"a.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...} | data |

Nothing here can run code: a header is JSON and the rest are numbers. Pickled checkpoints (*.bin, *.pt) are refused by
name. The format is described at https://huggingface.co/docs/safetensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MAX_HEADER = 100_000_000  # bytes; what the format allows


@dataclass(frozen=True)
class StoredTensor:
  """Where a tensor lies: nothing is read before `view`."""

  name: str
  path: Path
  dtype: np.dtype
  shape: tuple[int, ...]
  offset: int  # bytes from the beginning of the file

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def view(self) -> np.ndarray:
    """The tensor as a read-only memory map; its pages are given back when the view is dropped.

    Two-byte floats come as they are stored (bfloat16 by ml_dtypes).
    """
    if not self.nbytes:
      return np.zeros(self.shape, self.dtype)
    raw = np.memmap(self.path, mode="r", dtype=np.uint8, offset=self.offset, shape=(self.nbytes,))
    return raw.view(self.dtype).reshape(self.shape)


def read_raw_header(path: Path) -> bytes:
  """The header of a safetensors file, byte for byte, its length not included.

  Raises:
    ValueError: the file is too short, or the length makes no sense.
  """
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
      raise ValueError(f"{path}: no safetensors file: its header would have {length} bytes")
    return file.read(length)


def header_tensors(path: Path, raw: bytes) -> dict[str, StoredTensor]:
  """The tensors that a file with this header holds, without a look at the file.

  Raises:
    ValueError: a header that is no JSON, an entry without its fields, an unknown dtype, or bytes that do not fit the
      shape.
  """
  try:
    entries = json.loads(raw)
  except ValueError as error:
    raise ValueError(f"{path}: the header is no JSON ({error})") from None
  tensors = {}
  for name, entry in entries.items():
    if name == "__metadata__":
      continue
    try:
      kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
      raise ValueError(
        f"{path}: the header's entry of tensor {name} has no dtype, shape and two data_offsets"
      ) from None
    if kind not in DTYPES:
      raise ValueError(f"{path}: tensor {name} has dtype {kind}; known are {', '.join(DTYPES)}")
    tensors[name] = StoredTensor(name, path, DTYPES[kind], shape, 8 + len(raw) + begin)
    if begin < 0 or end - begin != tensors[name].nbytes:
      raise ValueError(f"{path}: tensor {name} needs {tensors[name].nbytes} bytes, but has those from {begin} to {end}")
  return tensors


def read_header(path: Path) -> dict[str, StoredTensor]:
  """Every tensor of one file.

  Raises:
    ValueError: see `header_tensors`; or the file ends before a tensor does.
  """
  tensors, size = header_tensors(path, read_raw_header(path)), path.stat().st_size
  for name, tensor in tensors.items():
    if tensor.offset + tensor.nbytes > size:
      raise ValueError(f"{path}: tensor {name} ends at byte {tensor.offset + tensor.nbytes}, but the file has {size}")
  return tensors


def weight_files(folder: Path) -> list[Path]:
  """The safetensors files of an HF folder: those that the index names, or the single file.

  Raises:
    ValueError: the folder holds no safetensors (a pickled checkpoint is named), or the index names a file outside it.
    FileNotFoundError: a file of the index is missing.
  """
  index = folder / INDEX_FILE
  if index.exists():
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for name in names:
      if Path(name).name != name or not name.endswith(".safetensors"):
        raise ValueError(f"{index}: names the weight file {name!r}; only safetensors files in the same folder are read")
      if not (folder / name).exists():
        raise FileNotFoundError(f"{index}: names {name}, which is not in the folder")
    return [folder / name for name in names]
  if (folder / SINGLE_FILE).exists():
    return [folder / SINGLE_FILE]
  pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
  if pickles:
    raise ValueError(f"{folder / pickles[0]} is a pickle and is never opened; save the weights as {SINGLE_FILE}")
  raise ValueError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}")


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
  """Every tensor of an HF folder by name.

  Raises:
    ValueError: as `weight_files` and `read_header`; a tensor stored twice; an index that disagrees with the files.
  """
  tensors: dict[str, StoredTensor] = {}
  for path in weight_files(folder):
    for name, tensor in read_header(path).items():
      if name in tensors:
        raise ValueError(f"{path}: tensor {name} is also in {tensors[name].path.name}")
      tensors[name] = tensor
  index = folder / INDEX_FILE
  if index.exists():
    for name, file in json.loads(index.read_text())["weight_map"].items():
      if name not in tensors or tensors[name].path.name != file:
        found = tensors[name].path.name if name in tensors else "no file"
        raise ValueError(f"{index}: places tensor {name} in {file}, but it is in {found}")
  return tensors


# --- writing ---


def dtype_of(name: str) -> np.dtype:
  """numpy's dtype of a config's precision, "float32" or "bfloat16"."""
  return DTYPES[{"float32": "F32", "bfloat16": "BF16"}[name]]


def make_header(tensors: Sequence[tuple[str, np.dtype, Sequence[int]]]) -> bytes:
  """A header for tensors that will lie one after the other, padded so that the data begins at a multiple of 8 bytes."""
  entries: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, dtype, shape in tensors:
    end = offset + math.prod(shape) * dtype.itemsize
    entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  raw = json.dumps(entries, separators=(",", ":")).encode()
  return raw + b" " * (-len(raw) % 8)


def create_files(headers: Mapping[Path, bytes]) -> dict[str, StoredTensor]:
  """Creates safetensors files of the right size, still without data; `write_tensor` fills them in any order."""
  slots: dict[str, StoredTensor] = {}
  for path, raw in headers.items():
    tensors = header_tensors(path, raw)
    with path.open("wb") as file:
      file.write(len(raw).to_bytes(8, "little") + raw)
      file.truncate(max([8 + len(raw), *(tensor.offset + tensor.nbytes for tensor in tensors.values())]))
    slots |= tensors
  return slots


def write_tensor(slot: StoredTensor, values: np.ndarray) -> None:
  """Writes one tensor into its place.

  Raises:
    ValueError: the shape or dtype is not that of the place.
  """
  if values.shape != slot.shape or values.dtype != slot.dtype:
    raise ValueError(
      f"{slot.path}: tensor {slot.name} is to be {slot.dtype}{list(slot.shape)}, not {values.dtype}{list(values.shape)}"
    )
  with slot.path.open("r+b") as file:
    file.seek(slot.offset)
    file.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def write_file(path: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
  """Writes small tensors as one file."""
  tensors = list(tensors)
  slots = create_files({path: make_header([(name, values.dtype, values.shape) for name, values in tensors])})
  for name, values in tensors:
    write_tensor(slots[name], values)
