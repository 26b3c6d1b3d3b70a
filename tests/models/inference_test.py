"""The decoders' forward pass against the transformer's, in every family, on ragged rows, whole and in parts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models import inference
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.cache import init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import abstract_params, bind

QWEN = TransformerConfig(
  vocab_size=40, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=24, qk_norm=True, pattern="causal"
)
BERT = dataclasses.replace(
  QWEN, n_kv_heads=4, head_dim=4, qk_norm=False, norm="layernorm", norm_position="post", norm_epsilon=1e-12, mlp="gelu",
  position_encoding="learned", max_positions=16, token_types=2, qkv_bias=True, out_bias=True, mlp_bias=True, head="mlm",
)  # fmt: skip
FAMILIES = {
  "qwen3": QWEN,
  "qwen2_untied": dataclasses.replace(QWEN, qk_norm=False, qkv_bias=True, tie_embeddings=False),
  "bert": BERT,
}


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), x.dtype), abstract_params(config))


def part(layout, start, stop):
  return jax.tree.map(lambda x: x[:, start:stop], layout)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pattern, block_size, cuts", [("causal", 1, (0, 5, 6, 9)), ("block_causal", 3, (0, 6, 9, 12))])
def test_cached_logits_are_those_of_one_pass(family, pattern, block_size, cuts):
  config = FAMILIES[family]
  params, rng, width = random_params(config), np.random.default_rng(1), cuts[-1]
  tokens = jnp.asarray(rng.integers(0, 40, (3, width)))
  valid = jnp.arange(width)[None] >= jnp.array([[0], [3], [0]])  # padding in whole blocks
  layout, model = padded_layout(valid), bind(config, params)
  expected = model.logits(model(tokens, layout, pattern=pattern, block_size=block_size))
  laid_out, cache = inference.decoding_params(config, params), init_cache(config, 3, width + 2)
  extend = jax.jit(inference.extend, static_argnums=0, static_argnames=("pattern", "block_size"))
  for start, stop in itertools.pairwise(cuts):
    how = dict(pattern=pattern, block_size=block_size)
    at = jnp.int32(start) if start else jnp.zeros(3, jnp.int32)
    draft, _ = extend(config, laid_out, tokens[:, start:stop] // 2, part(layout, start, stop), cache, at, **how)
    assert np.isfinite(draft).all()  # a pass whose cache is dropped changes nothing
    hidden, cache = extend(config, laid_out, tokens[:, start:stop], part(layout, start, stop), cache, at, **how)
    there = np.asarray(valid[:, start:stop])
    np.testing.assert_allclose(
      np.asarray(inference.logits(config, laid_out, hidden))[there],
      np.asarray(expected[:, start:stop])[there],
      atol=5e-5,
    )
  np.testing.assert_array_equal(cache.length, valid.sum(-1))


def test_slots_written_again_are_replaced():
  params, layout = inference.decoding_params(QWEN, random_params(QWEN)), padded_layout(jnp.ones((2, 4), bool))
  rng = np.random.default_rng(2)
  wrong, right = (jnp.asarray(rng.integers(0, 40, (2, 4))) for _ in range(2))
  cache = init_cache(QWEN, 2, 6)
  fresh, _ = inference.extend(QWEN, params, right, layout, cache, 0)
  _, cache = inference.extend(QWEN, params, wrong, layout, cache, 0)
  again, _ = inference.extend(QWEN, params, right, layout, cache, 0)
  np.testing.assert_array_equal(again, fresh)


def test_rows_that_do_not_write_keep_their_slots():
  params, layout = inference.decoding_params(QWEN, random_params(QWEN)), padded_layout(jnp.ones((2, 4), bool))
  first, second = (jnp.asarray(np.random.default_rng(s).integers(0, 40, (2, 4))) for s in (3, 4))
  _, cache = inference.extend(QWEN, params, first, layout, init_cache(QWEN, 2, 4), 0)
  writes = jnp.broadcast_to(jnp.array([[True], [False]]), (2, 4))
  _, both = inference.extend(QWEN, params, second, layout, cache, 0, writes=writes)
  _, all_rows = inference.extend(QWEN, params, second, layout, cache, 0)
  rows = lambda x: np.asarray(x.keys[0]).reshape(2, 2, 4, 6)
  np.testing.assert_array_equal(rows(both)[1], rows(cache)[1])
  np.testing.assert_array_equal(rows(both)[0], rows(all_rows)[0])


def test_many_tokens_have_the_logits_of_few():
  params = inference.decoding_params(QWEN, random_params(QWEN))
  hidden = jnp.asarray(np.random.default_rng(5).normal(size=(3, 30, 16)), jnp.float32)
  one_by_one = jnp.concatenate([inference.logits(QWEN, params, hidden[i : i + 1]) for i in range(3)])
  np.testing.assert_allclose(inference.logits(QWEN, params, hidden), one_by_one, atol=1e-5)


def test_parameters_are_laid_out_once():
  params = inference.decoding_params(QWEN, random_params(QWEN))
  assert inference.decoding_params(QWEN, params) is params
  assert params["blocks"][2]["mlp"]["down"]["kernel"].shape == (16, 24)


def test_an_encoder_without_a_head_has_no_logits():
  config = dataclasses.replace(BERT, head="none")
  with pytest.raises(ValueError, match=r"model\.head is 'none'"):
    inference.logits(config, {}, jnp.zeros((1, 1, 16)))
