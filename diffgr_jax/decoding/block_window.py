"""Block decoding: the approximate window, a pass over the current sub-block against the block's stale keys.

block       7  9 | e  M | M  M        sub-blocks of 2; the current one is the second
keys        .  .   x  x   .  .        . kept from the last pass over the whole block: stale   x recomputed
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffgr_jax.decoding.block_passes import extend, predicting
from diffgr_jax.decoding.block_state import BlockOptions, BlockState, current_sub_block, open_masks, span, span_layout
from diffgr_jax.models import inference
from diffgr_jax.models.cache import KVCache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import DecodingParams


def denoise_window(
  config: TransformerConfig,
  params: DecodingParams,
  state: BlockState,
  cache: KVCache,
  options: BlockOptions,
  context: int,
) -> tuple[Float[Array, "B L D"], KVCache]:
  """Hidden states that predict the current sub-block (Fast-dLLM v2), of a pass over it alone where the keys are there.

  A row computes its whole block, and keeps the keys, at the first pass of a block and while the first position of its
  sub-block is masked. The shift then stays inside the sub-block, whose first position reads its own output.
  """
  size, sub = options.block_size, options.sub_block
  offset = context + state.block * size
  masked = open_masks(state, options, context)
  active, begin = masked.any(axis=-1), current_sub_block(masked, options) * sub
  begins_masked = jnp.take_along_axis(masked, begin[:, None], axis=-1)[:, 0]
  whole = active & ((state.block_step == 0) | begins_masked)
  shape = (*masked.shape, config.d_model)

  def compute_block(cache: KVCache) -> tuple[Float[Array, "B L D"], KVCache]:
    writes = jnp.broadcast_to(whole[:, None], masked.shape)
    hidden, cache = extend(config, params, state, cache, offset, size, options, writes)
    return predicting(config, hidden, state, options), cache

  def compute_window(cache: KVCache) -> Float[Array, "B L D"]:
    row = jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, sub, axis=0))
    tokens, layout = span(state.canvas, offset, size), span_layout(state, offset, size)
    own, at = jax.tree.map(lambda x: row(x, begin), layout), offset + begin
    how: dict[str, Any] = dict(pattern="block_causal", block_size=size)
    hidden, _ = inference.extend(config, params, row(tokens, begin), own, cache, at, **how)  # the stale keys stay
    hidden = predicting(config, hidden, state, options)
    place = jax.vmap(lambda zeros, new, start: jax.lax.dynamic_update_slice_in_dim(zeros, new, start, axis=0))
    return place(jnp.zeros(shape, hidden.dtype), hidden, begin)

  nothing = jnp.zeros(shape, config.compute_dtype)
  of_block, cache = jax.lax.cond(whole.any(), compute_block, lambda cache: (nothing, cache), cache)
  of_window = jax.lax.cond((active & ~whole).any(), compute_window, lambda cache: nothing, cache)
  return jnp.where(whole[:, None, None], of_block, of_window), cache
