"""What the prefix and dual caches cost in quality: share of tokens equal to those of the exact decoder.

    python -m benchmarks.approximate_caches tests/golden/llada tests/golden/dream

Canvases of 32 in blocks of 8, confidence policy, one token a step, greedy; prompts of random tokens. A line for
each checkpoint, cache and refresh: the share of equal tokens, and of canvases equal in full.
"""

import sys

import numpy as np

from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.canvas_cache import CanvasCache, decode_canvas_cached
from diffgr_jax.decoding.denoiser import banned_tokens
from diffgr_jax.decoding.policies import Confidence
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.training.pretrained import load_pretrained

ROWS, PROMPT, LENGTH, BLOCK = 64, 12, 32, 8


def measure(folder: str) -> None:
  spec, params = load_pretrained(folder)
  assert spec.mask_id is not None
  pad_id = 0  # no prompt holds it
  prompt = np.random.default_rng(0).integers(1, 100, (ROWS, PROMPT))
  canvas = np.full((ROWS, LENGTH), spec.mask_id, np.int32)
  inputs = (params, prompt, canvas, np.arange(ROWS), banned_tokens(spec.config.vocab_size, spec.vocab_size, []))
  denoiser = CanvasDenoiser(spec.config, pad_id)
  options = DecodeOptions(Confidence(), spec.mask_id, block_length=BLOCK)
  exact = np.asarray(decode_canvas(*inputs, denoise=denoiser, options=options, steps=LENGTH).canvas)
  for kind, refresh in (("prefix", 0), ("dual", 0), ("prefix", 4), ("dual", 4), ("dual", 1)):
    state = decode_canvas_cached(
      *inputs, denoiser=denoiser, options=options, cache=CanvasCache(kind, refresh), steps=LENGTH
    )
    same = np.asarray(state.canvas) == exact
    print(
      f"{spec.family:<6} {kind:<6} refresh {refresh}: {same.mean():.1%} of {same.size} tokens equal,"
      f" {same.all(axis=1).mean():.1%} of {ROWS} canvases",
      flush=True,
    )


if __name__ == "__main__":
  for folder in sys.argv[1:]:
    measure(folder)
