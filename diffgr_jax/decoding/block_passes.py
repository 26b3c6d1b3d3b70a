"""Block decoding: the passes of the model over a block, and what is committed after one."""

from dataclasses import replace
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.decoding.block_state import (
  BlockOptions,
  BlockState,
  Setting,
  current_sub_block,
  end_rows,
  open_masks,
  pass_keys,
  put_span,
  span,
  span_layout,
)
from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.policies import Budget, Stats, commit_together, rank_positions
from diffgr_jax.decoding.remasking import standing_confidence
from diffgr_jax.decoding.sampling import draw_tokens, filtered
from diffgr_jax.models import inference
from diffgr_jax.models.cache import KVCache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import DecodingParams


def open_block(
  params: DecodingParams,
  state: BlockState,
  cache: KVCache,
  setting: Setting,
  *,
  config: TransformerConfig,
  options: BlockOptions,
  context: int,
  first: bool,
) -> tuple[BlockState, KVCache, Float[Array, "B L V"] | None]:
  """Commits what is finished (the last block; at first, the context), and begins the next block in the same pass.

  Returns:
    State, cache, and the next block's logits, if the passes are fused (`is_fused`).
  """
  size = options.block_size
  done = context if first else size
  offset = jnp.int32(0) if first else context + state.block * size
  state, hidden = replace(state, block=state.block + 1, block_step=jnp.int32(0)), None
  width = done + size * is_fused(config, options)
  if width:
    hidden, cache = extend(config, params, state, cache, offset, width, options)
  if done:
    assert hidden is not None
    state = replace(state, clean=hidden[:, done - 1].astype(jnp.float32))
  if width > done:
    assert hidden is not None
    return state, cache, block_logits(config, params, hidden[:, done:], state, options)
  if done:
    state = _write_first_token(config, params, state, setting, options, context)
  return state, cache, None


def is_fused(config: TransformerConfig, options: BlockOptions) -> bool:
  """Whether a block is committed in the pass that reads the next one for the first time.

  Not where the committing pass itself writes the next block's first token (Fast-dLLM v2): it has to be there first.
  """
  return not (config.alignment == "shifted" and options.shifted_first == "noisy")


def denoise_block(
  config: TransformerConfig,
  params: DecodingParams,
  state: BlockState,
  cache: KVCache,
  options: BlockOptions,
  context: int,
) -> tuple[Float[Array, "B L V"], KVCache]:
  """Logits of the current block. Its slots of the cache are written, and will be again until it is committed."""
  offset = context + state.block * options.block_size
  hidden, cache = extend(config, params, state, cache, offset, options.block_size, options)
  return block_logits(config, params, hidden, state, options), cache


def extend(
  config: TransformerConfig,
  params: DecodingParams,
  state: BlockState,
  cache: KVCache,
  offset: Int[Array, ""],
  width: int,
  options: BlockOptions,
  writes: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """A pass over `width` slots from `offset` on."""
  tokens, layout = span(state.canvas, offset, width), span_layout(state, offset, width)
  how: dict[str, Any] = dict(pattern="block_causal", block_size=options.block_size, writes=writes)
  return inference.extend(config, params, tokens, layout, cache, offset, **how)


def block_logits(
  config: TransformerConfig,
  params: DecodingParams,
  hidden: Float[Array, "B L D"],
  state: BlockState,
  options: BlockOptions,
) -> Float[Array, "B L V"]:
  """Logits that predict each position of the block, whatever the alignment."""
  if config.alignment == "shifted":
    before = state.clean[:, None].astype(hidden.dtype) if options.shifted_first == "clean" else hidden[:, :1]
    hidden = jnp.concatenate([before, hidden[:, :-1]], axis=1)
  return inference.logits(config, params, hidden)


def commit(
  state: BlockState, logits: Float[Array, "B L V"], setting: Setting, options: BlockOptions, context: int
) -> tuple[BlockState, Stats]:
  """Lets the policy choose, writes its choice, and reopens what has become doubtful.

  Rows without an open mask stay as they are.

  Returns:
    The next state, and the statistics of the block that the policy saw.
  """
  masked = open_masks(state, options, context)
  here = jnp.ones(masked.shape, bool)
  if options.sub_block:
    place = jnp.arange(options.block_size)[None] // options.sub_block
    here = place == current_sub_block(masked, options)[:, None]
  candidates = masked & here
  log_probs = log_probabilities(logits, setting.banned)
  place_keys, token_keys = pass_keys(state)
  tokens = draw_tokens(logits, setting.banned, setting.sampling, token_keys)
  judged = filtered(log_probs, setting.sampling) if options.judge == "filtered" else log_probs

  count = candidates.sum(axis=-1)
  total = jnp.where(state.block_step == 0, masked.sum(axis=-1), state.block_masks)
  step = jnp.broadcast_to(state.block_step, count.shape)
  offset = context + state.block * options.block_size
  old = jax.tree.map(
    lambda x: span(x, offset, options.block_size), (state.canvas, state.step_map, state.confidence, state.reopened)
  )
  standing, reopenable = _doubtful(judged, old, here & ~masked, options)
  budget = Budget(
    quota=options.schedule.quota(count, total, step, setting.steps),
    floor=jnp.where(step >= setting.steps - 1, count, 0),
    spare=jnp.minimum(options.remask, reopenable.sum(axis=-1)),
  )
  commits, stats = commit_together(judged, tokens, candidates, place_keys, budget, options.policy)

  put = functools.partial(put_span, offset=offset, where=commits.chosen)
  state = replace(
    state,
    canvas=put(state.canvas, commits.tokens),
    step_map=put(state.step_map, jnp.broadcast_to(state.forwards[:, None], masked.shape)),
    confidence=put(state.confidence, commits.confidence),
    forwards=state.forwards + masked.any(axis=-1),
    block_step=state.block_step + 1,
    block_masks=total,
  )
  if options.remask:
    weakest_first = rank_positions(-standing, among=reopenable)
    back = reopenable & (weakest_first < commits.extra[:, None])
    state = _reopen(state, back, offset, options.mask_id)
  return end_rows(state, setting, options), stats


def _doubtful(
  log_probs: Float[Array, "B L V"], block: tuple[Array, ...], filled: Bool[Array, "B L"], options: BlockOptions
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
  """How sure each token of the block still is, and which ones may go back to MASK: none that was given.

  `block` is the block's canvas, step map, confidence and count of reopenings.
  """
  tokens, step_map, confidence, reopened = block
  standing, doubtful = standing_confidence(log_probs, tokens, confidence, options.remask_by)
  return standing, filled & (step_map >= 0) & (reopened < options.max_reopen) & doubtful


def _reopen(state: BlockState, back: Bool[Array, "B L"], offset: Int[Array, ""], mask_id: int) -> BlockState:
  """Takes positions of the block back to MASK."""
  put = functools.partial(put_span, offset=offset, where=back)
  count = span(state.reopened, offset, back.shape[1]) + 1
  return replace(
    state,
    canvas=put(state.canvas, jnp.full(back.shape, mask_id)),
    step_map=put(state.step_map, jnp.full(back.shape, -1)),
    confidence=put(state.confidence, jnp.zeros(back.shape)),
    reopened=put(state.reopened, count),
  )


def _write_first_token(
  config: TransformerConfig,
  params: DecodingParams,
  state: BlockState,
  setting: Setting,
  options: BlockOptions,
  context: int,
) -> BlockState:
  """Fast-dLLM v2: the last logit of the committing pass gives the next block its first token, where it has none."""
  offset = context + state.block * options.block_size
  logits = inference.logits(config, params, state.clean[:, None])
  log_probs = log_probabilities(logits, setting.banned)
  token_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(pass_keys(state)[1])
  token = draw_tokens(logits, setting.banned, setting.sampling, token_keys)
  confidence = jnp.exp(jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0])
  empty = open_masks(state, options, context)[:, :1] & (state.first < offset)[:, None]
  put = functools.partial(put_span, offset=offset, where=empty)
  state = replace(
    state,
    canvas=put(state.canvas, token),
    step_map=put(state.step_map, state.forwards[:, None]),
    confidence=put(state.confidence, confidence),
  )
  return end_rows(state, setting, options)
