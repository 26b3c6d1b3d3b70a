"""What a decoder asks of a model: one function from a prompt and a canvas to logits.

    params, prompt [B, P], canvas [B, L]  ->  raw logits [B, L, V]        logit i predicts the token at position i

The logits are raw: nothing is banned in them. Whoever draws tokens from them passes `banned`, the vocabulary rows that
may never be produced (MASK and other specials, and the rows that only pad the vocabulary to a round number).
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Params = Any  # a pytree of arrays
Denoiser = Callable[[Params, Int[Array, "B P"], Int[Array, "B L"]], Float[Array, "B L V"]]

LOWEST_LOGIT = -1e30  # stands for a model's own -inf, so that a distribution over the allowed tokens always exists


def banned_tokens(padded_size: int, size: int, never: Iterable[int]) -> Bool[Array, "V"]:
  """Marks the vocabulary rows that may never be produced: rows from `size` on, and the ids in `never`."""
  never = jnp.asarray(list(never), jnp.int32)
  return (jnp.arange(padded_size) >= size).at[never].set(True)


def log_probabilities(logits: Float[Array, "B L V"], banned: Bool[Array, "V"]) -> Float[Array, "B L V"]:
  """Normalises logits in float32 over the tokens that are not banned; banned tokens get -inf."""
  logits = jnp.maximum(logits.astype(jnp.float32), LOWEST_LOGIT)
  return jax.nn.log_softmax(jnp.where(banned[None, None], -jnp.inf, logits), axis=-1)
