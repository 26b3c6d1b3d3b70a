"""Block decoding: what is fixed, what is carried from pass to pass, and how both are prepared on the host.

slots      . . a b | c d e M | M M M M        . padding, a..e the prompt, M to be filled; blocks of 4
           context   block 0   block 1        whole prompt blocks, then the blocks that are decoded
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.policies import Policy
from diffgr_jax.decoding.remasking import check_remasking
from diffgr_jax.decoding.sampling import Sampling, make_sampling
from diffgr_jax.decoding.schedules import EVEN, Schedule
from diffgr_jax.decoding.stopping import after_stop, first_stop, stop_ends, stop_table
from diffgr_jax.models.attention import Layout

_CHOICES = {
  "shifted_first": ("clean", "noisy"),
  "window": ("exact", "sub_block"),
  "stop_check": ("step", "block"),
  "judge": ("model", "filtered"),
  "records": ("judged", "drawn"),
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
  remask: int = 0  # tokens taken back to MASK after a pass, at most (remasking.py); inside the block or sub-block
  max_reopen: int = 1  # times that one position may be taken back
  remask_by: str = "commit"  # commit: its probability when it was committed | current: what the model gives it now
  judge: str = "model"  # model: policies see the model's distribution | filtered: the one that tokens are drawn from
  records: str = "judged"  # a token's probability in the state: judged: by what policies see | drawn: by what drew it

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
    check_remasking("BlockOptions", self.remask, self.max_reopen, self.remask_by)
    if self.remask and (self.window, self.shifted_first) != ("exact", "clean"):
      raise ValueError(
        f"BlockOptions.remask reads every position of a block anew: it needs window 'exact' (not {self.window!r}) and"
        f" shifted_first 'clean' (not {self.shifted_first!r})"
      )


@struct.dataclass
class BlockState:
  """Where decoding stands. T slots: context, then the blocks."""

  canvas: Int[Array, "B T"]
  step_map: Int[Array, "B T"]  # forward pass of the row that committed a position; -1: given, or not yet
  confidence: Float[Array, "B T"]  # probability of the token when it was committed; given: 1, not yet: 0
  reopened: Int[Array, "B T"]  # how often a position went back to MASK
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


# --- where decoding stands ---


def more_blocks(state: BlockState, options: BlockOptions, context: int) -> Bool[Array, ""]:
  blocks = (state.canvas.shape[1] - context) // options.block_size
  return ~state.ended.all() & (state.block + 1 < blocks)


def open_masks(state: BlockState, options: BlockOptions, context: int) -> Bool[Array, "B L"]:
  """The positions of the current block that are still to be filled: none behind the last token asked for.

  What stands behind it stays MASK, which is how the model sees it.
  """
  offset = context + state.block * options.block_size
  asked = offset + jnp.arange(options.block_size)[None] < state.limit[:, None]
  return (span(state.canvas, offset, options.block_size) == options.mask_id) & asked & ~state.ended[:, None]


def close_block(state: BlockState, setting: Setting, options: BlockOptions) -> BlockState:
  """Ends the rows that hold a stop, once their block is done."""
  return replace(state, ended=state.ended | _stopped(state, setting, options))


# --- small parts ---


def span(x: Array, offset: Int[Array, ""] | int, size: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, offset, size, axis=1)


def put_span(x: Array, new: Array, *, offset: Int[Array, ""], where: Bool[Array, "B L"]) -> Array:
  """Writes `new` into slots from `offset` on, at the positions of `where`."""
  old = span(x, offset, new.shape[1])
  return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(where, new.astype(x.dtype), old), offset, axis=1)


def span_layout(state: BlockState, offset: Int[Array, ""] | int, size: int) -> Layout:
  position = (offset + jnp.arange(size, dtype=jnp.int32))[None] - state.first[:, None]
  return Layout(jnp.maximum(position, 0), (position >= 0).astype(jnp.int32), jnp.zeros_like(position))


def current_sub_block(masked: Bool[Array, "B L"], options: BlockOptions) -> Int[Array, "B"]:
  """The leftmost sub-block with a mask."""
  return jnp.argmax(masked, axis=-1) // options.sub_block


def pass_keys(state: BlockState) -> tuple[Key[Array, "B"], Key[Array, "B"]]:
  """Each row's two keys of this pass (where, what): from its own key and its own number of passes."""
  keys = jax.vmap(lambda key, step: jax.random.split(jax.random.fold_in(key, step)))(state.row_keys, state.forwards)
  return keys[:, 0], keys[:, 1]


def _stopped(state: BlockState, setting: Setting, options: BlockOptions) -> Bool[Array, "B"]:
  slot = jnp.arange(state.canvas.shape[1])[None]
  generated = (slot >= state.start[:, None]) & (slot < state.limit[:, None])
  ends = stop_ends(state.canvas, generated, setting.stops)
  return first_stop(ends, settled=~generated | (state.canvas != options.mask_id))


def end_rows(state: BlockState, setting: Setting, options: BlockOptions) -> BlockState:
  """Freezes the rows that are full and, if checked at every step, those that have stopped."""
  slot = jnp.arange(state.canvas.shape[1])[None]
  open_ = (state.canvas == options.mask_id) & (slot >= state.start[:, None]) & (slot < state.limit[:, None])
  ended = state.ended | ~open_.any(axis=-1)
  return replace(state, ended=ended | _stopped(state, setting, options) if options.stop_check == "step" else ended)


# --- preparation, on the host ---


def prepare(
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
    reopened=jnp.zeros(canvas.shape, jnp.int32),
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
