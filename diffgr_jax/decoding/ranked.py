"""Ranked documents, as every decoder that names several of them returns them; and what they cost.

document   7   2   -1      best first; -1: there was no third one
score    -.4  -3  -inf
forwards   4               forward passes that had to follow one another
canvases  25               canvases that the model was asked about: what the answer costs on a busy machine
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@struct.dataclass
class Ranked:
  """The documents that each row found, best first."""

  document: Int[Array, "B k"]  # -1: fewer than k were found
  score: Float[Array, "B k"]  # in nats; -inf where no document stands
  forwards: Int[Array, "B"]
  canvases: Int[Array, "B"]


def order_found(
  document: Int[Array, "B C"], score: Float[Array, "B C"]
) -> tuple[Int[Array, "B C"], Float[Array, "B C"]]:
  """Orders documents by falling score; those that stand twice count once.

  Args:
    document: -1 where none was found.
    score: equal for equal documents.

  Returns:
    Documents and scores, best first; behind them -1 and -inf.
  """
  place = jnp.arange(document.shape[1])
  earlier = (place[None, :] < place[:, None])[None]
  repeated = ((document[:, :, None] == document[:, None, :]) & earlier).any(axis=-1)
  found = (document >= 0) & ~repeated
  # A document of probability 0 is found all the same: it stands before the empty places.
  keys = jnp.where(found, jnp.maximum(score, jnp.finfo(score.dtype).min), -jnp.inf)
  _, order = jax.lax.top_k(keys, document.shape[1])
  pick = lambda x: jnp.take_along_axis(x, order, axis=-1)
  return jnp.where(pick(found), pick(document), -1), jnp.where(pick(found), pick(score), -jnp.inf)
