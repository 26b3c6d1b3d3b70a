"""The two simplest decoders, uncached, exactly as the reference implementations define them.

They show the conventions (which logit predicts which token, what a schedule commits, how padding and EOS behave) with
nothing else around, and they are what faster decoders are compared with.

    autoregressive   prompt t1 t2 .. | .        causal, one token a forward pass, read off the last position
    LLaDA            prompt | M 7 M 9 | M M M    bidirectional; a schedule of blocks; the most confident positions first
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from diffgr_jax.models.attention import Layout, padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, bind

# --- autoregressive ---


@functools.partial(jax.jit, static_argnames=("config",))
def _next_logits(
  params: Params, tokens: Int[Array, "B T"], prompt_valid: Bool[Array, "B T"], length: Int[Array, ""], config
) -> Float[Array, "B V"]:
  """Logits of the token at `length`; what stands from there on is not seen."""
  valid = prompt_valid & (jnp.arange(tokens.shape[1]) < length)[None, :]
  model = bind(config, params)
  hidden = model(tokens, padded_layout(valid), pattern="causal")
  return model.logits(jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1, keepdims=False))


def decode_autoregressive(
  params: Params,
  config: TransformerConfig,
  prompt: Int[np.ndarray, "B P"],
  valid: Bool[np.ndarray, "B P"],
  *,
  max_new_tokens: int,
  pad_id: int,
  eos_id: int | None = None,
  vocab_size: int | None = None,
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "S B V"]]:
  """Greedy decoding of left-padded prompts, one whole forward pass a token.

  A row that emitted `eos_id` keeps it and is filled with `pad_id`; decoding ends early when every row has finished.
  Embedding rows from `vocab_size` on are padding and never chosen (None: all rows are in use).

  Returns:
    Prompt and new tokens (padded as the prompt was), and the raw logits of each of the S steps.
  """
  batch, length = prompt.shape
  tokens = np.concatenate([prompt, np.full((batch, max_new_tokens), pad_id, prompt.dtype)], axis=1)
  visible = np.concatenate([valid, np.ones((batch, max_new_tokens), bool)], axis=1)
  finished, logits = np.zeros(batch, bool), []
  for end in range(length, length + max_new_tokens):
    logits.append(np.asarray(_next_logits(params, tokens, visible, jnp.int32(end), config)))
    tokens[:, end] = np.where(finished, pad_id, logits[-1][:, :vocab_size].argmax(axis=-1))
    finished |= tokens[:, end] == eos_id
    if finished.all():
      return tokens[:, : end + 1], np.stack(logits)
  return tokens, np.stack(logits)


# --- LLaDA ---


def llada_schedule(masks: Int[np.ndarray, "B"], steps: int) -> Int[np.ndarray, "S B"]:
  """How many positions each step commits, per row: evenly, the remainder in the first steps (arXiv 2502.09992)."""
  return masks[None, :] // steps + (np.arange(steps)[:, None] < masks[None, :] % steps)


@functools.partial(jax.jit, static_argnames=("config", "mask_id", "vocab_size", "guided"))
def _llada_step(
  params: Params,
  canvas: Int[Array, "B T"],
  unconditional: Int[Array, "B T"],
  valid: Bool[Array, "B T"],
  candidates: Bool[Array, "B T"],
  count: Int[Array, "B"],
  cfg_scale: Float[Array, ""],
  config: TransformerConfig,
  mask_id: int,
  vocab_size: int | None,
  guided: bool,
) -> Int[Array, "B T"]:
  """One forward pass (two with guidance); the `count` most confident candidates of each row are written."""
  position = jnp.broadcast_to(jnp.arange(canvas.shape[1], dtype=jnp.int32), canvas.shape)
  layout = Layout(position, valid.astype(jnp.int32), jnp.zeros_like(valid))
  model = bind(config, params)
  forward = lambda tokens: model.logits(model(tokens, layout, pattern="bidirectional"))[..., :vocab_size]
  logits = forward(canvas)
  if guided:
    without = forward(unconditional)
    logits = without + (cfg_scale + 1.0) * (logits - without)
  token = jnp.argmax(logits, axis=-1).astype(canvas.dtype)
  confidence = jnp.max(jax.nn.softmax(logits, axis=-1), axis=-1)
  candidates = candidates & (canvas == mask_id)
  order = jnp.argsort(jnp.where(candidates, -confidence, jnp.inf), axis=-1)
  rank = jnp.argsort(order, axis=-1)
  return jnp.where(candidates & (rank < count[:, None]), token, canvas)


def decode_llada(
  params: Params,
  config: TransformerConfig,
  prompt: Int[np.ndarray, "B P"],
  valid: Bool[np.ndarray, "B P"],
  *,
  mask_id: int,
  gen_length: int,
  block_length: int,
  steps: int,
  cfg_scale: float = 0.0,
  vocab_size: int | None = None,
) -> Int[np.ndarray, "S B T"]:
  """LLaDA's low-confidence remasking at temperature 0 (arXiv 2502.09992, algorithm 5, in blocks).

  The block is a schedule, not an attention pattern: every forward pass sees the whole canvas. With `cfg_scale` w > 0 a
  second pass sees the prompt masked, and the logits are uncond + (w + 1) (cond - uncond). Embedding rows from
  `vocab_size` on are padding and never chosen (None: all rows are in use).

  Returns:
    The canvas (prompt included) before every forward pass, then the final one.

  Raises:
    ValueError: blocks that do not divide the length, or steps that the blocks do not divide.
  """
  if gen_length % block_length or steps % (gen_length // block_length):
    raise ValueError(
      f"gen_length {gen_length} must be a multiple of block_length {block_length}, and steps {steps} of the blocks"
    )
  batch, start = prompt.shape
  canvas = np.concatenate([prompt, np.full((batch, gen_length), mask_id, prompt.dtype)], axis=1)
  visible = np.concatenate([valid, np.ones((batch, gen_length), bool)], axis=1)
  given, column = canvas != mask_id, np.arange(canvas.shape[1])
  history = [canvas]
  for block_end in range(start + block_length, canvas.shape[1] + 1, block_length):
    masks = (canvas[:, block_end - block_length : block_end] == mask_id).sum(axis=1)
    candidates = np.broadcast_to(column < block_end, canvas.shape)
    for count in llada_schedule(masks, steps * block_length // gen_length):
      canvas = np.asarray(
        _llada_step(
          params,
          canvas,
          np.where(given, mask_id, canvas),
          visible,
          candidates,
          count.astype(np.int32),
          jnp.float32(cfg_scale),
          config,
          mask_id,
          vocab_size,
          cfg_scale > 0,
        )
      )
      history.append(canvas)
  return np.stack(history)
