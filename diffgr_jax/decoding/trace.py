"""Records how a canvas was denoised, as arrays: what pictures, papers and the RL replay of a rollout read.

It runs the step-by-step twin of the decoder, so the plain decoder pays nothing for it. With T steps actually run,

    canvas             [T+1, B, L]   canvas[t] is what the model saw at step t; canvas[T] is the answer
    commit_confidence  [T+1, B, L]   probability of each token when it was committed (given: 1, MASK: 0)
    confidence         [T, B, L]     at step t, the probability of the most likely token at each position
    entropy            [T, B, L]     the same, in nats
    alive              [T+1, B]      documents that the canvas can still become (None: not constrained)
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Int
import numpy as np

from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas_steps
from diffgr_jax.decoding.denoiser import Denoiser, Params


@dataclass(frozen=True)
class Trace:
  """One decoded batch, step by step, in host memory."""

  canvas: Int[np.ndarray, "T_plus_1 B L"]
  commit_confidence: Float[np.ndarray, "T_plus_1 B L"]
  confidence: Float[np.ndarray, "T B L"]
  entropy: Float[np.ndarray, "T B L"]
  step_map: Int[np.ndarray, "B L"]  # step at which the final token was committed; -1: given
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

  def steps_of(self, row: int) -> int:
    """Counts the steps that one row took: the batch goes on until its slowest row is done."""
    return int(self.committed[:, row].any(axis=-1).sum())


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
  codes: Int[ArrayLike, "N L"] | None = None,
  rows: Int[ArrayLike, "U"] | None = None,
) -> Trace:
  """Decodes as `decode_canvas` does, with the same arguments and the same tokens, and records every step."""
  canvases, step_maps, commit_confidence, confidence, entropy, alive = [], [], [], [], [], []
  for state, stats in decode_canvas_steps(
    params,
    prompt,
    canvas,
    row_seeds,
    banned,
    denoise=denoise,
    options=options,
    steps=steps,
    temperature=temperature,
    codes=codes,
    rows=rows,
  ):
    canvases.append(state.canvas)
    step_maps.append(state.step_map)
    commit_confidence.append(state.confidence)
    if stats is not None:
      confidence.append(stats.confidence)
      entropy.append(stats.entropy)
    if state.alive is not None:
      alive.append(jnp.sum(state.alive, axis=-1))
  no_steps = np.zeros((0, *canvases[0].shape), np.float32)  # nothing was masked
  return Trace(
    canvas=_stack(canvases),
    commit_confidence=_stack(commit_confidence),
    confidence=_stack(confidence) if confidence else no_steps,
    entropy=_stack(entropy) if entropy else no_steps,
    step_map=np.asarray(step_maps[-1]),
    alive=_stack(alive) if alive else None,
    mask_id=options.mask_id,
  )


def _stack(arrays: list[jax.Array]) -> np.ndarray:
  return np.stack(jax.device_get(arrays))
