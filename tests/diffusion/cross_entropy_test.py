"""Cross-entropy against float64 numpy, its gradients, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion import cross_entropy


def reference(hidden, unembedding, bias, targets, valid_size, cotangent):
  """Value and gradients in float64, with all logits."""
  hidden, unembedding = (np.asarray(x, np.float64) for x in (hidden, unembedding))
  logits = hidden @ unembedding.T + (0 if bias is None else np.asarray(bias, np.float64))
  logits[:, valid_size:] = -np.inf
  top = logits.max(axis=1, keepdims=True)
  log_sum = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
  rows = np.arange(len(hidden))
  d_logits = np.exp(logits - log_sum)
  d_logits[rows, targets] -= 1
  d_logits *= np.asarray(cotangent, np.float64)[:, None]
  gradients = (d_logits @ unembedding, d_logits.T @ hidden, d_logits.sum(axis=0))
  return log_sum[:, 0] - logits[rows, targets], gradients


def problem(tokens, width, rows, valid_size, seed, scale=1.0):
  rng = np.random.default_rng(seed)
  hidden = jnp.asarray(rng.normal(size=(tokens, width)) * scale, jnp.float32)
  unembedding = jnp.asarray(rng.normal(size=(rows, width)), jnp.float32)
  bias = jnp.asarray(rng.normal(size=rows), jnp.float32)
  targets = jnp.asarray(rng.integers(0, valid_size, tokens), jnp.int32)
  return hidden, unembedding, bias, targets, jnp.asarray(rng.normal(size=tokens), jnp.float32)


def test_token_nll_is_the_negative_log_softmax():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, 7)) * 20
  targets = rng.integers(0, 5, (2, 3))
  for size in (5, 7):
    cut = logits[..., :size]
    top = cut.max(axis=-1)
    expected = top + np.log(np.exp(cut - top[..., None]).sum(-1))
    expected -= np.take_along_axis(cut, targets[..., None], -1)[..., 0]
    actual = cross_entropy.token_nll(
      jnp.asarray(logits, jnp.float32), jnp.asarray(targets), None if size == 7 else size
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "rows, valid_size, chunk",
  [
    (12, 12, 4),  # divides
    (13, 13, 4),  # does not: the last chunk overlaps the one before
    (16, 9, 4),  # padding rows, of which some are never visited
    (16, 13, 5),
    (7, 5, 64),  # one chunk wider than the vocabulary
    (6, 6, 1),
  ],
)
@pytest.mark.parametrize("with_bias", [True, False])
def test_value_and_gradients_are_those_of_all_logits(rows, valid_size, chunk, with_bias):
  hidden, unembedding, bias, targets, cotangent = problem(9, 5, rows, valid_size, seed=rows + chunk, scale=4.0)
  bias = bias if with_bias else None
  nll, pullback = jax.vjp(
    lambda h, u, b: cross_entropy.chunked_token_nll(h, u, b, targets, valid_size, chunk),
    hidden,
    unembedding,
    bias,
  )
  d_hidden, d_unembedding, d_bias = pullback(cotangent)
  expected, (e_hidden, e_unembedding, e_bias) = reference(
    hidden, unembedding, bias, np.asarray(targets), valid_size, cotangent
  )
  np.testing.assert_allclose(nll, expected, rtol=2e-6, atol=2e-5)
  np.testing.assert_allclose(d_hidden, e_hidden, rtol=1e-4, atol=2e-5)
  np.testing.assert_allclose(d_unembedding, e_unembedding, rtol=1e-4, atol=2e-5)
  assert not np.asarray(d_unembedding[valid_size:]).any()
  if with_bias:
    np.testing.assert_allclose(d_bias, e_bias, rtol=1e-4, atol=2e-5)
  else:
    assert d_bias is None


def test_large_logits_do_not_overflow():
  hidden, unembedding, bias, targets, cotangent = problem(4, 3, 10, 10, seed=3, scale=1e4)
  nll, pullback = jax.vjp(lambda h: cross_entropy.chunked_token_nll(h, unembedding, bias, targets, 10, 3), hidden)
  expected, (e_hidden, _, _) = reference(hidden, unembedding, bias, np.asarray(targets), 10, cotangent)
  np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-2)
  np.testing.assert_allclose(pullback(cotangent)[0], e_hidden, rtol=1e-3, atol=1e-3)


def test_bfloat16_inputs_have_float32_logits_and_bfloat16_gradients():
  hidden, unembedding, bias, targets, cotangent = problem(8, 16, 40, 37, seed=4)
  hidden, unembedding, bias = (x.astype(jnp.bfloat16) for x in (hidden, unembedding, bias))
  nll, pullback = jax.vjp(
    lambda h, u, b: cross_entropy.chunked_token_nll(h, u, b, targets, 37, 16), hidden, unembedding, bias
  )
  gradients = pullback(cotangent)
  expected, e_gradients = reference(hidden, unembedding, bias, np.asarray(targets), 37, cotangent)
  assert nll.dtype == jnp.float32
  np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-5)  # far below bfloat16's 1/256: summed in float32
  for actual, wanted in zip(gradients, e_gradients, strict=True):
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(np.float32), wanted, rtol=2**-7, atol=1e-3)  # one rounding


def test_no_logits_are_ever_rounded_to_bfloat16():
  """In the program itself: a compiler may keep more digits than it is asked for, so values cannot tell."""
  hidden, unembedding, bias, targets, _ = problem(8, 16, 40, 37, seed=4)
  hidden, unembedding, bias = (x.astype(jnp.bfloat16) for x in (hidden, unembedding, bias))
  loss = lambda h, u, b: cross_entropy.chunked_token_nll(h, u, b, targets, 37, 12).sum()
  program = str(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1, 2)))(hidden, unembedding, bias))
  assert "f32[8,1,12]" in program  # tokens x devices x chunk
  assert "bf16[8,1,12]" not in program


def test_a_target_in_the_padding_is_infinite_and_its_zero_cotangent_harmless():
  hidden, unembedding, bias, targets, cotangent = problem(3, 4, 12, 8, seed=5)
  targets = targets.at[1].set(9)
  nll, pullback = jax.vjp(lambda h: cross_entropy.chunked_token_nll(h, unembedding, bias, targets, 8, 4), hidden)
  assert np.isinf(nll[1])
  assert np.isfinite(np.asarray(nll)[[0, 2]]).all()
  d_hidden = pullback(cotangent.at[1].set(0.0))[0]
  assert not np.asarray(d_hidden[1]).any()


def test_neither_pass_holds_all_logits():
  tokens, width, rows, chunk = 256, 8, 16_384, 512
  all_logits = tokens * rows * 4
  shapes = (
    jax.ShapeDtypeStruct((tokens, width), jnp.float32),
    jax.ShapeDtypeStruct((rows, width), jnp.float32),
    jax.ShapeDtypeStruct((tokens,), jnp.int32),
  )

  def chunked(hidden, unembedding, targets):
    return cross_entropy.chunked_token_nll(hidden, unembedding, None, targets, rows, chunk).sum()

  def plain(hidden, unembedding, targets):
    return cross_entropy.token_nll((hidden @ unembedding.T)[None], targets[None]).sum()

  def held(loss):
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert held(chunked) < all_logits / 4
  assert held(plain) >= all_logits


@pytest.mark.parametrize("valid_size, chunk, message", [(0, 4, "valid_size"), (11, 4, "valid_size"), (10, 0, "chunk")])
def test_impossible_sizes_are_refused(valid_size, chunk, message):
  hidden, unembedding, bias, targets, _ = problem(2, 3, 10, 10, seed=6)
  with pytest.raises(ValueError, match=message):
    cross_entropy.chunked_token_nll(hidden, unembedding, bias, targets, valid_size, chunk)
