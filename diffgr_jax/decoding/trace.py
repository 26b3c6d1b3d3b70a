"""Records a decode as arrays: what pictures, papers and the RL replay of a rollout read.

Each recorder reads the step-by-step twin of a decoder, so the plain decoders pay nothing for it:

    trace_decode(params, ...)                                      a canvas; takes what `decode_canvas` takes
    record_canvas(decode_canvas_cached_steps(params, ...))         a canvas, by any of its twins
    record_blocks(decode_blocks_steps(params, ...), options, 64)   the tokens that a block decoder generates
    record_autoregressive(decode_autoregressive_steps(...), banned)
    record_beams(decode_beams_steps(...), banned)                  hypotheses and scores; each one of them as a trace

With T steps actually run, and L positions to be generated,

    canvas             [T+1, B, L]   canvas[t] is what stood there before step t; canvas[T] is the answer
    commit_confidence  [T+1, B, L]   probability of each token when it was committed (given: 1, MASK: 0)
    confidence         [T, B, L]     at step t, the probability of the most likely token at each position
    entropy            [T, B, L]     the same, in nats
    alive              [T+1, B]      documents that the canvas can still become (None: not constrained)

Confidence and entropy are NaN where step t computed nothing: outside the block, or in a row that waited or had ended.
A position that is never decoded, behind a row's stop, stays MASK.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int
import numpy as np

from diffgr_jax.decoding.autoregressive import DecodedRows
from diffgr_jax.decoding.beam import BeamState
from diffgr_jax.decoding.block_state import BlockOptions, BlockState
from diffgr_jax.decoding.canvas import DecodeOptions, DecodeState, decode_canvas_steps
from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.decoding.policies import Stats, position_stats


@dataclass(frozen=True)
class Trace:
  """One decoded batch, step by step, in host memory."""

  canvas: Int[np.ndarray, "T_plus_1 B L"]
  commit_confidence: Float[np.ndarray, "T_plus_1 B L"]
  confidence: Float[np.ndarray, "T B L"]
  entropy: Float[np.ndarray, "T B L"]
  step_map: Int[np.ndarray, "B L"]  # step (of the row) at which the final token was committed; -1: given, or never
  alive: Int[np.ndarray, "T_plus_1 B"] | None
  mask_id: int

  @property
  def masked(self) -> Bool[np.ndarray, "T_plus_1 B L"]:
    """Which positions hold MASK before each step, and at the end."""
    return self.canvas == self.mask_id

  @property
  def committed(self) -> Bool[np.ndarray, "T B L"]:
    """Which positions each step committed."""
    return self.masked[:-1] & ~self.masked[1:]

  @property
  def reopened(self) -> Bool[np.ndarray, "T B L"]:
    """Which positions each step took back to MASK."""
    return ~self.masked[:-1] & self.masked[1:]

  def steps_taken(self, row: int) -> Int[np.ndarray, "S"]:
    """The steps that one row took part in: the batch goes on until its slowest row is done, and rows may wait."""
    changed = np.asarray((self.committed | self.reopened)[:, row].any(axis=-1))
    took_part = changed | np.isfinite(self.confidence[:, row]).any(axis=-1)
    last = np.flatnonzero(changed)[-1:]
    return np.flatnonzero(took_part & (np.arange(len(changed)) <= (last[0] if len(last) else -1)))

  def steps_of(self, row: int) -> int:
    """Counts the steps that one row took."""
    return len(self.steps_taken(row))


@dataclass(frozen=True)
class BeamTrace:
  """A beam search, step by step, in host memory: T steps, W hypotheses a row, best first."""

  tokens: Int[np.ndarray, "T B W L"]  # after each step; -1: nothing, or behind the end
  score: Float[np.ndarray, "T B W"]  # -inf: no hypothesis
  parent: Int[np.ndarray, "T B W"]  # the hypothesis of the step before that each one continues
  confidence: Float[np.ndarray, "T B W"]  # of the distribution that its newest token is from; NaN: it had ended before
  entropy: Float[np.ndarray, "T B W"]
  step_map: Int[np.ndarray, "B W L"]  # step at which a token of the last hypotheses was chosen; -1: none there

  def lineage(self, row: int, rank: int) -> Int[np.ndarray, "T"]:
    """Which hypothesis of each step a final one descends from."""
    places = [rank]
    for parent in self.parent[:0:-1, row]:
      places.append(int(parent[places[-1]]))
    return np.array(places[::-1])

  def hypothesis(self, row: int, rank: int) -> Trace:
    """How one final hypothesis came about, as a trace of one row without MASK (what is not decoded is -1)."""
    places, steps = self.lineage(row, rank), np.arange(len(self.score))
    tokens, scores = self.tokens[steps, row, places], self.score[steps, row, places]
    gained, new = np.diff(scores, prepend=0.0), tokens[-1][None] >= 0
    new = new & (np.arange(tokens.shape[1])[None] == steps[:, None])  # a step chooses the token at its own place
    canvas = np.concatenate([np.full((1, tokens.shape[1]), -1), tokens])
    confidence = np.where(new, np.exp(gained)[:, None], 0.0).sum(axis=0)
    number = lambda of: np.where(new, of[steps, row, places][:, None], np.nan)[:, None]
    return Trace(
      canvas=canvas[:, None],
      commit_confidence=np.where(canvas >= 0, confidence[None], 0.0)[:, None],
      confidence=number(self.confidence),
      entropy=number(self.entropy),
      step_map=self.step_map[row, rank][None],
      alive=None,
      mask_id=-1,
    )


def trace_decode(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  canvas: Int[ArrayLike, "B L"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  denoise: Denoiser,
  options: DecodeOptions,
  steps: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  codes: Int[ArrayLike, "N L"] | None = None,
  rows: Int[ArrayLike, "U"] | None = None,
) -> Trace:
  """Decodes as `decode_canvas` does, with the same arguments and the same tokens, and records every step."""
  steps_of_twin = decode_canvas_steps(
    params,
    prompt,
    canvas,
    row_seeds,
    banned,
    denoise=denoise,
    options=options,
    steps=steps,
    temperature=temperature,
    top_k=top_k,
    top_p=top_p,
    codes=codes,
    rows=rows,
  )
  return record_canvas(steps_of_twin, options.mask_id)


def record_canvas(steps: Iterable[tuple[DecodeState, Stats | None]], mask_id: int) -> Trace:
  """Records what `decode_canvas_steps` or `decode_canvas_cached_steps` yields."""
  shots, alive = [], []
  for state, stats in steps:
    shots.append((state.canvas, state.step_map, state.confidence, *_statistics(stats)))
    if state.alive is not None:
      alive.append(jnp.sum(state.alive, axis=-1))
  return _trace(shots, mask_id, _stack(alive) if alive else None)


def record_blocks(
  steps: Iterable[tuple[BlockState, Stats | None]], options: BlockOptions, max_new_tokens: int
) -> Trace:
  """Records what `decode_blocks_steps` yields: `max_new_tokens` positions a row, from its first generated one.

  A token that a committing pass writes (`shifted_first="noisy"`) is a step of its own, without statistics.
  """
  shots, before = [], None
  for state, stats in steps:
    place = state.start[:, None] + jnp.arange(max_new_tokens)[None]
    there = place < jnp.minimum(state.limit[:, None], state.canvas.shape[1])
    place = jnp.minimum(place, state.canvas.shape[1] - 1)
    pick = lambda x, place=place: jnp.take_along_axis(x, place, axis=-1)
    canvas = jnp.where(there, pick(state.canvas), options.mask_id)
    shot = (canvas, jnp.where(there, pick(state.step_map), -1), jnp.where(there, pick(state.confidence), 0.0))
    numbers = _statistics(stats)
    if stats is not None and before is not None:
      context = state.first[0] + (state.start[0] - state.first[0]) // options.block_size * options.block_size
      inside = place - (context + state.block * options.block_size)
      asked = (inside >= 0) & (inside < options.block_size) & there & (state.forwards > before.forwards)[:, None]
      inside = jnp.clip(inside, 0, options.block_size - 1)
      seen = (jnp.take_along_axis(x, inside, axis=-1) for x in (stats.confidence, stats.entropy))
      numbers = tuple(jnp.where(asked, x, jnp.nan) for x in seen)
    shots.append((*shot, *numbers))
    before = state
  return _trace(shots, options.mask_id)


def record_autoregressive(
  steps: Iterable[tuple[DecodedRows, Float[Array, "B V"]]], banned: Bool[ArrayLike, "V"]
) -> Trace:
  """Records what `decode_autoregressive_steps` yields. There is no MASK: what is not decoded is -1."""
  shots = []
  for rows, logits in steps:
    place = jnp.arange(rows.tokens.shape[1])[None]
    there, new = place < rows.length[:, None], place == rows.step - 1
    if not shots:
      nothing = jnp.full(rows.tokens.shape, -1)
      shots.append((nothing, nothing, jnp.zeros(rows.tokens.shape), None, None))
    stats = position_stats(log_probabilities(logits[:, None], jnp.asarray(banned, bool)))
    here = there & new
    shots.append(
      (
        jnp.where(there, rows.tokens, -1),
        jnp.where(there, place, -1),
        jnp.where(there, jnp.exp(rows.log_prob), 0.0),
        jnp.where(here, stats.confidence, jnp.nan),
        jnp.where(here, stats.entropy, jnp.nan),
      )
    )
  return _trace(shots, -1)


def record_beams(steps: Iterable[tuple[BeamState, Float[Array, "B X V"]]], banned: Bool[ArrayLike, "V"]) -> BeamTrace:
  """Records what `decode_beams_steps` yields."""
  shots = []
  for state, logits in steps:
    stats = position_stats(log_probabilities(logits, jnp.asarray(banned, bool)))
    newest = jax.lax.dynamic_index_in_dim(state.tokens, state.step - 1, axis=2, keepdims=False)
    of_parent = (jnp.take_along_axis(x, state.parent, axis=1) for x in (stats.confidence, stats.entropy))
    numbers = (jnp.where(newest >= 0, x, jnp.nan) for x in of_parent)
    shots.append((state.tokens, state.score, state.parent, *numbers))
  tokens, score, parent, confidence, entropy = (np.stack(x) for x in zip(*jax.device_get(shots), strict=True))
  place = np.arange(tokens.shape[-1])[None, None]
  return BeamTrace(tokens, score, parent, confidence, entropy, np.where(tokens[-1] >= 0, place, -1))


def _statistics(stats: Stats | None) -> tuple[Array | None, Array | None]:
  return (None, None) if stats is None else (stats.confidence, stats.entropy)


def _trace(shots: list[tuple], mask_id: int, alive: np.ndarray | None = None) -> Trace:
  """Stacks what was recorded, the first shot before any step."""
  canvases, step_maps, commit_confidence, confidence, entropy = zip(*jax.device_get(shots), strict=True)
  unknown = np.full(canvases[0].shape, np.nan, np.float32)
  stacked = lambda shots: np.stack([unknown if x is None else x for x in shots[1:]]) if shots[1:] else unknown[None][:0]
  return Trace(
    canvas=np.stack(canvases),
    commit_confidence=np.stack(commit_confidence),
    confidence=stacked(confidence),
    entropy=stacked(entropy),
    step_map=step_maps[-1],
    alive=alive,
    mask_id=mask_id,
  )


def _stack(arrays: list[jax.Array]) -> np.ndarray:
  return np.stack(jax.device_get(arrays))
