"""Block decoding: the passes of the model over a block, and what is committed after one."""

from dataclasses import replace
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.decoding.block_reading import read_block, read_open
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
from diffgr_jax.decoding.denoiser import log_probabilities, probability_of
from diffgr_jax.decoding.policies import Budget, Stats, commit_together, rank_positions
from diffgr_jax.decoding.remasking import standing_confidence
from diffgr_jax.decoding.sampling import draw_tokens
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
) -> tuple[BlockState, KVCache, Float[Array, "B L D"] | None]:
  """Commits what is finished (the last block; at first, the context), and begins the next block in the same pass.

  Returns:
    State, cache, and hidden states that predict the next block, if the passes are fused (`is_fused`).
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
    return state, cache, predicting(config, hidden[:, done:], state, options)
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
) -> tuple[Float[Array, "B L D"], KVCache]:
  """Hidden states that predict the current block.

  Its slots of the cache are written, and will be again until it is committed.
  """
  offset = context + state.block * options.block_size
  hidden, cache = extend(config, params, state, cache, offset, options.block_size, options)
  return predicting(config, hidden, state, options), cache


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


def predicting(
  config: TransformerConfig, hidden: Float[Array, "B L D"], state: BlockState, options: BlockOptions
) -> Float[Array, "B L D"]:
  """The hidden states whose logits predict each position of the block, whatever the alignment."""
  if config.alignment == "same_position":
    return hidden
  before = state.clean[:, None].astype(hidden.dtype) if options.shifted_first == "clean" else hidden[:, :1]
  return jnp.concatenate([before, hidden[:, :-1]], axis=1)


def commit(
  params: DecodingParams,
  state: BlockState,
  hidden: Float[Array, "B L D"],
  setting: Setting,
  *,
  config: TransformerConfig,
  options: BlockOptions,
  context: int,
  read_all: bool = False,
) -> tuple[BlockState, Stats]:
  """Lets the policy choose, writes its choice, and reopens what has become doubtful.

  Rows without an open mask stay as they are. `read_all` reads the positions too that nothing can be written to.

  Returns:
    The next state, and the statistics of the block that the policy saw.
  """
  masked = open_masks(state, options, context)
  here = jnp.ones(masked.shape, bool)
  if options.sub_block:
    place = jnp.arange(options.block_size)[None] // options.sub_block
    here = place == current_sub_block(masked, options)[:, None]
  candidates, offset = masked & here, context + state.block * options.block_size
  place_keys, token_keys = pass_keys(state)
  how = token_keys, setting, options
  old = span(state.canvas, offset, options.block_size)
  if read_all or options.remask:
    reading = read_block(config, params, hidden, old, *how)
  else:
    reading = read_open(config, params, hidden, old, candidates, *how)

  count = candidates.sum(axis=-1)
  total = jnp.where(state.block_step == 0, masked.sum(axis=-1), state.block_masks)
  step = jnp.broadcast_to(state.block_step, count.shape)
  standing, reopenable = _doubtful(reading.standing, state, offset, here & ~masked, options)
  budget = Budget(
    quota=options.schedule.quota(count, total, step, setting.steps),
    floor=jnp.where(step >= setting.steps - 1, count, 0),
    spare=jnp.minimum(options.remask, reopenable.sum(axis=-1)),
  )
  choice = reading.stats, reading.tokens, reading.confidence
  commits = commit_together(*choice, candidates, place_keys, budget, options.policy)

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
  return end_rows(state, setting, options), reading.stats


def _doubtful(
  now: Float[Array, "B L"], state: BlockState, offset: Int[Array, ""], filled: Bool[Array, "B L"], options: BlockOptions
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
  """How sure each token of the block still is, and which ones may go back to MASK: none that was given."""
  step_map, committed, reopened = (
    span(x, offset, options.block_size) for x in (state.step_map, state.confidence, state.reopened)
  )
  standing, doubtful = standing_confidence(now, committed, options.remask_by)
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
  confidence = probability_of(log_probs, token)
  empty = open_masks(state, options, context)[:, :1] & (state.first < offset)[:, None]
  put = functools.partial(put_span, offset=offset, where=empty)
  state = replace(
    state,
    canvas=put(state.canvas, token),
    step_map=put(state.step_map, state.forwards[:, None]),
    confidence=put(state.confidence, confidence),
  )
  return end_rows(state, setting, options)
