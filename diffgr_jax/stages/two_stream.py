"""Noisy blocks read beside the clean row that they are blocks of, in one pass over two streams.

    clean stream x_0   p p p p | p r r r | r a a E
    noisy stream x_t             p M r M | p M M M | r M M E      blocks 1, 1 and 2: a block may stand there twice,
    at                           4 5 6 7   4 5 6 7   8 9 ...      in streams of their own (1, 2 and 1), which do not
    stream                       1 1 1 1   2 2 2 2   1 1 ...      see one another
    sees                         itself and every CLEAN block before it (models/attention.py, two_stream)

The hidden states are those of cached block decoding on the same canvas (contract 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.models.attention import Layout
from diffgr_jax.models.transformer import Transformer
from diffgr_jax.stages.sft import gather


class Clean(NamedTuple):
  """Rows of packed documents, each of which begins at a multiple of the block size."""

  tokens: Int[Array, "B T"]
  position: Int[Array, "B T"]
  segment: Int[Array, "B T"]


def read_noisy(
  model: Transformer,
  clean: Clean,
  x_t: Int[Array, "B N"],
  at: Int[Array, "B N"],
  stream: Int[Array, "B N"],
  block_size: int,
  whole_stream: bool = False,
) -> Float[Array, "B N D"]:
  """The hidden state that each position of the noisy blocks is predicted from, by the model's alignment.

  Args:
    model: of the weights.
    clean: the rows.
    x_t: tokens of whole noisy blocks.
    at: the slot of the row that each of them stands for; -1: none.
    stream: from 1; copies of one block have streams of their own.
    block_size: tokens a block.
    whole_stream: lays the blocks into a stream as long as the row, which Splash asks for; only one copy of each then.
  """
  length = clean.tokens.shape[1]
  if whole_stream:
    outside = jnp.where(at >= 0, at, length)  # dropped
    put = lambda row, at, new: row.at[at].set(new, mode="drop")
    noisy, noisy_at = jax.vmap(put)(clean.tokens, outside, x_t), at
    position, segment, stream = clean.position, clean.segment, jnp.ones_like(clean.segment)
  else:
    noisy, noisy_at = x_t, jnp.broadcast_to(jnp.arange(at.shape[1])[None], at.shape)
    position, segment = gather(clean.position, at), jnp.where(at >= 0, gather(clean.segment, at), 0)
  join = lambda noisy, clean: jnp.concatenate([noisy, clean], axis=1)
  layout = Layout(
    join(position, clean.position), join(segment, clean.segment), join(stream, jnp.zeros_like(clean.segment))
  )
  tokens = join(noisy, clean.tokens)
  known: dict[str, Any] = dict(aligned=True) if whole_stream else dict(noisy=at.shape[1])
  hidden = model(tokens, layout, pattern="two_stream", block_size=block_size, **known)
  of_noisy, of_clean = hidden[:, :-length], hidden[:, -length:]
  if model.config.alignment == "same_position":
    return gather(of_noisy, noisy_at)
  begins_block = (jnp.arange(at.shape[1]) % block_size == 0)[None, :, None]
  return jnp.where(begins_block, gather(of_clean, at - 1), gather(of_noisy, noisy_at - 1))
