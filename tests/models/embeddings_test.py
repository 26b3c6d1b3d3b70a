"""Growing and reordering token rows, against plain numpy indexing."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.embeddings import NEW, grow_embeddings, remap_embeddings
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import abstract_params, bind

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("name", ["qwen3", "bert_mlm"])
def test_growing_keeps_the_old_logits_and_starts_new_rows_at_the_mean(name):
  spec, params = load_hf(GOLDEN / name)
  grown, config = grow_embeddings(params, spec.config, 30)
  old = spec.config.vocab_size
  assert config.vocab_size == 256
  assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, abstract_params(config))
  mean = np.asarray(params["embed"]["embedding"], np.float64).mean(axis=0)
  rows = np.asarray(grown["embed"]["embedding"])
  np.testing.assert_array_equal(rows[:old], params["embed"]["embedding"])
  np.testing.assert_allclose(rows[old:], np.broadcast_to(mean, rows[old:].shape), atol=1e-6)
  tokens = jnp.asarray(np.random.default_rng(0).integers(0, old, (1, 6)))
  layout = padded_layout(jnp.ones((1, 6), bool))

  @functools.partial(jax.jit, static_argnums=1)
  def logits(params, config):
    model = bind(config, params)
    return model.logits(model(tokens, layout))

  np.testing.assert_allclose(logits(grown, config)[..., :old], logits(params, spec.config), atol=1e-5)


def test_rows_in_another_order():
  spec, params = load_hf(GOLDEN / "qwen3")
  rng = np.random.default_rng(1)
  source = rng.permutation(np.concatenate([rng.integers(0, 120, 100), np.full(50, NEW)]))
  out, config = remap_embeddings(params, spec.config, source, init="normal", key=jax.random.key(0))
  assert config.vocab_size == 256
  for table in ("embed", "unembed"):
    old, new = np.asarray(params[table]["embedding"]), np.asarray(out[table]["embedding"])
    np.testing.assert_array_equal(new[:150][source != NEW], old[source[source != NEW]])
    fresh = np.concatenate([new[:150][source == NEW], new[150:]])
    assert len(np.unique(fresh, axis=0)) == len(fresh)
    np.testing.assert_allclose(fresh.std(axis=0).mean(), old.std(axis=0).mean(), rtol=0.15)


def test_rows_that_do_not_exist_are_refused():
  spec, params = load_hf(GOLDEN / "qwen3")
  with pytest.raises(ValueError, match=r"source row 120 is not in 0..119"):
    remap_embeddings(params, spec.config, np.array([0, 120]))
  with pytest.raises(ValueError, match="init is mean, or normal with a key"):
    remap_embeddings(params, spec.config, np.array([0]), init="normal")
  with pytest.raises(ValueError, match="new_rows is at least 0, not -1"):
    grow_embeddings(params, spec.config, -1)
