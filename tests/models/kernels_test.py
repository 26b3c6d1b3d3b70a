"""Splash in interpret mode = the reference, forward and backward, for every pattern, packed and padded; refusals."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models import kernels
from diffgr_jax.models.attention import Layout, attend, attention_mask, padded_layout, two_stream_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.kernels import attention_of, kernel_for, pattern_mask, splash
from diffgr_jax.models.transformer import bind, init_params
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES

BLOCK = 4
LENGTH = 40
CONFIG = TransformerConfig(vocab_size=32, d_model=16, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=16)


def packed(length=LENGTH):
  """Three documents and padding a row; each begins at a multiple of the block size, and none ends there."""
  starts = np.array([[0, 12, 24, 36], [0, 16, 28, 32]])
  lengths = np.array([[10, 9, 11, 0], [15, 12, 3, 5]])
  position, segment = np.zeros((2, length), np.int32), np.zeros((2, length), np.int32)
  for row, begin, document in zip((0, 1), starts, lengths, strict=True):
    for number, (start, size) in enumerate(zip(begin, document, strict=True)):
      position[row, start : start + size] = np.arange(size)
      segment[row, start : start + size] = number + 1
  return Layout(jnp.asarray(position), jnp.asarray(segment), jnp.zeros((2, length), jnp.int32))


def qkv(length, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 3)
  return tuple(
    jax.random.normal(key, (2, length, heads, 16), dtype) for key, heads in zip(keys, (4, 2, 2), strict=True)
  )


CASES = [
  ("causal", packed()),
  ("bidirectional", packed()),
  ("bidirectional", padded_layout(jnp.arange(LENGTH)[None] >= jnp.array([[7], [0]]))),
  ("causal", padded_layout(jnp.arange(LENGTH)[None] >= jnp.array([[7], [0]]))),
  ("block_causal", packed()),
  ("two_stream", two_stream_layout(packed())),
]


@pytest.mark.parametrize("pattern, layout", CASES)
def test_splash_is_the_reference(pattern, layout):
  arrays = qkv(layout.position.shape[1])
  valid = (layout.segment > 0)[:, :, None, None]
  mask = attention_mask(pattern, layout, layout, BLOCK)

  def both(mix):
    total = lambda *arrays: (jnp.where(valid, mix(*arrays), 0.0) ** 2).sum()
    return jnp.where(valid, mix(*arrays), 0.0), jax.grad(total, argnums=(0, 1, 2))(*arrays)

  kernel = functools.partial(splash, layout=layout, pattern=pattern, block_size=BLOCK, interpret=True)
  found, expected = both(kernel), both(lambda *arrays: attend(*arrays, mask))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN's kernel runs on a GPU")
@pytest.mark.parametrize("pattern, layout", CASES)
def test_flash_is_the_reference(pattern, layout):
  """`JAX_PLATFORMS=cuda python -m pytest tests/models/kernels_test.py -k flash`, on any NVIDIA GPU from Ampere on."""
  arrays = qkv(layout.position.shape[1], jnp.bfloat16)
  valid = (layout.segment > 0)[:, :, None, None]
  model = dataclasses.replace(CONFIG, attention="flash", compute_dtype="bfloat16")

  def both(mix, *arrays):
    seen = lambda *arrays: jnp.where(valid, mix(*arrays).astype(jnp.float32), 0.0)
    return seen(*arrays), jax.grad(lambda *arrays: (seen(*arrays) ** 2).sum(), argnums=(0, 1, 2))(*arrays)

  found = both(jax.jit(attention_of(model, layout, pattern, BLOCK)), *arrays)
  mask = attention_mask(pattern, layout, layout, BLOCK)
  expected = both(lambda *arrays: attend(*arrays, mask), *(x.astype(jnp.float32) for x in arrays))
  off = lambda a, b: np.linalg.norm(np.asarray(a, np.float32) - b) / np.linalg.norm(b)
  assert max(jax.tree.leaves(jax.tree.map(off, found, expected))) < 2e-2


@pytest.mark.parametrize("pattern", ["causal", "block_causal", "two_stream"])
def test_the_rule_by_index_is_the_pattern(pattern):
  """Without packing and padding, where index and position are one: enumeration."""
  clean = padded_layout(jnp.ones((1, LENGTH), bool))
  layout = two_stream_layout(clean) if pattern == "two_stream" else clean
  length = layout.position.shape[1]
  mask = pattern_mask(pattern, length, 128, BLOCK)
  expected = attention_mask(pattern, layout, layout, BLOCK)[0]
  np.testing.assert_array_equal(mask[:length, :length], expected)
  assert mask == kernels.PatternMask(pattern, length, 128, BLOCK)
  assert mask is pattern_mask(pattern, length, 128, BLOCK)


def test_a_mesh_splits_rows_heads_and_queries():
  layout, arrays = two_stream_layout(packed()), qkv(2 * LENGTH)
  how = dict(layout=layout, pattern="two_stream", block_size=BLOCK, interpret=True)
  with jax.set_mesh(make_mesh({"fsdp": 2, "tensor": 2, "sequence": 2})):
    found = jax.jit(functools.partial(splash, rules=TRAIN_RULES, **how))(*arrays)
  valid = (layout.segment > 0)[:, :, None, None]
  np.testing.assert_allclose(jnp.where(valid, found - splash(*arrays, **how), 0.0), 0.0, atol=1e-5)


def test_the_model_runs_the_kernel_that_its_config_names(monkeypatch):
  monkeypatch.setattr(kernels, "splash", functools.partial(splash, interpret=True))
  params = jax.tree.map(lambda x: 3.0 * x, init_params(CONFIG, jax.random.key(0)))
  layout, tokens = packed(), jax.random.randint(jax.random.key(1), (2, LENGTH), 0, 32)
  run = lambda kind: bind(dataclasses.replace(CONFIG, attention=kind), params)(tokens, layout, pattern="causal")
  valid = (layout.segment > 0)[..., None]
  found, expected = (jnp.where(valid, run(kind), 0.0) for kind in ("splash", "reference"))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert not np.array_equal(found, expected)  # it was another computation


def test_what_a_kernel_cannot_serve_is_refused_and_auto_knows():
  asked = lambda kind, **how: attention_of(dataclasses.replace(CONFIG, attention=kind), packed(), **how)
  with pytest.raises(ValueError, match=r"splash' serves two_stream only where every document begins at a multiple .*4"):
    asked("splash", pattern="two_stream", block_size=4)
  with pytest.raises(ValueError, match=r"flash' needs model\.compute_dtype bfloat16, not float32"):
    asked("flash", pattern="causal")
  assert asked("splash", pattern="two_stream", block_size=4, aligned=True).func is splash
  cases = {
    ("tpu", "float32", "causal"): "splash",
    ("tpu", "bfloat16", "prefix"): "reference",
    ("tpu", "bfloat16", "prefix_causal"): "reference",
    ("gpu", "bfloat16", "prefix"): "flash",
    ("gpu", "float32", "causal"): "reference",
  }
  assert {case: kernel_for(*case) for case in cases} == cases
