"""What a decoder wrote, as training on it reads it: tokens, the pass that committed each, how likely it was.

    position   0  1  2  3 | 4  5  6  7 | 8  9 10 11        blocks of 4
    tokens     p  p  p  p   p  a  b  c   d  E  x  M        p: the prompt, E: a stop, x: behind it, M: never filled
    step      -1 -1 -1 -1  -1  0  1  0   2  3  2 -1        pass 0 wrote a and c, pass 1 b
    start 5, length 5                                      generated: positions 5 to 9

Rows begin at position 0, whatever their padding was. Tokens that a block decoder wrote behind a stop are kept, for the
model saw them when it wrote others; they are not generated ones, and carry no loss. `log_prob` is of each token under
the distribution that it was drawn from (decode with `judge="filtered"`), which is what a replay of the step map has to
come to again (contract 8). So a trajectory is all that on-policy distillation and RL ask of a decode.
"""

from collections.abc import Sequence

from flax import struct
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.autoregressive import DecodedRows
from diffgr_jax.decoding.block_state import BlockState
from diffgr_jax.decoding.stopping import after_stop, stop_ends, stop_table


@struct.dataclass
class Trajectories:
  """Of B rows, each a prompt and what was generated behind it."""

  tokens: Int[Array, "B T"]
  step: Int[Array, "B T"]  # pass that committed a token; -1: given, or never filled
  log_prob: Float[Array, "B T"]  # 0 where step is -1
  start: Int[Array, "B"]  # position of the first generated token
  length: Int[Array, "B"]  # generated tokens, the stop included
  finished: Bool[Array, "B"]  # ended by a stop; otherwise the room was full


def block_trajectories(
  state: BlockState, stops: Sequence[Sequence[int]], *, mask_id: int, max_new_tokens: int
) -> Trajectories:
  """Of a finished block decode.

  Args:
    state: the decoder's last. It must not have reopened tokens: their step map is not all that happened.
    stops: as given to the decoder.
    mask_id: MASK.
    max_new_tokens: as given to the decoder.
  """
  place = jnp.arange(state.canvas.shape[1])[None] + state.first[:, None]
  inside = place < state.canvas.shape[1]
  shift = lambda x, fill: jnp.where(inside, jnp.take_along_axis(x, jnp.where(inside, place, 0), axis=1), fill)
  tokens, step = shift(state.canvas, mask_id), shift(state.step_map, -1)
  # Float32 keeps log p of a probability to 1e-7, which is what a replay differs by anyway.
  log_prob = jnp.where(step >= 0, jnp.log(jnp.maximum(shift(state.confidence, 1.0), 1e-37)), 0.0)
  start = state.start - state.first
  length, finished = _generated(tokens, mask_id, start, stops, max_new_tokens)
  return Trajectories(tokens, step, log_prob, start, length, finished)


def autoregressive_trajectories(
  rows: DecodedRows,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  stops: Sequence[Sequence[int]],
  *,
  mask_id: int,
) -> Trajectories:
  """Of an autoregressive decode, whose passes wrote a token each."""
  prompt, valid = jnp.asarray(prompt), jnp.asarray(valid)
  (batch, width), room = prompt.shape, rows.tokens.shape[1]
  start = valid.sum(axis=1).astype(jnp.int32)
  place = jnp.arange(width + room)[None]
  both = jnp.concatenate([prompt, rows.tokens], axis=1)
  at = jnp.minimum(place + (width - start)[:, None], width + room - 1)
  generated = (place >= start[:, None]) & (place < (start + rows.length)[:, None])
  tokens = jnp.where((place < start[:, None]) | generated, jnp.take_along_axis(both, at, axis=1), mask_id)
  step = jnp.where(generated, place - start[:, None], -1)
  padded = jnp.concatenate([jnp.zeros((batch, width)), rows.log_prob], axis=1)
  log_prob = jnp.where(generated, jnp.take_along_axis(padded, at, axis=1), 0.0)
  _, finished = _generated(tokens, mask_id, start, stops, room)
  return Trajectories(tokens, step, log_prob, start, rows.length.astype(jnp.int32), finished)


def generated(x: Array, start: Int[Array, "B"], room: int) -> Array:
  """The `room` positions from each row's `start` on; those outside the row repeat its last."""
  at = jnp.minimum(start[:, None] + jnp.arange(room)[None], x.shape[1] - 1)
  return jnp.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - 2)), axis=1)


def is_generated(length: Int[Array, "B"], room: int) -> Bool[Array, "B G"]:
  """Which of the positions of `generated` hold a token of the row."""
  return jnp.arange(room)[None] < length[:, None]


def _generated(
  tokens: Int[Array, "B T"],
  mask_id: int,
  start: Int[Array, "B"],
  stops: Sequence[Sequence[int]],
  max_new_tokens: int,
) -> tuple[Int[Array, "B"], Bool[Array, "B"]]:
  """How many tokens stand from `start` on, up to the first stop or gap, and whether it is a stop."""
  place = jnp.arange(tokens.shape[1])[None]
  inside = (place >= start[:, None]) & (place < (start + max_new_tokens)[:, None])
  gap = jnp.cumsum(inside & (tokens == mask_id), axis=1) > 0
  ends = stop_ends(tokens, inside & ~gap, stop_table(stops))
  kept = inside & ~gap & ~after_stop(ends)
  return kept.sum(axis=1).astype(jnp.int32), ends.any(axis=1)
