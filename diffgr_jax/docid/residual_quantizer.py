"""Residual k-means: a document's code at a level is the nearest centroid of what the levels before have left over.

    x  --nearest of codebook 0-->  c0     r1 = x - c0
    r1 --nearest of codebook 1-->  c1     r2 = r1 - c1     ...      x is about c0 + c1 + ... + c(L-1)

Codes go from coarse to fine: documents that share a prefix are near (RQ, Chen et al., 2010; DocIDs: TIGER,
arXiv 2305.05065, with an autoencoder around it, see rqvae.py).
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped
import numpy as np
from tqdm import tqdm

from diffgr_jax.docid.kmeans import kmeans, nearest
from diffgr_jax.docid.quantizer import Arrays, check_width
from diffgr_jax.docid.vectors import CHUNK, QUIET_SECONDS, chunks, sample_rows

POINTS_PER_CODE = 256  # vectors that k-means is fitted to; more change a centroid little


@dataclass(frozen=True, eq=False)
class ResidualQuantizer:
  """Codebooks of residual quantisation."""

  kind: ClassVar[str] = "residual_kmeans"
  codebooks: Float[np.ndarray, "L K D"]

  @property
  def levels(self) -> int:
    return self.codebooks.shape[0]

  @property
  def codes(self) -> int:
    return self.codebooks.shape[1]

  @property
  def width(self) -> int:
    return self.codebooks.shape[2]

  def encode(self, vectors: Shaped[np.ndarray, "N D"]) -> Int[np.ndarray, "N L"]:
    check_width(self, vectors)
    codebooks = jnp.asarray(self.codebooks)
    codes = np.empty((len(vectors), self.levels), np.int32)
    for rows, block in chunks(vectors, label="encoding"):
      codes[rows] = np.asarray(quantise(codebooks, block)[0])[: rows.stop - rows.start]
    return codes

  def decode(self, codes: Int[np.ndarray, "N l"]) -> Float[np.ndarray, "N D"]:
    return sum_of_codes(self.codebooks, codes)

  def centroids(self) -> Float[np.ndarray, "L K D"]:
    """What each code adds to a decoded vector."""
    return self.codebooks

  def last_level_costs(
    self, vectors: Shaped[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
  ) -> Float[np.ndarray, "N K"]:
    check_width(self, vectors)
    return residual_costs(self.codebooks, np.asarray(vectors, np.float32), codes)

  def arrays(self) -> Arrays:
    return {"codebooks": self.codebooks}

  @classmethod
  def from_arrays(cls, arrays: Arrays) -> "ResidualQuantizer":
    return cls(arrays["codebooks"])


@jax.jit
def quantise(
  codebooks: Float[Array, "L K D"], vectors: Float[Array, "B D"] | Float[np.ndarray, "B D"]
) -> tuple[Int[Array, "B L"], Float[Array, "L B D"]]:
  """Codes, and what each level has to express: the vectors, then their residuals."""

  def one_level(residual, codebook):
    code, _ = nearest(residual, codebook)
    return residual - codebook[code], (code, residual)

  _, (codes, residuals) = jax.lax.scan(one_level, jnp.asarray(vectors), codebooks)
  return codes.T, residuals


def sum_of_codes(codebooks: Float[np.ndarray, "L K D"], codes: Int[np.ndarray, "N l"]) -> Float[np.ndarray, "N D"]:
  """The sum of the named centroids of the first l levels."""
  total = np.zeros((len(codes), codebooks.shape[2]), np.float32)
  for level, column in enumerate(codes.T):
    total += codebooks[level, column]
  return total


def residual_costs(
  codebooks: Float[np.ndarray, "L K D"], vectors: Float[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
) -> Float[np.ndarray, "N K"]:
  """Squared distances of what the levels before the last leave over to the centroids of the last."""
  last = codebooks[-1]
  residual = vectors - sum_of_codes(codebooks, codes[:, : len(codebooks) - 1])
  squares = np.square(residual).sum(axis=1, keepdims=True) - 2.0 * residual @ last.T + np.square(last).sum(axis=1)[None]
  return np.maximum(squares, 0.0).astype(np.float32)


@jax.jit
def _less_nearest(points: Float[Array, "M C D"], centroids: Float[Array, "K D"]) -> Float[Array, "M C D"]:
  """Points less their nearest centroid, a chunk at a time."""
  return jax.lax.map(lambda rows: rows - centroids[nearest(rows, centroids)[0]], points)


def fit_codebooks(
  points: Float[np.ndarray, "S D"], levels: int, codes: int, *, seed: int, iterations: int = 20
) -> Float[np.ndarray, "{levels} {codes} D"]:
  """Residual k-means on points that fit on the device."""
  codebooks = []
  chunk = min(CHUNK, max(len(points), 1))
  rest = jnp.asarray(points, jnp.float32)
  with tqdm(total=levels * iterations, unit="step", desc="k-means", delay=QUIET_SECONDS, leave=False) as bar:
    for level in range(levels):
      start = "averages" if level else "plus_plus"  # what the first level leaves over forms no clusters
      centroids = kmeans(rest, codes, seed=seed + level, start=start, iterations=iterations, after_step=bar.update)
      codebooks.append(np.asarray(centroids))
      padded = jnp.pad(rest, ((0, -len(rest) % chunk), (0, 0))).reshape(-1, chunk, rest.shape[1])
      rest = _less_nearest(padded, centroids).reshape(-1, rest.shape[1])[: len(rest)]
  return np.stack(codebooks)


def fit_residual_quantizer(
  vectors: Shaped[np.ndarray, "N D"], levels: int, codes: int, *, seed: int = 0, iterations: int = 20
) -> ResidualQuantizer:
  """Fits codebooks level by level to at most `POINTS_PER_CODE` x `codes` of the vectors.

  Args:
    vectors: finite floats, in memory or mapped.
    levels: L.
    codes: K, at most N.
    seed: decides the sample and the starts.
    iterations: Lloyd steps a level, at most.

  Raises:
    ValueError: no level, or more codes than vectors.
  """
  if levels < 1:
    raise ValueError(f"a quantiser has at least 1 level, not {levels}")
  points = sample_rows(vectors, POINTS_PER_CODE * codes, seed)
  return ResidualQuantizer(fit_codebooks(points, levels, codes, seed=seed, iterations=iterations))
