"""Product quantisation: the vector is cut into L parts, and each part gets the nearest centroid of its own codebook.

    x = [ x0 | x1 | ... | x(L-1) ]     code l = nearest centroid of part l, whatever the other parts are

Levels are independent, none is coarse or fine (Jegou et al., 2011). A random rotation before the cut (seeded, kept in
the file) spreads what the vector says evenly over the parts: vectors of a singular value decomposition need it, since
their first coordinates hold most.
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
from diffgr_jax.docid.residual_quantizer import POINTS_PER_CODE
from diffgr_jax.docid.vectors import QUIET_SECONDS, chunks, sample_rows


@dataclass(frozen=True, eq=False)
class ProductQuantizer:
  """Codebooks of the parts, and the rotation in front of them."""

  kind: ClassVar[str] = "product"
  codebooks: Float[np.ndarray, "L K d"]  # d = D / L
  rotation: Float[np.ndarray, "D D"]  # orthogonal; the parts are cut from x @ rotation

  @property
  def levels(self) -> int:
    return self.codebooks.shape[0]

  @property
  def codes(self) -> int:
    return self.codebooks.shape[1]

  @property
  def width(self) -> int:
    return self.rotation.shape[0]

  def encode(self, vectors: Shaped[np.ndarray, "N D"]) -> Int[np.ndarray, "N L"]:
    check_width(self, vectors)
    codebooks, rotation = jnp.asarray(self.codebooks), jnp.asarray(self.rotation)
    codes = np.empty((len(vectors), self.levels), np.int32)
    for rows, block in chunks(vectors, label="encoding"):
      codes[rows] = np.asarray(_encode(codebooks, rotation, block))[: rows.stop - rows.start]
    return codes

  def decode(self, codes: Int[np.ndarray, "N l"]) -> Float[np.ndarray, "N D"]:
    """Parts that are not given stand at the mean of their codebook."""
    parts = np.tile(self.codebooks.mean(axis=1), (len(codes), 1, 1))
    for level, column in enumerate(codes.T):
      parts[:, level] = self.codebooks[level, column]
    return parts.reshape(len(codes), -1) @ self.rotation.T

  def centroids(self) -> Float[np.ndarray, "L K D"]:
    """What each code adds to a decoded vector."""
    parts = np.split(self.rotation, self.levels, axis=1)  # the columns that a part is cut from
    return np.stack([codebook @ part.T for codebook, part in zip(self.codebooks, parts, strict=True)])

  def last_level_costs(
    self, vectors: Shaped[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
  ) -> Float[np.ndarray, "N K"]:
    check_width(self, vectors)
    last = self.codebooks[-1]
    part = (np.asarray(vectors, np.float32) @ self.rotation)[:, -last.shape[1] :]
    squares = np.square(part).sum(axis=1, keepdims=True) - 2.0 * part @ last.T + np.square(last).sum(axis=1)[None]
    return np.maximum(squares, 0.0).astype(np.float32)

  def arrays(self) -> Arrays:
    return {"codebooks": self.codebooks, "rotation": self.rotation}

  @classmethod
  def from_arrays(cls, arrays: Arrays) -> "ProductQuantizer":
    return cls(arrays["codebooks"], arrays["rotation"])


@jax.jit
def _encode(
  codebooks: Float[Array, "L K d"], rotation: Float[Array, "D D"], vectors: Float[np.ndarray, "B D"] | Array
) -> Int[Array, "B L"]:
  rotated = jnp.dot(vectors, rotation, precision=jax.lax.Precision.HIGHEST)
  parts = rotated.reshape(len(rotated), len(codebooks), -1).transpose(1, 0, 2)
  return jax.lax.map(lambda part: nearest(*part)[0], (parts, codebooks)).T


def random_rotation(width: int, seed: int) -> Float[np.ndarray, "{width} {width}"]:
  """A rotation (or reflection) drawn evenly from all of them: QR of a Gaussian matrix, its signs fixed."""
  q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
  return (q * np.sign(np.diag(r))[None, :]).astype(np.float32)


def fit_product_quantizer(
  vectors: Shaped[np.ndarray, "N D"],
  levels: int,
  codes: int,
  *,
  seed: int = 0,
  iterations: int = 20,
  rotate: bool = True,
) -> ProductQuantizer:
  """Fits a codebook to each part, on at most `POINTS_PER_CODE` x `codes` of the vectors.

  Args:
    vectors: finite floats, in memory or mapped.
    levels: L; must divide the vectors' width.
    codes: K, at most N.
    seed: decides the sample, the rotation and the starts.
    iterations: Lloyd steps a part, at most.
    rotate: a random rotation before the cut; False: the coordinates as they come.

  Raises:
    ValueError: levels that do not divide the width, or more codes than vectors.
  """
  width = vectors.shape[1]
  if levels < 1 or width % levels:
    raise ValueError(f"product quantisation cuts vectors of width {width} into equal parts: {levels} levels do not fit")
  rotation = random_rotation(width, seed) if rotate else np.eye(width, dtype=np.float32)
  points = sample_rows(vectors, POINTS_PER_CODE * codes, seed) @ rotation
  part = width // levels
  codebooks = []
  with tqdm(total=levels * iterations, unit="step", desc="k-means", delay=QUIET_SECONDS, leave=False) as bar:
    for level in range(levels):
      own = points[:, level * part : (level + 1) * part]
      codebooks.append(np.asarray(kmeans(own, codes, seed=seed + level, iterations=iterations, after_step=bar.update)))
  return ProductQuantizer(np.stack(codebooks), rotation)
