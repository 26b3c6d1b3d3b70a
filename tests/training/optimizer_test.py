"""The learning-rate schedule at its corners, clipping, and what decays."""

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
