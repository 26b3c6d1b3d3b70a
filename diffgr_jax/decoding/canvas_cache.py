"""Canvas decoding against stale keys: the prefix and the dual cache of Fast-dLLM (arXiv 2505.22618). APPROXIMATE.

A bidirectional model has no exact cache: a committed token changes the keys of all others. These two keep them anyway,
while a block is decoded (blocks of 2; the second is the current one):

                 prompt   canvas
                 a  b  c | 7  9 | M  M | M  M
    full pass    x  x  x   x  x   x  x   x  x     as a row enters a block: all computed (x), keys kept
    prefix       .  .  .   .  .   x  x   x  x     then the block and what follows it, against the stale keys (.) before
    dual         .  .  .   .  .   x  x   .  .     or the block alone, against the stale keys on both sides

Other tokens come out than from `decode_canvas`; docs/decoding.md says how many. With `refresh=1` every pass is a full
one, and the decoder is the exact one. Logits are projected inside the block only.

Every row enters its blocks in its own time, so that it decodes alone as in company: a step runs a full pass if any row
needs one, a window pass if any other row is unfinished, and each row reads its own. A `shifted` model reads the first
position of a block from the hidden state before it, which is as stale as the keys there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.canvas import (
  DecodeOptions,
  DecodeState,
  check_inputs,
  commit_step,
  enter_block,
  init_state,
  unfinished_rows,
)
from diffgr_jax.decoding.denoiser import Params
from diffgr_jax.decoding.policies import Stats
from diffgr_jax.decoding.sampling import Sampling
from diffgr_jax.models import inference
from diffgr_jax.models.attention import Layout, padded_layout
from diffgr_jax.models.cache import KVCache, init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.inference import DecodingParams, decoding_params

KINDS = ("prefix", "dual")


@dataclass(frozen=True)
class CanvasCache:
  """Which keys are kept, and for how long."""

  kind: str  # prefix: those before the block | dual: those before and behind it
  refresh: int = 0  # steps between full passes inside a block; 0: one as the block begins, 1: every step, exact

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ValueError(f"CanvasCache.kind is one of {', '.join(KINDS)}, not {self.kind!r}")
    if self.refresh < 0:
      raise ValueError(f"CanvasCache.refresh is {self.refresh}; it must be 0 (once a block) or more")


@struct.dataclass
class _Kept:
  """What the last full pass of each row left."""

  held: KVCache  # of prompt and canvas
  before: Float[Array, "B D"]  # hidden state of the token before the block; read by shifted models


def decode_canvas_cached(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  canvas: Int[ArrayLike, "B L"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  denoiser: CanvasDenoiser,
  options: DecodeOptions,
  cache: CanvasCache,
  steps: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> DecodeState:
  """Denoises block after block, as `decode_canvas` does with the same arguments, but against stale keys: approximate.

  Args:
    params, prompt, canvas, row_seeds, banned, steps, temperature, top_k, top_p: as `decode_canvas` takes them.
    denoiser: the model, without slots.
    options: its `block_length` is that of the blocks, and must divide the canvas.
    cache: which keys are kept.

  Returns:
    The last state; `step` counts steps, in which a row takes part with one pass, full or window.

  Raises:
    ValueError: what `decode_canvas` refuses, blocks that do not divide the canvas, a model with slots, or a shifted
      model without a prompt.
  """
  inputs = _check(prompt, canvas, row_seeds, banned, steps, (temperature, top_k, top_p), denoiser, options)
  return _decode_loop(params, *inputs, denoiser=denoiser, options=options, cache=cache)


def decode_canvas_cached_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  canvas: Int[ArrayLike, "B L"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  denoiser: CanvasDenoiser,
  options: DecodeOptions,
  cache: CanvasCache,
  steps: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
) -> Iterator[tuple[DecodeState, Stats | None]]:
  """The same decoder, one Python step at a time.

  Yields:
    The state before the first step (with None), then every state with the statistics that led to it; NaN outside the
    row's block, where nothing was computed.
  """
  inputs = _check(prompt, canvas, row_seeds, banned, steps, (temperature, top_k, top_p), denoiser, options)
  prompt, canvas, row_seeds, banned, budget, sampling = inputs
  params, state = decoding_params(denoiser.config, params), init_state(canvas, row_seeds, banned, None, options.mask_id)
  kept = _nothing_kept(denoiser, prompt, canvas)
  yield state, None
  while int(state.step) < steps and bool(unfinished_rows(state, options.mask_id).any()):
    state, kept, stats = _cached_step(
      params, prompt, state, kept, banned, budget, sampling, denoiser=denoiser, options=options, cache=cache
    )
    yield state, stats


@functools.partial(jax.jit, static_argnames=("denoiser", "options", "cache"))
def _decode_loop(
  params, prompt, canvas, row_seeds, banned, steps, sampling, *, denoiser, options, cache
) -> DecodeState:
  def more(carry: tuple[DecodeState, _Kept]) -> Bool[Array, ""]:
    return (carry[0].step < steps) & unfinished_rows(carry[0], options.mask_id).any()

  def body(carry: tuple[DecodeState, _Kept]) -> tuple[DecodeState, _Kept]:
    how = dict(denoiser=denoiser, options=options, cache=cache)
    return _step(params, prompt, *carry, banned, steps, sampling, **how)[:2]

  params, state = decoding_params(denoiser.config, params), init_state(canvas, row_seeds, banned, None, options.mask_id)
  return jax.lax.while_loop(more, body, (state, _nothing_kept(denoiser, prompt, canvas)))[0]


def _step(
  params: Params,
  prompt: Int[Array, "B P"],
  state: DecodeState,
  kept: _Kept,
  banned: Bool[Array, "V"],
  steps: Int[Array, ""],
  sampling: Sampling,
  *,
  denoiser: CanvasDenoiser,
  options: DecodeOptions,
  cache: CanvasCache,
) -> tuple[DecodeState, _Kept, Stats]:
  """One pass of each kind that a row needs, and the commitments that follow."""
  size, masked = options.block_length, state.canvas == options.mask_id
  active = masked.any(axis=-1)
  state, here, _ = enter_block(state, masked, steps, size)
  due = state.block_step == 0
  if cache.refresh:
    due |= state.block_step % cache.refresh == 0
  whole, begin = active & due, state.block * size
  config, tokens = denoiser.config, jnp.concatenate([prompt, state.canvas], axis=-1)
  layout = padded_layout(jnp.concatenate([prompt != denoiser.pad_id, jnp.ones_like(masked)], axis=-1))
  no_hidden = jnp.zeros((*here.shape[:1], size, config.d_model), config.compute_dtype)

  def compute_all() -> tuple[Array, _Kept]:
    writes = jnp.broadcast_to(whole[:, None], tokens.shape)
    hidden, held = inference.extend(
      config, params, tokens, layout, kept.held, 0, pattern="bidirectional", writes=writes
    )
    first = prompt.shape[1] + begin
    before = _rows_from(hidden, first - 1, 1)[:, 0].astype(jnp.float32)
    return _rows_from(hidden, first, size), _Kept(held, jnp.where(whole[:, None], before, kept.before))

  window = {"dual": _dual_window, "prefix": _prefix_window}[cache.kind]
  others = active & ~whole
  hidden, kept = jax.lax.cond(whole.any(), compute_all, lambda: (no_hidden, kept))
  in_window = jax.lax.cond(
    others.any(),
    lambda: window(config, params, tokens, layout, kept.held, prompt.shape[1], begin, size, others),
    lambda: no_hidden,
  )
  hidden = jnp.where(whole[:, None, None], hidden, in_window)
  if config.alignment == "shifted":
    hidden = jnp.concatenate([kept.before[:, None].astype(hidden.dtype), hidden[:, :-1]], axis=1)
  logits = inference.logits(config, params, hidden)
  logits = _rows_to(jnp.zeros((*masked.shape, logits.shape[-1]), logits.dtype), logits, begin)
  state, stats = commit_step(state, logits, banned, None, steps, sampling, options=options)
  return state, kept, jax.tree.map(lambda x: jnp.where(here & active[:, None], x, jnp.nan), stats)


_cached_step = jax.jit(_step, static_argnames=("denoiser", "options", "cache"), donate_argnames=("kept",))


def _dual_window(
  config: TransformerConfig,
  params: DecodingParams,
  tokens: Int[Array, "B T"],
  layout: Layout,
  held: KVCache,
  prompt_length: int,
  begin: Int[Array, "B"],
  size: int,
  rows: Bool[Array, "B"],
) -> Float[Array, "B S D"]:
  """Hidden states of each row's block, recomputed alone. The stale keys stay what they are."""
  first = prompt_length + begin
  own = jax.tree.map(lambda x: _rows_from(x, first, size), layout)
  block = _rows_from(tokens, first, size)
  return inference.extend(config, params, block, own, held, first, pattern="bidirectional")[0]


def _prefix_window(
  config: TransformerConfig,
  params: DecodingParams,
  tokens: Int[Array, "B T"],
  layout: Layout,
  held: KVCache,
  prompt_length: int,
  begin: Int[Array, "B"],
  size: int,
  rows: Bool[Array, "B"],
) -> Float[Array, "B S D"]:
  """Hidden states of each row's block, recomputed with all that follows it.

  The window begins at the leftmost block among `rows`. A row that is further on keeps the stale keys before its own
  block. One program a block of the canvas, chosen by `lax.switch`: shapes are fixed.
  """
  first, slot = prompt_length + begin, jnp.arange(tokens.shape[1])[None]

  def from_block(block: int):
    offset = prompt_length + block * size

    def compute() -> Float[Array, "B S D"]:
      own = jax.tree.map(lambda x: x[:, offset:], layout)
      mine = slot[:, offset:] >= first[:, None]
      hidden, _ = inference.extend(
        config, params, tokens[:, offset:], own, held, offset, pattern="bidirectional", writes=mine
      )
      return _rows_from(hidden, jnp.maximum(first - offset, 0), size)

    return compute

  blocks = (tokens.shape[1] - prompt_length) // size
  leftmost = jnp.min(jnp.where(rows, begin // size, blocks - 1))
  return jax.lax.switch(leftmost, [from_block(block) for block in range(blocks)])


def _nothing_kept(denoiser: CanvasDenoiser, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> _Kept:
  rows, config = len(prompt), denoiser.config
  empty = init_cache(config, rows, prompt.shape[1] + canvas.shape[1])
  return _Kept(empty, jnp.zeros((rows, config.d_model), jnp.float32))


def _rows_from(x: Array, start: Int[Array, "B"], size: int) -> Array:
  """Takes `size` positions of each row, from a place of its own."""
  return jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, size, axis=0))(x, start)


def _rows_to(x: Array, new: Array, start: Int[Array, "B"]) -> Array:
  """Puts `new` into each row, at a place of its own."""
  return jax.vmap(lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0))(x, new, start)


def _check(prompt, canvas, row_seeds, banned, steps, sampling, denoiser, options):
  """Checks what can be checked before anything is compiled, and moves the inputs to the device."""
  length, size = canvas.shape[1], options.block_length
  if not size or length % size:
    raise ValueError(f"DecodeOptions.block_length is {size}; a cache needs blocks that divide the canvas of {length}")
  if denoiser.slots:
    raise ValueError("CanvasDenoiser.slots is True; the prefix and dual caches serve models without slots")
  if denoiser.config.alignment == "shifted" and not prompt.shape[1]:
    raise ValueError("a shifted model reads its first token off the prompt: every prompt needs at least 1 token")
  prompt, canvas, row_seeds, banned, _, steps, sampling = check_inputs(
    prompt, canvas, row_seeds, banned, None, steps, sampling, options
  )
  return prompt, canvas, row_seeds, banned, steps, sampling
