"""Attention: who may see whom (the six patterns), and the reference computation.

A pattern is a rule over two token layouts, never a stored matrix, so that the same rule serves training, decoding
against a cache (queries and keys differ) and a kernel that skips empty tiles. With block size 2 (rows ask):

    causal      bidirectional   block_causal    two_stream on [x_t | x_0]
    1 . . .     1 1 1 1         1 1 . .         x_t:  1 1 . . | . . . .   a noisy block sees itself
    1 1 . .     1 1 1 1         1 1 . .               1 1 . . | . . . .
    1 1 1 .     1 1 1 1         1 1 1 1               . . 1 1 | 1 1 . .   and every CLEAN block before it
    1 1 1 1     1 1 1 1         1 1 1 1               . . 1 1 | 1 1 . .
                                                x_0:  . . . . | 1 1 . .   the clean stream is block-causal
                                                      . . . . | 1 1 . .
                                                      . . . . | 1 1 1 1
                                                      . . . . | 1 1 1 1

    prefix (prompt of 2, canvas of 2)   prefix_causal
    1 1 . .                             1 1 . .         the prompt sees itself alone, whatever the canvas holds
    1 1 . .                             1 1 . .
    1 1 1 1                             1 1 1 .         the canvas, marked noisy, sees the prompt and itself,
    1 1 1 1                             1 1 1 1         or what stands before it

Block diffusion and its two-stream training mask: BD3-LM (arXiv 2503.09573).
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.models.config import PATTERNS


@struct.dataclass
class Layout:
  """Where every token of a sequence stands.

  position: index in the unpadded sequence; blocks are aligned to position 0. The two streams repeat it.
  segment: which packed document the token belongs to, from 1; 0 is padding, which nothing valid sees.
  stream: 0 for clean tokens; from 1 on for noisy ones: the x_t half of a two-stream sequence, and the canvas behind a
    prefix. A two-stream sequence may hold several noisy copies of a block, a stream each, that do not see one another.
    Other patterns ignore it.
  """

  position: Int[Array, "B T"]
  segment: Int[Array, "B T"]
  stream: Int[Array, "B T"]


def padded_layout(valid: Bool[Array, "B T"]) -> Layout:
  """One document a row; positions count valid tokens only, so left padding moves nothing."""
  position = jnp.maximum(jnp.cumsum(valid, axis=-1) - 1, 0)
  return Layout(position.astype(jnp.int32), valid.astype(jnp.int32), jnp.zeros_like(valid, jnp.int32))


def two_stream_layout(clean: Layout) -> Layout:
  """Doubles the layout of x_0 into that of [x_t ; x_0]: same positions and segments, first half noisy."""
  twice = lambda x: jnp.concatenate([x, x], axis=-1)
  stream = jnp.concatenate([jnp.ones_like(clean.stream), jnp.zeros_like(clean.stream)], axis=-1)
  return Layout(twice(clean.position), twice(clean.segment), stream)


def attention_mask(pattern: str, query: Layout, key: Layout, block_size: int = 1) -> Bool[Array, "B Q K"]:
  """Which keys each query may attend to.

  Args:
    pattern: causal, bidirectional, prefix, prefix_causal, block_causal or two_stream.
    query: layout of the asking tokens.
    key: layout of the answering tokens (the same as `query` without a cache).
    block_size: tokens a block, for block_causal and two_stream.

  Returns:
    True where attention is allowed. Rows of padding queries see the padding, so that no softmax is empty.

  Raises:
    ValueError: unknown pattern, or a block size below 1.
  """
  if block_size < 1:
    raise ValueError(f"block_size is at least 1, not {block_size}")
  asks, answers = lambda x: x[:, :, None], lambda x: x[:, None, :]
  same_document = asks(query.segment) == answers(key.segment)
  if pattern == "bidirectional":
    return same_document
  streams = asks(query.stream), answers(key.stream)
  return same_document & visible(pattern, asks(query.position), answers(key.position), block_size, *streams)


def visible(
  pattern: str, q_position: Any, k_position: Any, block_size: int = 1, q_stream: Any = None, k_stream: Any = None
) -> Any:
  """The rule of a pattern inside one document, over arrays of NumPy or JAX that broadcast against each other.

  Raises:
    ValueError: unknown pattern.
  """
  if pattern == "bidirectional":
    return (k_position >= 0) & (q_position >= 0)
  if pattern == "prefix":
    return (q_stream > 0) | (k_stream == 0)
  if pattern == "prefix_causal":
    return (k_stream == 0) | (q_stream > 0) & (k_position <= q_position)
  if pattern == "causal":
    return k_position <= q_position
  q_block, k_block = q_position // block_size, k_position // block_size
  if pattern == "block_causal":
    return k_block <= q_block
  if pattern == "two_stream":
    own_noisy_block = (q_stream > 0) & (k_stream == q_stream) & (k_block == q_block)
    clean_blocks_before = (q_stream > 0) & (k_stream == 0) & (k_block < q_block)
    clean_on_clean = (q_stream == 0) & (k_stream == 0) & (k_block <= q_block)
    return own_noisy_block | clean_blocks_before | clean_on_clean
  raise ValueError(f"attention pattern is one of {', '.join(PATTERNS)}, not {pattern!r}")


def rope_angles(position: Int[Array, "*T"], head_dim: int, theta: float) -> tuple[Array, Array]:
  """Cosine and sine of every position's angles, [head_dim / 2, *T], in float32 (RoFormer, arXiv 2104.09864)."""
  half = head_dim // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = frequency.reshape((half,) + (1,) * position.ndim) * position.astype(jnp.float32)[None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate_features(x: Float[Array, "H K *T"], angles: tuple[Array, Array]) -> Float[Array, "H K *T"]:
  """Rotary position embedding, half-split ("rotate half") layout; angles as `rope_angles` gives them."""
  return _rotate(x, *(angle[None] for angle in angles), axis=1)


def rope(x: Float[Array, "B T H K"], position: Int[Array, "B T"], theta: float) -> Float[Array, "B T H K"]:
  """The same, token-major."""
  angles = rope_angles(position, x.shape[-1], theta)
  return _rotate(x, *(jnp.moveaxis(angle, 0, -1)[:, :, None] for angle in angles), axis=3)


def _rotate(x: Array, cos: Array, sin: Array, *, axis: int) -> Array:
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=axis)
  return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=axis).astype(x.dtype)


def attend(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B S G K"],
  value: Float[Array, "B S G K"],
  mask: Bool[Array, "B Q S"],
) -> Float[Array, "B Q H K"]:
  """Reference attention: scaled dot products, float32 softmax, grouped heads (query head h reads group h // (H/G))."""
  return jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, :, :])
