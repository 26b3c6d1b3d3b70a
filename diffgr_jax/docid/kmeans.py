"""k-means in JAX: Lloyd steps over chunks of points from one of two starts, no cluster left empty.

    plus_plus   points far apart (k-means++): for points that do form clusters
    averages    means of a few points: for residuals, which in many dimensions lie in one ball. A start AT a point of
                the ball stays alone with it: every other point is nearer to the ball's middle

    points    [chunks, C, D] with a weight of 0 for the rows that only fill up
    a step    for each chunk: distances [C, K] -> nearest -> sums and counts; then the means
    empty     a centroid without points moves to the point farthest from its own (several: to the farthest, in order)

Distances exist for one chunk at a time. With equal seeds the result is equal bit for bit on one kind of device.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from diffgr_jax.docid.vectors import CHUNK

START_POINTS = 32  # per code that starts are made of: k-means++ visits them all once for every code
AVERAGED = 8


def nearest(points: Float[Array, "C D"], centroids: Float[Array, "K D"]) -> tuple[Int[Array, "C"], Float[Array, "C"]]:
  """The nearest centroid of each point (of equals the first) and the squared distance to it."""
  score = 2.0 * _dot(points, centroids.T) - jnp.sum(centroids**2, axis=1)[None, :]
  best = jnp.argmax(score, axis=1)
  distance = jnp.sum(points**2, axis=1) - jnp.max(score, axis=1)
  return best.astype(jnp.int32), jnp.maximum(distance, 0.0)


def _dot(left: Array, right: Array) -> Array:
  return jnp.dot(left, right, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.jit, donate_argnames="centroids")
def lloyd_step(
  points: Float[Array, "M C D"], weight: Float[Array, "M C"], centroids: Float[Array, "K D"]
) -> tuple[Float[Array, "K D"], Float[Array, ""]]:
  """One iteration: every centroid moves to the mean of its points.

  Args:
    points: in chunks.
    weight: 1, or 0 for rows that only fill up.
    centroids: from the step before.

  Returns:
    The new centroids, and the mean squared distance of a point to the nearest of the OLD ones.
  """

  def add_chunk(totals, chunk):
    rows, present = chunk
    best, distance = nearest(rows, centroids)
    sums, counts = totals
    sums = sums.at[best].add(rows * present[:, None])
    return (sums, counts.at[best].add(present)), distance * present

  zero = jnp.zeros_like(centroids), jnp.zeros(len(centroids), centroids.dtype)
  (sums, counts), distance = jax.lax.scan(add_chunk, zero, (points, weight))
  empty = counts == 0
  _, farthest = jax.lax.top_k(distance.reshape(-1), len(centroids))
  place = jnp.maximum(jnp.cumsum(empty) - 1, 0)  # the n-th empty one takes the n-th farthest point
  spare = points.reshape(-1, points.shape[-1])[farthest[place]]
  means = jnp.where(empty[:, None], spare, sums / jnp.maximum(counts, 1.0)[:, None])
  return means, distance.sum() / weight.sum()


@functools.partial(jax.jit, static_argnames="codes")
def plus_plus(points: Float[Array, "S D"], key: Key[Array, ""], codes: int) -> Float[Array, "{codes} D"]:
  """k-means++ (Arthur and Vassilvitskii, 2007): each start is drawn by its squared distance to those before it."""

  def add_one(n, carry):
    chosen, distance = carry
    gumbel = jax.random.gumbel(jax.random.fold_in(key, n), distance.shape)
    log_weight = jnp.where(n == 0, 0.0, jnp.log(distance))  # the first one is drawn evenly
    centroid = points[jnp.argmax(log_weight + gumbel)]
    distance = jnp.minimum(distance, jnp.sum((points - centroid[None, :]) ** 2, axis=1))
    return chosen.at[n].set(centroid), distance

  start = jnp.zeros((codes, points.shape[1]), points.dtype), jnp.full(len(points), jnp.inf, points.dtype)
  return jax.lax.fori_loop(0, codes, add_one, start)[0]


@functools.partial(jax.jit, static_argnames="codes")
def averages(points: Float[Array, "S D"], key: Key[Array, ""], codes: int) -> Float[Array, "{codes} D"]:
  """Means of `AVERAGED` points each, drawn evenly."""
  rows = jax.random.randint(key, (codes, AVERAGED), 0, len(points))
  return points[rows].mean(axis=1)


STARTS = {"plus_plus": plus_plus, "averages": averages}


def kmeans(
  points: Float[np.ndarray, "S D"] | Float[Array, "S D"],
  codes: int,
  *,
  seed: int,
  start: str = "plus_plus",
  iterations: int = 20,
  tolerance: float = 1e-4,
  chunk: int = CHUNK,
  after_step: Callable[[], object] = lambda: None,
) -> Float[Array, "{codes} D"]:
  """Clusters points.

  Args:
    points: float32; held on the device as a whole.
    codes: K, at most the number of points.
    seed: decides the starts.
    start: one of `STARTS`.
    iterations: Lloyd steps at most.
    tolerance: stop when a step lowers the mean squared distance by less than this share of it.
    chunk: points whose distances are held at a time.
    after_step: called once for every one of `iterations`, also for those that were not needed.

  Raises:
    ValueError: fewer points than codes, or no code.
  """
  if not 1 <= codes <= len(points):
    raise ValueError(f"{codes} codes a level need at least as many document vectors, and there are {len(points)}")
  chunk = min(chunk, len(points))
  start_key, sample_key = jax.random.split(jax.random.key(seed))
  blocks, weight = _blocks(points, chunk)
  starts = jnp.asarray(points)
  if len(points) > START_POINTS * codes:
    starts = starts[jax.random.choice(sample_key, len(points), (START_POINTS * codes,), replace=False)]
  centroids = STARTS[start](starts, start_key, codes)
  before, pending = np.inf, None
  done = 0
  while done < iterations:
    centroids, distance = lloyd_step(blocks, weight, centroids)
    done += 1
    after_step()
    if pending is not None:  # one step late: the device is already at work on this one
      now = float(pending)
      if before - now <= tolerance * now:
        break
      before = now
    pending = distance
  for _ in range(done, iterations):
    after_step()
  return centroids


def _blocks(points, chunk: int) -> tuple[Float[Array, "M C D"], Float[Array, "M C"]]:
  """Points in chunks, filled up with zero rows of weight 0."""
  missing = -len(points) % chunk
  rows = jnp.pad(jnp.asarray(points, jnp.float32), ((0, missing), (0, 0)))
  weight = jnp.arange(len(rows)) < len(points)
  return rows.reshape(-1, chunk, rows.shape[1]), weight.astype(jnp.float32).reshape(-1, chunk)
