"""The cached forward pass against the whole one, on ragged rows, for both patterns that a cache is exact for."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import Layout, attend, attend_with_past, padded_layout
from diffgr_jax.models.cache import KeyValues, init_cache, write
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import abstract_params, bind

CONFIG = TransformerConfig(
  vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=24, qk_norm=True, pattern="causal"
)


def random_params(config, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape), jnp.float32), abstract_params(config))


def part(layout, start, stop):
  return jax.tree.map(lambda x: x[:, start:stop], layout)


@pytest.mark.parametrize("pattern, block_size, cuts", [("causal", 1, (0, 5, 6, 9)), ("block_causal", 3, (0, 6, 9, 12))])
def test_cached_hidden_states_are_those_of_one_pass(pattern, block_size, cuts):
  params, rng = random_params(CONFIG), np.random.default_rng(1)
  width = cuts[-1]
  tokens = jnp.asarray(rng.integers(0, 32, (3, width)))
  valid = jnp.arange(width)[None] >= jnp.array([[0], [3], [0]])  # padding in whole blocks
  layout = padded_layout(valid)
  model = bind(CONFIG, params)
  whole = model(tokens, layout, pattern=pattern, block_size=block_size)
  cache = init_cache(CONFIG, 3, width + 2)
  for start, stop in itertools.pairwise(cuts):
    own = part(layout, start, stop)
    hidden, fresh = model.extend(tokens[:, start:stop], own, cache, pattern=pattern, block_size=block_size)
    np.testing.assert_allclose(
      np.asarray(hidden)[np.asarray(valid[:, start:stop])],
      np.asarray(whole[:, start:stop])[np.asarray(valid[:, start:stop])],
      atol=2e-5,
    )
    cache = write(cache, fresh, own, jnp.int32(start) if start else jnp.zeros(3, jnp.int32))
  np.testing.assert_array_equal(cache.length, valid.sum(-1))
  first, fresh = model.extend(tokens, layout, None, pattern=pattern, block_size=block_size)
  np.testing.assert_allclose(first, whole, atol=1e-6)
  np.testing.assert_allclose(cache.held.keys[:, 0, :width], fresh.keys[:, 0], atol=2e-5)


def test_rows_may_write_at_their_own_slots():
  cache = init_cache(dataclasses.replace(CONFIG, n_layers=1, n_kv_heads=1, head_dim=2), 2, 5)
  fresh = KeyValues(jnp.ones((1, 2, 2, 1, 2)), 2 * jnp.ones((1, 2, 2, 1, 2)))
  layout = Layout(jnp.array([[7, 8], [3, 4]]), jnp.ones((2, 2), jnp.int32), jnp.zeros((2, 2), bool))
  cache = write(cache, fresh, layout, jnp.array([3, 1]))
  np.testing.assert_array_equal(cache.held.values[0, :, :, 0, 0], [[0, 0, 0, 2, 2], [0, 2, 2, 0, 0]])
  np.testing.assert_array_equal(cache.layout.position, [[0, 0, 0, 7, 8], [0, 3, 4, 0, 0]])
  np.testing.assert_array_equal(cache.length, [2, 2])


def test_two_part_attention_is_attention_over_the_joined_keys():
  rng = np.random.default_rng(3)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  query, key, value, past_key, past_value = (
    draw(2, 3, 4, 5), draw(2, 3, 2, 5), draw(2, 3, 2, 5), draw(2, 6, 2, 5), draw(2, 6, 2, 5),
  )  # fmt: skip
  mask, past_mask = jnp.asarray(rng.random((2, 3, 3)) < 0.5) | jnp.eye(3, dtype=bool)[None], draw(2, 3, 6) > 0
  joined = lambda a, b: jnp.concatenate([a, b], axis=1)
  expected = attend(
    query, joined(past_key, key), joined(past_value, value), jnp.concatenate([past_mask, mask], axis=-1)
  )
  ours = attend_with_past(query, key, value, mask, past_key, past_value, past_mask)
  np.testing.assert_allclose(ours, expected, atol=1e-6)
