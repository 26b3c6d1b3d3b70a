"""Document vectors as a matrix on disk or in memory, read in chunks so that no copy of it is ever made.

rows        0 .. C-1 | C .. 2C-1 | ... | last, filled up with zero rows
chunk       float32 [C, D]             one shape, so that what is jitted over chunks compiles once
"""

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Float, Int, Shaped
import numpy as np
from tqdm import tqdm

CHUNK = 4096  # rows; at 768 wide and 256 codes a chunk and its distances take 17 MB
QUIET_SECONDS = 5.0  # before a progress bar appears


def read_vectors(path: str | Path) -> Shaped[np.ndarray, "N D"]:
  """Maps a .npy of floats into memory.

  Raises:
    ValueError: the file is no .npy, no matrix of floats, empty, or holds NaN or infinity (names the row).
  """
  try:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
  except (ValueError, EOFError) as error:
    raise ValueError(f"{path} is no .npy file of numbers: {str(error).splitlines()[0]}") from None
  if not isinstance(vectors, np.ndarray):
    raise ValueError(f"{path} is an archive of arrays; document vectors are one .npy, a row a document")
  check_vectors(vectors, str(path))
  return vectors


def check_vectors(vectors: np.ndarray, name: str) -> None:
  """Raises ValueError where `vectors` is no matrix of finite floats with a row and a column at least."""
  if vectors.ndim != 2 or not vectors.size:
    raise ValueError(f"{name} has shape {vectors.shape}; document vectors are [documents, width], neither of them 0")
  if not np.issubdtype(vectors.dtype, np.floating):
    raise ValueError(f"{name} has type {vectors.dtype}; document vectors are float16, float32 or float64")
  for start in range(0, len(vectors), CHUNK):
    finite = np.isfinite(vectors[start : start + CHUNK]).all(axis=1)
    if not finite.all():
      raise ValueError(f"{name}: row {start + int(np.argmin(finite))} holds NaN or infinity")


def chunks(
  vectors: Shaped[np.ndarray, "N D"], chunk: int = CHUNK, label: str = ""
) -> Iterator[tuple[slice, Float[np.ndarray, "{chunk} D"]]]:
  """Yields the rows in order as float32 blocks of one shape, with the slice that each stands for.

  Args:
    vectors: any float matrix, in memory or mapped.
    chunk: rows of a block.
    label: of a progress bar that appears after five seconds; "": none.
  """
  starts = range(0, len(vectors), chunk)
  for start in tqdm(starts, desc=label, unit="chunk", delay=QUIET_SECONDS, leave=False, disable=not label):
    rows = slice(start, min(start + chunk, len(vectors)))
    block = np.zeros((chunk, vectors.shape[1]), np.float32)
    block[: rows.stop - start] = vectors[rows]
    yield rows, block


def sample_rows(vectors: Shaped[np.ndarray, "N D"], limit: int, seed: int) -> Float[np.ndarray, "S D"]:
  """All rows, or `limit` of them drawn without replacement, in their order, as float32."""
  if len(vectors) <= limit:
    return np.asarray(vectors, np.float32)
  rows: Int[np.ndarray, "S"] = np.sort(np.random.default_rng(seed).choice(len(vectors), limit, replace=False))
  return np.asarray(vectors[rows], np.float32)


def mean_and_variance(vectors: Shaped[np.ndarray, "N D"]) -> tuple[Float[np.ndarray, "D"], float]:
  """The mean row, and the mean squared distance of a row from it."""
  mean = np.zeros(vectors.shape[1], np.float64)
  for rows, block in chunks(vectors):
    mean += block[: rows.stop - rows.start].sum(axis=0, dtype=np.float64)
  mean /= len(vectors)
  total = 0.0
  for rows, block in chunks(vectors):
    total += float(np.square(block[: rows.stop - rows.start] - mean.astype(np.float32)).sum(dtype=np.float64))
  return mean.astype(np.float32), total / len(vectors)
