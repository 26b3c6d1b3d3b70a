"""Drawing tokens: temperature, top-k and top-p, as traced numbers, so that another setting compiles nothing anew.

    log p  --/ temperature-->  --keep the k best-->  --keep the smallest head that holds mass top_p-->  + Gumbel noise
                                                                                                       arg max

The arg max of log p plus Gumbel noise is a draw from p. At temperature 0 there is no noise: the most likely token.
Every row draws from its own key, and each of its positions from a key made of that: a token depends on its row's seed
and on nothing else in the batch.
"""

import math

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffgr_jax.decoding.denoiser import allowed_logits, log_probabilities

_TILES = (256, 128)  # columns of a tile of `most_likely`: the first that divides the vocabulary


@struct.dataclass
class Sampling:
  """How tokens are drawn; a pytree of numbers. Build it with `make_sampling`."""

  temperature: Float[Array, ""]  # 0: most likely token
  top_k: Int[Array, ""]  # 0: all
  top_p: Float[Array, ""]  # 1: all


def make_sampling(temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> Sampling:
  """Checks the three settings and moves them to the device.

  Raises:
    ValueError: a temperature or top_k below 0, or a top_p outside (0, 1].
  """
  if not temperature >= 0:
    raise ValueError(f"temperature is {temperature}; it must be 0 (most likely token) or more")
  if top_k < 0:
    raise ValueError(f"top_k is {top_k}; it must be 0 (all tokens) or more")
  if not 0 < top_p <= 1:
    raise ValueError(f"top_p is {top_p}; it must be a probability mass in (0, 1]")
  return Sampling(jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))


def filtered(log_probs: Float[Array, "*B V"], sampling: Sampling) -> Float[Array, "*B V"]:
  """The distribution that tokens are drawn from: tempered, cut by top-k, then by top-p, renormalised (float32).

  Tokens that tie with the last one kept are kept too. Temperature 0 leaves the distribution untempered.
  """
  heat = jnp.where(sampling.temperature > 0, sampling.temperature, 1.0)
  tempered = jax.nn.log_softmax(log_probs / heat, axis=-1)

  def cut() -> Float[Array, "*B V"]:
    falling = -jnp.sort(-tempered, axis=-1)
    size = falling.shape[-1]
    count = jnp.where(sampling.top_k > 0, jnp.minimum(sampling.top_k, size), size)
    place = jnp.arange(size).reshape((1,) * (falling.ndim - 1) + (size,))
    head = jax.nn.log_softmax(jnp.where(place < count, falling, -jnp.inf), axis=-1)
    mass_before = jnp.cumsum(jnp.exp(head), axis=-1) - jnp.exp(head)
    kept = (place < count) & ((mass_before < sampling.top_p) | (place == 0))
    lowest = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
    return jax.nn.log_softmax(jnp.where(tempered >= lowest, tempered, -jnp.inf), axis=-1)

  return jax.lax.cond((sampling.top_k > 0) | (sampling.top_p < 1), cut, lambda: tempered)


def token_scores(
  log_probs: Float[Array, "B *L V"],
  sampling: Sampling,
  row_keys: Key[Array, "B"],
  place: Int[Array, "B *L"] | None = None,
) -> Float[Array, "B *L V"]:
  """Scores whose arg max is the token: the log-probabilities at temperature 0, a draw from `filtered` above it.

  A draw depends on its row's key and on its `place` in the row (None: 0, 1, ...), whatever else is drawn beside it.
  """

  def sample() -> Float[Array, "B *L V"]:
    *shape, size = log_probs.shape
    count = jnp.arange(math.prod(shape[1:])).reshape(1, *shape[1:])
    where = jnp.broadcast_to(count, shape) if place is None else place
    noise = lambda key, where: jax.random.gumbel(jax.random.fold_in(key, where), (size,))
    of_row = jax.vmap(noise, in_axes=(None, 0))
    drawn = jax.vmap(of_row)(row_keys, where.reshape(len(row_keys), -1))
    return filtered(log_probs, sampling) + drawn.reshape(log_probs.shape)

  return jax.lax.cond(sampling.temperature > 0, sample, lambda: log_probs)


def most_likely(scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
  """`argmax` over a vocabulary, the first of equals, in a quarter of its time on a CPU.

  XLA's argmax carries value and place from column to column. Here only the best value of each tile is looked for, which
  runs in vector registers, and the place in one tile.
  """
  size = scores.shape[-1]
  tile = next((width for width in _TILES if size % width == 0), size)
  tiles = scores.reshape(*scores.shape[:-1], size // tile, tile)
  best = jnp.argmax(tiles.max(axis=-1), axis=-1, keepdims=True)
  inside = jnp.take_along_axis(tiles, best[..., None], axis=-2)[..., 0, :]
  return (best[..., 0] * tile + jnp.argmax(inside, axis=-1)).astype(jnp.int32)


def draw_tokens(
  logits: Float[Array, "B L V"],
  banned: Bool[Array, "V"],
  sampling: Sampling,
  row_keys: Key[Array, "B"],
  place: Int[Array, "B L"] | None = None,
) -> Int[Array, "B L"]:
  """The tokens of highest `token_scores`, without writing scores of the whole vocabulary down when nothing is drawn."""

  def sample() -> Int[Array, "B L"]:
    return most_likely(token_scores(log_probabilities(logits, banned), sampling, row_keys, place))

  return jax.lax.cond(sampling.temperature > 0, sample, lambda: most_likely(allowed_logits(logits, banned)))
