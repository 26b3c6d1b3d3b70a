"""What is read of the open positions alone is what is read of the whole block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import block_reading
from diffgr_jax.decoding.block_state import BlockOptions, Setting
from diffgr_jax.decoding.policies import Confidence
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.stopping import stop_table
from diffgr_jax.models.inference import decoding_params


def test_quarters_of_a_block_are_unembedded():
  assert [block_reading.unembedded_sizes(size) for size in (1, 4, 8, 10, 32)] == [
    (1,), (4,), (2, 4, 6, 8), (10,), (8, 16, 24, 32),
  ]  # fmt: skip


@pytest.mark.parametrize(
  "heat, judge, records",
  [(0.0, "model", "judged"), (1.3, "model", "judged"), (0.8, "filtered", "judged"), (0.3, "model", "drawn")],
)
@pytest.mark.parametrize("size", [6, 8])
def test_open_positions_are_read_as_in_the_whole_block(model, size, heat, judge, records):
  options = BlockOptions(size, Confidence(), model.mask, judge=judge, records=records)
  setting = Setting(jnp.asarray(model.banned), stop_table(()), jnp.int32(size), make_sampling(heat, 5, 0.9))
  params = decoding_params(model.config, model.params())
  rng = np.random.default_rng(size)
  hidden = jnp.asarray(rng.normal(size=(3, size, model.config.d_model)), jnp.float32)
  old = jnp.asarray(rng.integers(0, 20, (3, size)), jnp.int32)
  keys = jax.vmap(jax.random.key)(jnp.arange(3))
  static = dict(setting=setting, token_keys=keys)
  whole = jax.jit(functools.partial(block_reading.read_block, model.config, options=options))(
    params, hidden, old, **static
  )
  few = jax.jit(functools.partial(block_reading.read_open, model.config, options=options))
  for most in range(size + 1):  # every number of quarters, and rows with fewer than the fullest, and with none
    open_ = np.zeros((3, size), bool)
    for row, count in zip(open_, (most, most // 2, 0), strict=True):
      row[rng.choice(size, count, replace=False)] = True
    ours = few(params, hidden, old, jnp.asarray(open_), **static)
    for new, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(whole), strict=True):
      np.testing.assert_allclose(new, np.where(open_, expected, 0), atol=2e-6)
