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
from diffgr_jax.decoding.sampling import filtered, token_scores
from diffgr_jax.models.attention import Layout, attention_mask
from diffgr_jax.models.cache import KeyValues, KVCache, write
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, Transformer, bind


def open_block(
  params: Params,
  state: BlockState,
  cache: KVCache,
  setting: Setting,
  *,
  config: TransformerConfig,
  options: BlockOptions,
  context: int,
  first: bool,
) -> tuple[BlockState, KVCache, Float[Array, "B L V"], Bool[Array, ""]]:
  """Commits what is finished (the last block; at first, the context), and begins the next block in the same pass.

  Returns:
    State, cache, the next block's logits, and whether they were computed: a first token that the committing pass
    itself writes (Fast-dLLM v2) has to be there before the block is read.
  """
  size, model = options.block_size, bind(config, params)
  done = context if first else size
  offset = jnp.int32(0) if first else context + state.block * size
  fused = not (config.alignment == "shifted" and options.shifted_first == "noisy")
  state = replace(state, block=state.block + 1, block_step=jnp.int32(0))
  hidden = None
  if done or fused:
    width = done + size * fused
    tokens, layout = span(state.canvas, offset, width), span_layout(state, offset, width)
    hidden, fresh = extend(model, tokens, layout, None if first else cache, offset, options)
    fresh = jax.tree.map(lambda x: x[:, :, :done], fresh)
    cache = write(cache, fresh, jax.tree.map(lambda x: x[:, :done], layout), offset)
    if done:
      state = replace(state, clean=hidden[:, done - 1].astype(jnp.float32))
  if fused:
    assert hidden is not None
    return state, cache, block_logits(model, hidden[:, done:], state, options), jnp.bool_(True)
  if done:
    state = _write_first_token(model, state, setting, options, context)
  return state, cache, jnp.zeros((len(state.canvas), size, config.vocab_size), jnp.float32), jnp.bool_(False)


def denoise_block(
  model: Transformer, state: BlockState, cache: KVCache, options: BlockOptions, context: int
) -> Float[Array, "B L V"]:
  """Logits of the current block, which is not committed: the cache is only read."""
  offset = context + state.block * options.block_size
  tokens, layout = span(state.canvas, offset, options.block_size), span_layout(state, offset, options.block_size)
  hidden, _ = extend(model, tokens, layout, cache, offset, options)
  return block_logits(model, hidden, state, options)


def extend(
  model: Transformer, tokens: Int[Array, "B T"], layout: Layout, cache: KVCache | None, offset, options: BlockOptions
) -> tuple[Float[Array, "B T D"], KeyValues]:
  common: dict[str, Any] = dict(pattern="block_causal", block_size=options.block_size)
  if cache is None or options.window == "exact":
    return model.extend(tokens, layout, cache, **common)
  visible = attention_mask("block_causal", layout, cache.layout, options.block_size)
  committed = jnp.arange(visible.shape[-1]) < offset  # behind them: stale keys of the block itself
  return model.extend(tokens, layout, cache, past_mask=visible & committed[None, None], **common)


def block_logits(
  model: Transformer, hidden: Float[Array, "B L D"], state: BlockState, options: BlockOptions
) -> Float[Array, "B L V"]:
  """Logits that predict each position of the block, whatever the alignment."""
  if model.config.alignment == "shifted":
    before = state.clean[:, None].astype(hidden.dtype) if options.shifted_first == "clean" else hidden[:, :1]
    hidden = jnp.concatenate([before, hidden[:, :-1]], axis=1)
  return model.logits(hidden)


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
  scores = token_scores(log_probs, setting.sampling, token_keys)
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
  commits, stats = commit_together(judged, scores, candidates, place_keys, budget, options.policy)

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
  model: Transformer, state: BlockState, setting: Setting, options: BlockOptions, context: int
) -> BlockState:
  """Fast-dLLM v2: the last logit of the committing pass gives the next block its first token, where it has none."""
  offset = context + state.block * options.block_size
  log_probs = log_probabilities(model.logits(state.clean[:, None]), setting.banned)
  token_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(pass_keys(state)[1])
  token = jnp.argmax(token_scores(log_probs, setting.sampling, token_keys), axis=-1)
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
