"""What every quantiser of document vectors can do, and how it is kept in a file.

    vectors [N, D]  --encode-->  codes [N, L], each in 0..K-1  --decode-->  vectors [N, D], near the first

Vectors come and go as numpy matrices of any float type (also mapped files) and are worked on in chunks.
"""

from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int, Shaped
import numpy as np

from diffgr_jax.docid.vectors import chunks

Arrays = dict[str, np.ndarray]


@runtime_checkable
class Quantizer(Protocol):
  """A trained quantiser; immutable."""

  kind: ClassVar[str]

  @property
  def levels(self) -> int: ...

  @property
  def codes(self) -> int:
    """K: codes of a level."""
    ...

  @property
  def width(self) -> int:
    """D: of the vectors."""
    ...

  def encode(self, vectors: Shaped[np.ndarray, "N D"]) -> Int[np.ndarray, "N L"]: ...

  def decode(self, codes: Int[np.ndarray, "N l"]) -> Float[np.ndarray, "N D"]:
    """The vectors that the first l levels stand for; with l = 0 the same for every document."""
    ...

  def last_level_costs(
    self, vectors: Shaped[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
  ) -> Float[np.ndarray, "N K"]:
    """Squared error (in the quantiser's own space) with each code of the last level behind the codes before it."""
    ...

  def arrays(self) -> Arrays:
    """Everything the quantiser is, by name; its class's `from_arrays` takes it back."""
    ...


def check_width(quantizer: Quantizer, vectors: np.ndarray) -> None:
  if vectors.ndim != 2 or vectors.shape[1] != quantizer.width:
    raise ValueError(f"the quantiser takes vectors of width {quantizer.width}, not an array of shape {vectors.shape}")


def relative_errors(
  quantizer: Quantizer, vectors: Shaped[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
) -> list[float]:
  """The reconstruction error of the first 1, 2, ... L levels, as a share of the vectors' variance.

  1 is what the mean vector alone would do, 0 is exact. Further columns of codes (an extra level) are passed over.
  """
  levels = quantizer.levels
  totals = np.zeros(levels)
  count, mean, spread = 0, np.zeros(quantizer.width), 0.0
  for rows, block in chunks(vectors, label="measuring"):
    actual = block[: rows.stop - rows.start]
    for level in range(levels):
      error = actual - quantizer.decode(codes[rows, : level + 1])
      totals[level] += float(np.square(error).sum(dtype=np.float64))
    # Chan's update of mean and sum of squares, so that the vectors are read once.
    own_mean = actual.mean(axis=0, dtype=np.float64)
    spread += float(np.square(actual - own_mean).sum(dtype=np.float64))
    shift = own_mean - mean
    spread += float(shift @ shift) * count * len(actual) / (count + len(actual))
    mean += shift * len(actual) / (count + len(actual))
    count += len(actual)
  return (totals / max(spread, 1e-12)).tolist()
