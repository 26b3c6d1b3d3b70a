"""The learning-rate schedule at its corners, clipping, what decays, and what Muon does to a matrix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.training.optimizer import learning_rate_schedule, make_optimizer


@pytest.mark.parametrize("decay, halfway, last", [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)])
def test_schedule_warms_up_then_decays(decay, halfway, last):
  schedule = learning_rate_schedule(2.0, warmup_steps=10, steps=110, decay=decay, final_fraction=0.1)
  np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.0, 1.0, 2.0])
  np.testing.assert_allclose([schedule(60), schedule(110)], [2 * halfway, 2 * last], rtol=1e-6)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(warmup_steps=100), "below steps \\(100\\), not 100"),
    (dict(warmup_steps=0, decay="square"), "cosine, linear, constant, not 'square'"),
  ],
)
def test_impossible_schedules_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    learning_rate_schedule(1.0, steps=100, **options)


def test_matrices_decay_and_norms_do_not():
  optimizer = make_optimizer(lambda _: 0.1, b1=0.9, b2=0.99, weight_decay=0.5, clip_norm=1.0)
  params = {"mlp": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
  zeros = {"mlp": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}, "norm": {"scale": jnp.zeros(2)}}
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["mlp"]["kernel"], -0.05 * np.ones((2, 2)), rtol=1e-5)
  assert not updates["mlp"]["bias"].any()
  assert not updates["norm"]["scale"].any()


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0])
def test_token_embeddings_may_move_at_a_share_of_the_rate(rate):
  options = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1e9)
  optimizer = make_optimizer(lambda _: 0.1, **options, embedding_rate=rate)
  params = {"embed": {"embedding": jnp.ones((3, 2))}, "type_embed": {"embedding": jnp.ones((3, 2))}}
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  np.testing.assert_allclose(updates["type_embed"]["embedding"], -0.1 * np.ones((3, 2)), rtol=1e-4)
  np.testing.assert_allclose(updates["embed"]["embedding"], -0.1 * rate * np.ones((3, 2)), rtol=1e-4)


@pytest.mark.parametrize("rates", [(0.0, 0.1), (0.1, 0.1), (0.1, 1.0), (1.0, 0.0)])
def test_a_code_heads_tables_may_move_at_shares_of_the_rate_and_its_terms_do_not(rates):
  options = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1e9)
  optimizer = make_optimizer(lambda _: 0.1, **options, head_rate=rates[0], row_rate=rates[1])
  shares = dict(zip(("centroids", "rows"), rates, strict=True))
  head = {name: jnp.ones((3, 2)) for name in ("centroids", "rows", "terms", "scale")}
  params = {"code_head": head, "blocks": {"rows": jnp.ones((3, 2))}}
  updates, _ = optimizer.update(params, optimizer.init(params), params)
  for name, update in updates["code_head"].items():
    np.testing.assert_allclose(update, -0.1 * shares.get(name, 1.0) * np.ones((3, 2)), rtol=1e-4)
  np.testing.assert_allclose(updates["blocks"]["rows"], -0.1 * np.ones((3, 2)), rtol=1e-4)


def test_muon_orthogonalises_the_matrices_of_layers_and_leaves_the_rest_to_adamw():
  """Against a singular value decomposition: Newton-Schulz brings every singular value near 1 (0.7 to 1.2)."""
  rng = np.random.default_rng(0)
  options = dict(b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1e9)
  params = {
    "blocks": {"up": {"kernel": jnp.zeros((3, 8, 16))}, "norm": {"scale": jnp.ones((3, 8))}},
    "embed": {"embedding": jnp.zeros((5, 8))},
    "head": {"kernel": jnp.zeros((8, 5))},
  }
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
  muon, adamw = (make_optimizer(lambda _: 0.1, **options, name=name) for name in ("muon", "adamw"))
  updates, _ = muon.update(grads, muon.init(params), params)
  by_adamw, _ = adamw.update(grads, adamw.init(params), params)
  for path in (("blocks", "norm", "scale"), ("embed", "embedding"), ("head", "kernel")):
    ours, theirs = (functools.reduce(dict.__getitem__, path, tree) for tree in (updates, by_adamw))
    np.testing.assert_array_equal(ours, theirs)
  update = np.asarray(updates["blocks"]["up"]["kernel"], np.float64)
  gradient = np.asarray(grads["blocks"]["up"]["kernel"], np.float64)
  for layer in range(3):
    u, _, vh = np.linalg.svd(gradient[layer], full_matrices=False)
    values = np.diag(u.T @ -update[layer] @ vh.T) / (0.1 * 0.2 * np.sqrt(16))  # rate, Muon's scale, of max(8, 16)
    assert (values > 0.6).all()
    assert (values < 1.3).all()
    off = u.T @ update[layer] @ vh.T
    np.testing.assert_allclose(off - np.diag(np.diag(off)), 0, atol=1e-5)


def test_muon_decays_the_matrices_of_layers():
  optimizer = make_optimizer(lambda _: 0.1, b1=0.9, b2=0.99, weight_decay=0.5, clip_norm=1.0, name="muon")
  params = {"blocks": {"up": {"kernel": jnp.ones((1, 2, 2))}}}
  updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
  np.testing.assert_allclose(updates["blocks"]["up"]["kernel"], -0.05 * np.ones((1, 2, 2)), rtol=1e-5)


def test_an_unknown_optimizer_is_named():
  with pytest.raises(ValueError, match="adamw, muon, not 'sgd'"):
    make_optimizer(lambda _: 0.1, b1=0.9, b2=0.99, weight_decay=0.0, clip_norm=1.0, name="sgd")
