"""The attention patterns against the drawings of the design; packing, padding, RoPE, the reference computation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import (
  Layout,
  attend,
  attend_in_order,
  attend_two_stream,
  attention_mask,
  padded_layout,
  rope,
  two_stream_layout,
)

DRAWINGS = {
  "causal": """
    1 . . .
    1 1 . .
    1 1 1 .
    1 1 1 1""",
  "bidirectional": """
    1 1 1 1
    1 1 1 1
    1 1 1 1
    1 1 1 1""",
  "block_causal": """
    1 1 . .
    1 1 . .
    1 1 1 1
    1 1 1 1""",
  "prefix": """
    1 1 . .
    1 1 . .
    1 1 1 1
    1 1 1 1""",
  "prefix_causal": """
    1 1 . .
    1 1 . .
    1 1 1 .
    1 1 1 1""",
  "two_stream": """
    1 1 . . . . . .
    1 1 . . . . . .
    . . 1 1 1 1 . .
    . . 1 1 1 1 . .
    . . . . 1 1 . .
    . . . . 1 1 . .
    . . . . 1 1 1 1
    . . . . 1 1 1 1""",
}


def plain_layout(length, segment=None):
  segment = jnp.ones((1, length), jnp.int32) if segment is None else jnp.asarray([segment], jnp.int32)
  return Layout(jnp.arange(length)[None], segment, jnp.zeros((1, length), jnp.int32))


def drawn(text):
  return np.array([[cell == "1" for cell in line.split()] for line in text.strip().splitlines()])


@pytest.mark.parametrize("pattern", DRAWINGS)
def test_pattern_is_as_drawn(pattern):
  layout = plain_layout(4)
  layout = two_stream_layout(layout) if pattern == "two_stream" else layout
  if pattern.startswith("prefix"):
    layout = dataclasses.replace(layout, stream=(jnp.arange(4)[None] >= 2).astype(jnp.int32))
  np.testing.assert_array_equal(attention_mask(pattern, layout, layout, block_size=2)[0], drawn(DRAWINGS[pattern]))


@pytest.mark.parametrize("pattern", ["causal", "bidirectional", "block_causal", "two_stream"])
@pytest.mark.parametrize("block_size", [1, 3, 4])
def test_packed_and_padded_patterns_agree_with_brute_force(pattern, block_size):
  # two documents of lengths 5 and 4, each with its own positions, then two padding tokens
  position = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0]])
  segment = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]])
  clean = Layout(jnp.asarray(position), jnp.asarray(segment), jnp.zeros((1, 11), jnp.int32))
  layout = two_stream_layout(clean) if pattern == "two_stream" else clean
  where, whose, noisy = (np.asarray(x[0]) for x in (layout.position, layout.segment, layout.stream))

  def allowed(q, k):
    if whose[q] != whose[k]:
      return False
    q_block, k_block = where[q] // block_size, where[k] // block_size
    if pattern == "two_stream" and noisy[q]:
      return (k_block == q_block) if noisy[k] else (k_block < q_block)
    if pattern == "two_stream":
      return not noisy[k] and k_block <= q_block
    return {"bidirectional": True, "causal": where[k] <= where[q], "block_causal": k_block <= q_block}[pattern]

  expected = [[allowed(q, k) for k in range(len(where))] for q in range(len(where))]
  np.testing.assert_array_equal(attention_mask(pattern, layout, layout, block_size)[0], expected)


def test_noisy_copies_of_a_block_do_not_see_one_another():
  clean = plain_layout(4)
  # the second block twice, in streams of their own, then x_0
  join = lambda first, second: jnp.concatenate([first[:, 2:], first[:, 2:], second], axis=1)
  stream = jnp.asarray([[1, 1, 2, 2, 0, 0, 0, 0]])
  layout = Layout(join(clean.position, clean.position), join(clean.segment, clean.segment), stream)
  expected = drawn(
    """
    1 1 . . 1 1 . .
    1 1 . . 1 1 . .
    . . 1 1 1 1 . .
    . . 1 1 1 1 . .
    . . . . 1 1 . .
    . . . . 1 1 . .
    . . . . 1 1 1 1
    . . . . 1 1 1 1"""
  )
  np.testing.assert_array_equal(attention_mask("two_stream", layout, layout, block_size=2)[0], expected)


def test_block_size_one_is_causal_and_a_huge_block_is_bidirectional():
  layout = plain_layout(6)
  mask = lambda *args: np.asarray(attention_mask(*args)[0])
  np.testing.assert_array_equal(mask("block_causal", layout, layout, 1), mask("causal", layout, layout))
  np.testing.assert_array_equal(mask("block_causal", layout, layout, 6), mask("bidirectional", layout, layout))


def test_left_padding_moves_no_position_and_no_block():
  valid = jnp.asarray([[False, False, True, True, True]])
  layout = padded_layout(valid)
  np.testing.assert_array_equal(layout.position[0, 2:], [0, 1, 2])
  mask = np.asarray(attention_mask("block_causal", layout, layout, 2)[0])
  np.testing.assert_array_equal(mask[2:, 2:], drawn("1 1 .\n1 1 .\n1 1 1"))
  assert not mask[2:, :2].any()
  assert mask[:2].any(axis=-1).all()  # a padding query still sees something: no empty softmax


def test_wrong_pattern_and_block_size_are_named():
  layout = plain_layout(2)
  with pytest.raises(ValueError, match=r"one of causal.*not 'diagonal'"):
    attention_mask("diagonal", layout, layout)
  with pytest.raises(ValueError, match="at least 1, not 0"):
    attention_mask("causal", layout, layout, 0)


def test_attend_agrees_with_float64_numpy():
  rng = np.random.default_rng(3)
  q, k, v = (rng.normal(size=(2, 5, heads, 8)).astype(np.float32) for heads in (6, 2, 2))
  mask = rng.random((2, 5, 5)) < 0.5
  mask[:, np.arange(5), np.arange(5)] = True
  expected = np.zeros_like(q, dtype=np.float64)
  for batch in range(2):
    for head in range(6):
      scores = q[batch, :, head].astype(np.float64) @ k[batch, :, head // 3].T.astype(np.float64) / np.sqrt(8)
      weights = np.where(mask[batch], np.exp(scores - scores.max()), 0)
      expected[batch, :, head] = weights / weights.sum(-1, keepdims=True) @ v[batch, :, head // 3]
  np.testing.assert_allclose(attend(*map(jnp.asarray, (q, k, v, mask))), expected, atol=1e-5)


def in_order(lengths, size, total):
  """Documents that begin at multiples of `size`, then padding."""
  position, segment, at = np.zeros((1, total), np.int32), np.zeros((1, total), np.int32), 0
  for number, length in enumerate(lengths, start=1):
    position[0, at : at + length], segment[0, at : at + length] = np.arange(length), number
    at += -(-length // size) * size
  return Layout(jnp.asarray(position), jnp.asarray(segment), jnp.zeros((1, total), jnp.int32))


def outputs_and_gradients(mix, layout, seed=0):
  rng = np.random.default_rng(seed)
  arrays = [jnp.asarray(rng.normal(size=(1, layout.position.shape[1], h, 8)), jnp.float32) for h in (6, 2, 2)]
  valid = (layout.segment > 0)[:, :, None, None]
  total = lambda *arrays: (jnp.where(valid, mix(*arrays), 0.0) ** 2).sum()
  return jnp.where(valid, mix(*arrays), 0.0), jax.grad(total, argnums=(0, 1, 2))(*arrays)


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=3e-5), a, b)


@pytest.mark.parametrize("pattern, size", [("causal", 1), ("block_causal", 16)])
def test_in_order_is_the_reference(pattern, size):
  layout = in_order((90, 200, 17), size, 337)  # three whole parts, and some
  mask = attention_mask(pattern, layout, layout, size)
  found = outputs_and_gradients(lambda *x: attend_in_order(*x, mask, size), layout)
  close(found, outputs_and_gradients(lambda *x: attend(*x, mask), layout))


def test_two_stream_in_blocks_is_the_reference():
  size, clean = 16, in_order((90, 200, 17), 16, 336)
  blocks = np.array([2, 2, 3, 7, 15, 15, 15, 20, 20])  # of the clean row, some several times; the last two are padding
  at = (blocks[:, None] * size + np.arange(size)).reshape(1, -1)
  take = lambda x: jnp.asarray(np.asarray(x)[0][at])
  stream = jnp.asarray(np.arange(1, len(blocks) + 1).repeat(size)[None], jnp.int32)
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  layout = Layout(
    join(take(clean.position), clean.position), join(take(clean.segment), clean.segment), join(stream, clean.stream)
  )
  # A block that a message fills in part has padding in it here, which packed rows have not: it is left out.
  whole = layout.segment.reshape(1, -1, size).all(axis=-1).repeat(size, axis=-1)
  layout = dataclasses.replace(layout, segment=layout.segment * whole)
  assert int(whole.sum()) > 300
  found = outputs_and_gradients(lambda *x: attend_two_stream(*x, layout, at.shape[1], size), layout)
  mask = attention_mask("two_stream", layout, layout, size)
  close(found, outputs_and_gradients(lambda *x: attend(*x, mask), layout))


def test_rope_rotates_pairs_and_keeps_relative_products():
  rng = np.random.default_rng(4)
  x = jnp.asarray(rng.normal(size=(1, 1, 2, 8)), jnp.float32)
  at = lambda p: np.asarray(rope(x, jnp.asarray([[p]]), 100.0)[0, 0], np.float64)
  pair = np.asarray(x[0, 0], np.float64)
  complex_x = pair[:, :4] + 1j * pair[:, 4:]
  angles = 7 * 100.0 ** (-np.arange(4) / 4)
  turned = complex_x * np.exp(1j * angles)
  np.testing.assert_allclose(at(7), np.concatenate([turned.real, turned.imag], -1), atol=1e-5)
  np.testing.assert_allclose(at(3)[0] @ at(5)[1], at(13)[0] @ at(15)[1], atol=1e-4)  # only the distance counts
  assert jax.numpy.allclose(rope(x, jnp.zeros((1, 1), jnp.int32), 100.0), x)
