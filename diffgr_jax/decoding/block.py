"""Block diffusion with an exact cache: blocks go left to right, positions inside a block in any order.

With block size 4 and a prompt of 6 tokens (two of them are left over after its whole block):

    slots      a b c d | e f M M | M M M M      a..d context, to be cached; e f given: fixed positions of block one
    forward 1  -------   -------                context and first block in one pass: the context's keys are kept
    forward 2            e f 7 M                the block against the cache, which it leaves as it is
    forward 3            e f 7 9 | M M M M      the finished block is committed to the cache in the pass that also
                         -------   -------      denoises the next block for the first time: committing costs no pass

The model is block-causal: a block sees itself, masks and all, and every CLEAN block before it. The cache is exact: the
logits are those of an uncached pass, and of the x_t half of a two-stream training pass, on the same canvas (BD3-LM,
arXiv 2503.09573; SDAR, arXiv 2510.06303). Rows are left-padded by whole blocks, so blocks begin at absolute position 0
of every row and at the same slots in all rows; a row that finishes its block early waits, unchanged, for the others.

Alignment is the model's (`config.alignment`). `shifted` reads the first position of a block from the clean token before
it, which the committing pass yields; at block size 1 that is autoregressive decoding. `shifted_first="noisy"` is how
Fast-dLLM v2 (arXiv 2509.26328) decodes: the committing pass writes the first token of the next block, which is then
never read. `window="sub_block"` is its approximate cache: inside a block only the current sub-block is recomputed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.policies import Budget, Confidence, Policy, commit_together
from diffgr_jax.decoding.sampling import Sampling, filtered, make_sampling, token_scores
from diffgr_jax.decoding.schedules import EVEN, Schedule
from diffgr_jax.decoding.stopping import after_stop, first_stop, stop_ends, stop_table
from diffgr_jax.models.attention import Layout, attention_mask
from diffgr_jax.models.cache import KeyValues, KVCache, init_cache, write
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, Transformer, bind

_CHOICES = {
  "shifted_first": ("clean", "noisy"),
  "window": ("exact", "sub_block"),
  "stop_check": ("step", "block"),
  "judge": ("model", "filtered"),
}


@dataclass(frozen=True)
class BlockOptions:
  """What is fixed when the decoder is compiled."""

  block_size: int
  policy: Policy
  mask_id: int
  pad_id: int = 0  # fills an answer behind its stop
  schedule: Schedule = EVEN
  sub_block: int = 0  # commit only inside the leftmost sub-block of this length that has masks; 0: the whole block
  shifted_first: str = "clean"  # clean | noisy: where a shifted model reads the first position of a block
  window: str = "exact"  # exact | sub_block: approximate, recomputes only the current sub-block against stale keys
  stop_check: str = "step"  # step: a row ends as soon as nothing before its stop is open | block: when a block is done
  judge: str = "model"  # model: policies see the model's distribution | filtered: the one that tokens are drawn from

  def __post_init__(self):
    for field, allowed in _CHOICES.items():
      if getattr(self, field) not in allowed:
        raise ValueError(f"BlockOptions.{field} is one of {', '.join(allowed)}, not {getattr(self, field)!r}")
    if self.block_size < 1:
      raise ValueError(f"BlockOptions.block_size is {self.block_size}; it must be 1 or more")
    if self.sub_block < 0 or (self.sub_block and self.block_size % self.sub_block):
      raise ValueError(f"BlockOptions.sub_block is {self.sub_block}; it must divide block_size {self.block_size}")
    if self.window == "sub_block" and not self.sub_block:
      raise ValueError("BlockOptions.window 'sub_block' needs BlockOptions.sub_block")


@struct.dataclass
class BlockState:
  """Where decoding stands. T slots: context, then the blocks."""

  canvas: Int[Array, "B T"]
  step_map: Int[Array, "B T"]  # forward pass of the row that committed a position; -1: given, or not yet
  confidence: Float[Array, "B T"]  # probability of the token when it was committed; given: 1, not yet: 0
  forwards: Int[Array, "B"]  # denoising passes that each row took part in
  ended: Bool[Array, "B"]  # frozen: stopped, or nothing left to fill
  block: Int[Array, ""]  # which block is being decoded; -1: none yet
  block_step: Int[Array, ""]  # passes over it so far
  block_masks: Int[Array, "B"]  # masks it began with
  clean: Float[Array, "B D"]  # hidden state of the last token before the block
  first: Int[Array, "B"]  # slot of position 0 (before it: padding)
  start: Int[Array, "B"]  # slot of the first generated token
  limit: Int[Array, "B"]  # slot behind the last one asked for
  row_keys: Key[Array, "B"]


@struct.dataclass
class Setting:
  """What a pass reads beside the state; all of it traced."""

  banned: Bool[Array, "V"]
  stops: Int[Array, "K M"]
  steps: Int[Array, ""]
  sampling: Sampling


# --- public ---


def decode_blocks(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  options: BlockOptions,
  max_new_tokens: int,
  steps: int | None = None,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  context: int | None = None,
  blocks: int | None = None,
) -> BlockState:
  """Decodes block after block until every row has stopped or is full, without leaving the device.

  Args:
    params: the model's parameters.
    prompt: left-padded tokens.
    valid: False on the padding.
    row_seeds: one seed a row; a row's draws depend on it alone.
    banned: tokens that are never produced; MASK is one of them in any case.
    config: of the model; its `alignment` is honoured, its `pattern` is block_causal or causal weights converted.
    options: the rest of what is compiled in.
    max_new_tokens: how many tokens each row generates at most.
    steps: passes a block may take; at the last one everything left is committed. None: as many as positions.
    sampling: temperature, top-k, top-p; None: the most likely token.
    stops: sequences of token ids that end a row; EOS is one of length 1.
    context: slots for whole prompt blocks; None: what the longest prompt needs. Calls that agree in batch, `context`
      and `blocks` share a compiled program.
    blocks: blocks after them; None: what the longest row needs.

  Returns:
    The last state; `answers` reads the generated tokens off it.

  Raises:
    ValueError: shapes that do not fit, a prompt too long for its bucket, or an empty prompt for a shifted model.
  """
  state, setting, context = _prepare(
    prompt, valid, row_seeds, banned, config, options, max_new_tokens, steps, sampling, stops, context, blocks
  )
  return _decode_loop(params, state, setting, config=config, options=options, context=context)


def decode_blocks_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  options: BlockOptions,
  max_new_tokens: int,
  steps: int | None = None,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  context: int | None = None,
  blocks: int | None = None,
) -> Iterator[BlockState]:
  """The same decoder, one Python step at a time, for notebooks, streaming and traces.

  Takes what `decode_blocks` takes and commits the same tokens in the same passes.

  Yields:
    The state before the first pass, then after every pass, and after the tokens that committing passes write.
  """
  state, setting, context = _prepare(
    prompt, valid, row_seeds, banned, config, options, max_new_tokens, steps, sampling, stops, context, blocks
  )
  # Passes do not ask the policy: programs are shared by all that read the canvas alike.
  reading = replace(options, policy=Confidence(), schedule=EVEN, stop_check="step", judge="model")
  static = dict(config=config, options=reading, context=context)
  cache = init_cache(config, *state.canvas.shape)
  yield state
  while bool(_more_blocks(state, options, context)):
    state, cache, logits, ready = _open_step(params, state, cache, setting, first=int(state.block) < 0, **static)
    if not ready:
      yield state  # with the first token that the committing pass wrote
    while bool(_open_masks(state, options, context).any()):
      if not ready:
        logits, cache = _denoise_step(params, state, cache, **static)
      state, ready = _commit_step(state, logits, setting, options, context), False
      yield state
    state = _close_block(state, setting, options)


def answers(
  state: BlockState, max_new_tokens: int, stops: Sequence[Sequence[int]] = (), *, mask_id: int, pad_id: int
) -> tuple[Int[Array, "B G"], Int[Array, "B"]]:
  """The generated tokens of each row, up to and including its first stop, then PAD; and how many they are."""
  place = state.start[:, None] + jnp.arange(max_new_tokens)[None]
  inside = (place < state.limit[:, None]) & (place < state.canvas.shape[1])
  tokens = jnp.take_along_axis(state.canvas, jnp.minimum(place, state.canvas.shape[1] - 1), axis=-1)
  behind = after_stop(stop_ends(tokens, inside, stop_table(stops)))
  kept = inside & ~behind & (jnp.cumsum(tokens == mask_id, axis=-1) == 0)
  return jnp.where(kept, tokens, pad_id), kept.sum(axis=-1)


# --- the loop ---


@struct.dataclass
class _Carry:
  """What the loop hands on: `logits` of the current block, if a pass has computed them since the last commitment."""

  state: BlockState
  cache: KVCache
  logits: Float[Array, "B L V"]
  ready: Bool[Array, ""]


@functools.partial(jax.jit, static_argnames=("config", "options", "context"))
def _decode_loop(params, state, setting, *, config, options, context) -> BlockState:
  static = dict(config=config, options=options, context=context)

  def step(carry: _Carry) -> _Carry:
    compute = lambda: _denoise_pass(params, carry.state, carry.cache, **static)
    if options.window == "exact":  # the cache need not pass through the conditional
      logits, cache = jax.lax.cond(carry.ready, lambda: carry.logits, lambda: compute()[0]), carry.cache
    else:
      logits, cache = jax.lax.cond(carry.ready, lambda: (carry.logits, carry.cache), compute)
    return _Carry(_commit(carry.state, logits, setting, options, context), cache, logits, jnp.bool_(False))

  def finish_block(carry: _Carry) -> _Carry:
    carry = jax.lax.while_loop(lambda c: _open_masks(c.state, options, context).any(), step, carry)
    carry = replace(carry, state=_close_block(carry.state, setting, options))
    return jax.lax.cond(_more_blocks(carry.state, options, context), open_next, lambda carry: carry, carry)

  def open_next(carry: _Carry) -> _Carry:
    return _Carry(*_open_block(params, carry.state, carry.cache, setting, first=False, **static))

  def unfinished(carry: _Carry) -> Bool[Array, ""]:
    return _open_masks(carry.state, options, context).any() | _more_blocks(carry.state, options, context)

  cache = init_cache(config, *state.canvas.shape)
  carry = _Carry(*_open_block(params, state, cache, setting, first=True, **static))
  return jax.lax.while_loop(unfinished, finish_block, carry).state


def _more_blocks(state: BlockState, options: BlockOptions, context: int) -> Bool[Array, ""]:
  blocks = (state.canvas.shape[1] - context) // options.block_size
  return ~state.ended.all() & (state.block + 1 < blocks)


def _open_masks(state: BlockState, options: BlockOptions, context: int) -> Bool[Array, "B L"]:
  """The positions of the current block that are still to be filled."""
  tokens = _span(state.canvas, context + state.block * options.block_size, options.block_size)
  return (tokens == options.mask_id) & ~state.ended[:, None]


def _close_block(state: BlockState, setting: Setting, options: BlockOptions) -> BlockState:
  """Ends the rows that hold a stop, once their block is done."""
  return replace(state, ended=state.ended | _stopped(state, setting, options))


# --- passes ---


def _open_block(
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
    tokens, layout = _span(state.canvas, offset, width), _layout(state, offset, width)
    hidden, fresh = _extend(model, tokens, layout, None if first else cache, offset, options)
    fresh = jax.tree.map(lambda x: x[:, :, :done], fresh)
    cache = write(cache, fresh, jax.tree.map(lambda x: x[:, :done], layout), offset)
    if done:
      state = replace(state, clean=hidden[:, done - 1].astype(jnp.float32))
  if fused:
    assert hidden is not None
    return state, cache, _block_logits(model, hidden[:, done:], state, options), jnp.bool_(True)
  if done:
    state = _write_first_token(model, state, setting, options, context)
  return state, cache, jnp.zeros((len(state.canvas), size, config.vocab_size), jnp.float32), jnp.bool_(False)


def _denoise_pass(
  params: Params,
  state: BlockState,
  cache: KVCache,
  *,
  config: TransformerConfig,
  options: BlockOptions,
  context: int,
) -> tuple[Float[Array, "B L V"], KVCache]:
  """Logits of the current block, which is not committed; an exact cache stays as it is."""
  model, offset = bind(config, params), context + state.block * options.block_size
  if options.window == "sub_block":
    return _window_logits(model, state, cache, options, context)
  tokens, layout = _span(state.canvas, offset, options.block_size), _layout(state, offset, options.block_size)
  hidden, _ = _extend(model, tokens, layout, cache, offset, options)
  return _block_logits(model, hidden, state, options), cache


def _extend(
  model: Transformer, tokens: Int[Array, "B T"], layout: Layout, cache: KVCache | None, offset, options: BlockOptions
) -> tuple[Float[Array, "B T D"], KeyValues]:
  common: dict[str, Any] = dict(pattern="block_causal", block_size=options.block_size)
  if cache is None or options.window == "exact":
    return model.extend(tokens, layout, cache, **common)
  visible = attention_mask("block_causal", layout, cache.layout, options.block_size)
  committed = jnp.arange(visible.shape[-1]) < offset  # behind them: stale keys of the block itself
  return model.extend(tokens, layout, cache, past_mask=visible & committed[None, None], **common)


def _block_logits(
  model: Transformer, hidden: Float[Array, "B L D"], state: BlockState, options: BlockOptions
) -> Float[Array, "B L V"]:
  """Logits that predict each position of the block, whatever the alignment."""
  if model.config.alignment == "shifted":
    before = state.clean[:, None].astype(hidden.dtype) if options.shifted_first == "clean" else hidden[:, :1]
    hidden = jnp.concatenate([before, hidden[:, :-1]], axis=1)
  return model.logits(hidden)


def _commit(
  state: BlockState, logits: Float[Array, "B L V"], setting: Setting, options: BlockOptions, context: int
) -> BlockState:
  """Lets the policy choose, and writes its choice. Rows without an open mask stay as they are."""
  masked = _open_masks(state, options, context)
  candidates = masked
  if options.sub_block:
    place = jnp.arange(options.block_size)[None] // options.sub_block
    candidates = masked & (place == _sub_block(masked, options)[:, None])
  log_probs = log_probabilities(logits, setting.banned)
  place_keys, token_keys = _keys(state)
  scores = token_scores(log_probs, setting.sampling, token_keys)
  judged = filtered(log_probs, setting.sampling) if options.judge == "filtered" else log_probs

  count = candidates.sum(axis=-1)
  total = jnp.where(state.block_step == 0, masked.sum(axis=-1), state.block_masks)
  step = jnp.broadcast_to(state.block_step, count.shape)
  budget = Budget(
    quota=options.schedule.quota(count, total, step, setting.steps),
    floor=jnp.where(step >= setting.steps - 1, count, 0),
    spare=jnp.zeros_like(count),
  )
  commits, _ = commit_together(judged, scores, candidates, place_keys, budget, options.policy)

  offset = context + state.block * options.block_size
  put = functools.partial(_put, offset=offset, where=commits.chosen)
  state = replace(
    state,
    canvas=put(state.canvas, commits.tokens),
    step_map=put(state.step_map, jnp.broadcast_to(state.forwards[:, None], masked.shape)),
    confidence=put(state.confidence, commits.confidence),
    forwards=state.forwards + masked.any(axis=-1),
    block_step=state.block_step + 1,
    block_masks=total,
  )
  return _end_rows(state, setting, options)


_static_names = ("config", "options", "context")
_open_step = jax.jit(_open_block, static_argnames=(*_static_names, "first"), donate_argnames=("cache",))
_denoise_step = jax.jit(_denoise_pass, static_argnames=_static_names, donate_argnames=("cache",))
_commit_step = jax.jit(_commit, static_argnames=("options", "context"))


def _write_first_token(
  model: Transformer, state: BlockState, setting: Setting, options: BlockOptions, context: int
) -> BlockState:
  """Fast-dLLM v2: the last logit of the committing pass gives the next block its first token, where it has none."""
  offset = context + state.block * options.block_size
  log_probs = log_probabilities(model.logits(state.clean[:, None]), setting.banned)
  token_keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(_keys(state)[1])
  token = jnp.argmax(token_scores(log_probs, setting.sampling, token_keys), axis=-1)
  confidence = jnp.exp(jnp.take_along_axis(log_probs, token[..., None], axis=-1)[..., 0])
  empty = _open_masks(state, options, context)[:, :1] & (state.first < offset)[:, None]
  put = functools.partial(_put, offset=offset, where=empty)
  state = replace(
    state,
    canvas=put(state.canvas, token),
    step_map=put(state.step_map, state.forwards[:, None]),
    confidence=put(state.confidence, confidence),
  )
  return _end_rows(state, setting, options)


# --- the approximate window ---


def _window_logits(
  model: Transformer, state: BlockState, cache: KVCache, options: BlockOptions, context: int
) -> tuple[Float[Array, "B L V"], KVCache]:
  """Logits of the current sub-block, from a pass over it alone where the row's block keys are there (Fast-dLLM v2).

  A row computes its whole block, and keeps the keys, at the first pass of a block and while the first position of its
  sub-block is masked. The shift then stays inside the sub-block, whose first position reads its own output.
  """
  size, sub = options.block_size, options.sub_block
  offset = context + state.block * size
  masked = _open_masks(state, options, context)
  active, begin = masked.any(axis=-1), _sub_block(masked, options) * sub
  begins_masked = jnp.take_along_axis(masked, begin[:, None], axis=-1)[:, 0]
  whole = active & ((state.block_step == 0) | begins_masked)
  tokens, layout = _span(state.canvas, offset, size), _layout(state, offset, size)
  shape = (*tokens.shape, model.config.vocab_size)

  def compute_block(cache: KVCache) -> tuple[Float[Array, "B L V"], KVCache]:
    hidden, fresh = _extend(model, tokens, layout, cache, offset, options)
    held = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, offset, size, axis=2), cache.held)
    kept = jax.tree.map(lambda new, old: jnp.where(whole[None, :, None, None, None], new, old), fresh, held)
    return _block_logits(model, hidden, state, options), write(cache, kept, layout, offset)

  def compute_window(cache: KVCache) -> Float[Array, "B L V"]:
    row = jax.vmap(lambda x, start: jax.lax.dynamic_slice_in_dim(x, start, sub, axis=0))
    own = jax.tree.map(lambda x: row(x, begin), layout)
    seen = attention_mask("block_causal", own, cache.layout, size)
    stale = (cache.layout.position >= own.position[:, :1]) & (cache.layout.position <= own.position[:, -1:])
    hidden, _ = model.extend(
      row(tokens, begin), own, cache, pattern="block_causal", block_size=size, past_mask=seen & ~stale[:, None]
    )
    logits = _block_logits(model, hidden, state, options)
    at = jax.vmap(lambda zeros, new, start: jax.lax.dynamic_update_slice_in_dim(zeros, new, start, axis=0))
    return at(jnp.zeros(shape, logits.dtype), logits, begin)

  nothing = jnp.zeros(shape, jnp.float32)
  block_logits, cache = jax.lax.cond(whole.any(), compute_block, lambda cache: (nothing, cache), cache)
  window_logits = jax.lax.cond((active & ~whole).any(), compute_window, lambda cache: nothing, cache)
  return jnp.where(whole[:, None, None], block_logits, window_logits), cache


# --- small parts ---


def _span(x: Array, offset: Int[Array, ""] | int, size: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, offset, size, axis=1)


def _put(x: Array, new: Array, *, offset: Int[Array, ""], where: Bool[Array, "B L"]) -> Array:
  """Writes `new` into slots from `offset` on, at the positions of `where`."""
  old = _span(x, offset, new.shape[1])
  return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(where, new.astype(x.dtype), old), offset, axis=1)


def _layout(state: BlockState, offset: Int[Array, ""] | int, size: int) -> Layout:
  position = (offset + jnp.arange(size, dtype=jnp.int32))[None] - state.first[:, None]
  valid = position >= 0
  return Layout(jnp.maximum(position, 0), valid.astype(jnp.int32), jnp.zeros_like(valid))


def _sub_block(masked: Bool[Array, "B L"], options: BlockOptions) -> Int[Array, "B"]:
  """The leftmost sub-block with a mask."""
  return jnp.argmax(masked, axis=-1) // options.sub_block


def _keys(state: BlockState) -> tuple[Key[Array, "B"], Key[Array, "B"]]:
  """Each row's two keys of this pass (where, what): from its own key and its own number of passes."""
  keys = jax.vmap(lambda key, step: jax.random.split(jax.random.fold_in(key, step)))(state.row_keys, state.forwards)
  return keys[:, 0], keys[:, 1]


def _stopped(state: BlockState, setting: Setting, options: BlockOptions) -> Bool[Array, "B"]:
  slot = jnp.arange(state.canvas.shape[1])[None]
  generated = (slot >= state.start[:, None]) & (slot < state.limit[:, None])
  ends = stop_ends(state.canvas, generated, setting.stops)
  return first_stop(ends, settled=~generated | (state.canvas != options.mask_id))


def _end_rows(state: BlockState, setting: Setting, options: BlockOptions) -> BlockState:
  """Freezes the rows that are full and, if checked at every step, those that have stopped."""
  slot = jnp.arange(state.canvas.shape[1])[None]
  open_ = (state.canvas == options.mask_id) & (slot >= state.start[:, None]) & (slot < state.limit[:, None])
  ended = state.ended | ~open_.any(axis=-1)
  return replace(state, ended=ended | _stopped(state, setting, options) if options.stop_check == "step" else ended)


# --- preparation, on the host ---


def _prepare(
  prompt, valid, row_seeds, banned, config, options, max_new_tokens, steps, sampling, stops, context, blocks
) -> tuple[BlockState, Setting, int]:
  prompt, valid = np.asarray(prompt), np.asarray(valid, bool)
  if prompt.shape != valid.shape or len(row_seeds) != len(prompt):
    raise ValueError(
      f"prompt has shape {prompt.shape}, valid {valid.shape} and row_seeds {len(row_seeds)} rows; they must agree"
    )
  if (valid[:, :-1] & ~valid[:, 1:]).any():
    raise ValueError("prompts are left-padded: valid must not be False behind a True")
  if max_new_tokens < 1 or (steps is not None and steps < 1):
    raise ValueError(f"max_new_tokens is {max_new_tokens} and steps {steps}; both must be 1 or more")
  lengths = valid.sum(axis=1)
  if config.alignment == "shifted" and not lengths.all():
    raise ValueError("a shifted model reads its first token off the prompt: every prompt needs at least 1 token")
  if config.alignment == "shifted" and options.window == "sub_block" and options.shifted_first == "clean":
    raise ValueError("BlockOptions.window 'sub_block' of a shifted model needs BlockOptions.shifted_first 'noisy'")
  canvas, first, start, context = _fill_canvas(prompt, valid, options, max_new_tokens, context, blocks)
  rows = len(prompt)
  banned = jnp.asarray(banned, bool).at[options.mask_id].set(True)
  state = BlockState(
    canvas=jnp.asarray(canvas),
    step_map=jnp.full(canvas.shape, -1, jnp.int32),
    confidence=jnp.asarray(canvas != options.mask_id, jnp.float32),
    forwards=jnp.zeros(rows, jnp.int32),
    ended=jnp.zeros(rows, bool),
    block=jnp.int32(-1),
    block_step=jnp.int32(0),
    block_masks=jnp.zeros(rows, jnp.int32),
    clean=jnp.zeros((rows, config.d_model), jnp.float32),
    first=jnp.asarray(first),
    start=jnp.asarray(start),
    limit=jnp.asarray(start + np.int32(max_new_tokens)),
    row_keys=jax.vmap(jax.random.key)(jnp.asarray(row_seeds)),
  )
  steps = options.block_size if steps is None else steps
  return state, Setting(banned, stop_table(stops), jnp.int32(steps), sampling or make_sampling()), context


def _fill_canvas(prompt, valid, options: BlockOptions, max_new_tokens: int, context: int | None, blocks: int | None):
  """Canvas, slot of position 0, first generated slot of each row; and the context's width."""
  size, lengths = options.block_size, valid.sum(axis=1).astype(np.int32)
  whole = lengths // size * size
  needed = int(whole.max(initial=0)), -(-int((lengths - whole).max(initial=0) + max_new_tokens) // size)
  context, blocks = needed[0] if context is None else context, needed[1] if blocks is None else blocks
  if context % size or context < needed[0] or blocks < needed[1]:
    raise ValueError(
      f"context is {context} slots and blocks {blocks}; these prompts need a multiple of block_size {size} "
      f"of at least {needed[0]} slots, and {needed[1]} blocks"
    )
  canvas = np.full((len(prompt), context + blocks * size), options.mask_id, np.int32)
  first = (context - whole).astype(np.int32)
  for row, tokens, is_token, begin in zip(canvas, prompt, valid, first, strict=True):
    row[:begin] = options.pad_id
    row[begin : begin + is_token.sum()] = tokens[is_token]
  return canvas, first, first + lengths, context
