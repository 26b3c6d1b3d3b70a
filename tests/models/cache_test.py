"""Slots of a cache: where tokens are written, what is kept, and what the layout says."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import Layout
from diffgr_jax.models.cache import init_cache, put, put_layout
from diffgr_jax.models.config import TransformerConfig

CONFIG = TransformerConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=24)


@pytest.mark.parametrize("offset", [1, [1, 1, 1], [2, 0, 1]])
@pytest.mark.parametrize("masked", [False, True])
def test_put_against_a_loop(offset, masked):
  rng = np.random.default_rng(0)
  held, fresh = rng.normal(size=(6, 5, 3)).astype(np.float32), rng.normal(size=(3, 2, 2, 3)).astype(np.float32)
  writes = rng.random((3, 2)) < 0.5
  expected = held.copy().reshape(3, 2, 5, 3)
  for row, group, token in np.ndindex(3, 2, 2):
    if writes[row, token] or not masked:
      expected[row, group, np.broadcast_to(offset, 3)[row] + token] = fresh[row, group, token]
  found = put(jnp.asarray(held), jnp.asarray(fresh), jnp.asarray(offset), jnp.asarray(writes) if masked else None)
  np.testing.assert_array_equal(found, expected.reshape(6, 5, 3))


def test_rows_may_write_at_their_own_slots():
  cache = init_cache(CONFIG, 2, 5)
  fresh = Layout(jnp.array([[7, 8], [3, 4]]), jnp.ones((2, 2), jnp.int32), jnp.zeros((2, 2), jnp.int32))
  layout = put_layout(cache.layout, fresh, jnp.array([3, 1]))
  np.testing.assert_array_equal(layout.position, [[0, 0, 0, 7, 8], [0, 3, 4, 0, 0]])
  np.testing.assert_array_equal(layout.segment, [[0, 0, 0, 1, 1], [0, 1, 1, 0, 0]])
  assert [len(cache.keys), cache.keys[0].shape, cache.values[1].shape] == [2, (4, 5, 6), (4, 5, 6)]
