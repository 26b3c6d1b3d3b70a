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
  """Reference attention: scaled dot products, float32 softmax, grouped heads (query head h reads group h // (H/G)).

  Heads are moved outwards first, which on a CPU is quicker than `jax.nn.dot_product_attention`, forward and backward
  (benchmarks/attention.py; docs/experiments.md, Speed).
  """
  query, key, value = _heads_first(query, key, value)
  return _heads_last(_weighted(_scores(query, key, mask), value))


def attend_in_order(
  query: Float[Array, "B T H K"],
  key: Float[Array, "B T G K"],
  value: Float[Array, "B T G K"],
  mask: Bool[Array, "B T T"],
  step: int = 1,
) -> Float[Array, "B T H K"]:
  """`attend` where no query sees a key behind the next multiple of `step`: what lies there is not computed.

  1 1 . .       queries in parts (here 2), each against the keys up to its own end
  1 1 . .
  1 1 1 1
  1 1 1 1
  """
  query, key, value = _heads_first(query, key, value)
  length = key.shape[2]
  width = -(-max(length // _PARTS, _LEAST_PART) // step) * step
  parts = []
  for begin in range(0, length, width):
    end = min(begin + width, length)
    scores = _scores(query[:, :, :, begin:end], key[:, :, :end], mask[:, begin:end, :end])
    parts.append(_weighted(scores, value[:, :, :end]))
  return _heads_last(jnp.concatenate(parts, axis=3))


def attend_two_stream(
  query: Float[Array, "B T H K"],
  key: Float[Array, "B T G K"],
  value: Float[Array, "B T G K"],
  layout: Layout,
  noisy: int,
  block_size: int,
) -> Float[Array, "B T H K"]:
  """`attend` for two_stream where the first `noisy` tokens are whole noisy blocks, one after another.

            own block   clean
  noisy 1   1 1 . .     1 1 . .       a noisy block against itself, and all of them against the clean stream:
        1   1 1 . .     1 1 . .       noisy blocks against one another are not computed
        2   . . 1 1     1 1 1 1
        2   . . 1 1     1 1 1 1       the clean stream by itself, in order
  """
  size = block_size
  cut = lambda part: jax.tree.map(lambda x: x[:, part], layout)
  noisy_layout, clean_layout = cut(slice(None, noisy)), cut(slice(noisy, None))
  clean_mask = attention_mask("two_stream", clean_layout, clean_layout, size)
  clean = attend_in_order(query[:, noisy:], key[:, noisy:], value[:, noisy:], clean_mask, size)

  query, key, value = _heads_first(query[:, :noisy], key, value)
  (own_key, key), (own_value, value) = (jnp.split(x, [noisy], axis=2) for x in (key, value))
  in_blocks = lambda x: x.reshape(*x.shape[:-2], -1, size, x.shape[-1])
  own = jnp.einsum("bgqnik,bgnjk->bgqnij", in_blocks(query), in_blocks(own_key), preferred_element_type=jnp.float32) * (
    query.shape[-1] ** -0.5
  )
  before = attention_mask("two_stream", noisy_layout, clean_layout, size)
  scores = _scores(query, key, before)
  scores = scores.reshape(*scores.shape[:3], -1, size, scores.shape[-1])
  highest = jax.lax.stop_gradient(jnp.maximum(own.max(-1, keepdims=True), scores.max(-1, keepdims=True)))
  own, scores = jnp.exp(own - highest), jnp.exp(scores - highest)
  total = own.sum(-1, keepdims=True) + scores.sum(-1, keepdims=True)
  how: dict[str, Any] = dict(preferred_element_type=jnp.float32)
  out = jnp.einsum("bgqnij,bgnjk->bgqnik", own.astype(value.dtype), in_blocks(own_value), **how)
  flat = scores.astype(value.dtype).reshape(*scores.shape[:2], -1, scores.shape[-1])
  out = out + jnp.einsum("bgms,bgsk->bgmk", flat, value, **how).reshape(out.shape)
  mixed = (out / total).reshape(*query.shape).astype(query.dtype)
  return jnp.concatenate([_heads_last(mixed), clean], axis=1)


_PARTS, _LEAST_PART = 4, 64  # of `attend_in_order`: so many, of so many queries at least


def _heads_first(
  query, key, value
) -> tuple[Float[Array, "B G Q T K"], Float[Array, "B G S K"], Float[Array, "B G S K"]]:
  batch, length, heads, width = query.shape
  groups = key.shape[2]
  query = query.reshape(batch, length, groups, heads // groups, width).transpose(0, 2, 3, 1, 4)
  return query, key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)


def _heads_last(x: Float[Array, "B G Q T K"]) -> Float[Array, "B T H K"]:
  batch, groups, queries, length, width = x.shape
  return x.transpose(0, 3, 1, 2, 4).reshape(batch, length, groups * queries, width)


def _scores(
  query: Float[Array, "B G Q T K"], key: Float[Array, "B G S K"], mask: Bool[Array, "B T S"]
) -> Float[Array, "B G Q T S"]:
  """Scaled products in float32, where the mask allows them; elsewhere a number that softmax makes 0."""
  batch, groups, _, _, width = query.shape
  flat = query.reshape(batch, groups, -1, width)
  scores = jnp.einsum("bgmk,bgsk->bgms", flat, key, preferred_element_type=jnp.float32) * width**-0.5
  return jnp.where(mask[:, None, None], scores.reshape(*query.shape[:4], -1), _HIDDEN)


def _weighted(scores: Float[Array, "B G Q T S"], value: Float[Array, "B G S K"]) -> Float[Array, "B G Q T K"]:
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  total = weights.sum(axis=-1, keepdims=True)
  flat = weights.astype(value.dtype).reshape(*weights.shape[:2], -1, weights.shape[-1])
  out = jnp.einsum("bgms,bgsk->bgmk", flat, value, preferred_element_type=jnp.float32)
  return (out.reshape(*weights.shape[:4], -1) / total).astype(value.dtype)


_HIDDEN = float(jnp.finfo(jnp.float32).min)
