"""What a decoder asks of a model: one function from a prompt and a canvas to logits.

    params, prompt [B, P], canvas [B, L]  ->  raw logits [B, L, V]        logit i predicts the token at position i

The logits are raw: nothing is banned in them. Whoever draws tokens from them passes `banned`, the vocabulary rows that
may never be produced (MASK and other specials, and the rows that only pad the vocabulary to a round number).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.models.denoiser import LOWEST_LOGIT

Params = Any  # a pytree of arrays
Denoiser = Callable[[Params, Int[Array, "B P"], Int[Array, "B L"]], Float[Array, "B L V"]]


@dataclass(frozen=True)
class GuidedDenoiser:
  """Classifier-free guidance: uncond + (scale + 1) (cond - uncond), as LLaDA defines it (arXiv 2502.09992, appendix).

  The unconditional half reads the canvas behind a prompt of MASKs; padding stays padding. Both halves are one pass of
  twice the rows. The guided logits choose the tokens and are what policies judge. Tokens given in the canvas are a
  part of the answer here, and stay visible in both halves.
  """

  denoise: Denoiser
  scale: float
  mask_id: int
  pad_id: int

  def __post_init__(self):
    if not self.scale >= 0.0:
      raise ValueError(f"GuidedDenoiser.scale is {self.scale}; it must be 0 (no guidance) or more")

  def __call__(self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> Float[Array, "B L V"]:
    hidden = jnp.where(prompt == self.pad_id, prompt, self.mask_id)
    both = self.denoise(params, jnp.concatenate([prompt, hidden]), jnp.concatenate([canvas, canvas]))
    with_prompt, without = jnp.split(both, 2)
    return without + (self.scale + 1.0) * (with_prompt - without)


def banned_tokens(padded_size: int, size: int, never: Iterable[int]) -> Bool[Array, "V"]:
  """Marks the vocabulary rows that may never be produced: rows from `size` on, and the ids in `never`."""
  never = jnp.asarray(list(never), jnp.int32)
  return (jnp.arange(padded_size) >= size).at[never].set(True)


def allowed_logits(logits: Float[Array, "B L V"], banned: Bool[Array, "V"]) -> Float[Array, "B L V"]:
  """Logits in float32, -inf for banned tokens."""
  return jnp.where(banned[None, None], -jnp.inf, jnp.maximum(logits.astype(jnp.float32), LOWEST_LOGIT))


def log_probabilities(logits: Float[Array, "B L V"], banned: Bool[Array, "V"]) -> Float[Array, "B L V"]:
  """Normalises logits in float32 over the tokens that are not banned; banned tokens get -inf."""
  return jax.nn.log_softmax(allowed_logits(logits, banned), axis=-1)


def probability_of(log_probs: Float[Array, "B L V"], tokens: Int[Array, "B L"]) -> Float[Array, "B L"]:
  """The probability of one token a position."""
  return jnp.exp(jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0])
