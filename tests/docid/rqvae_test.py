"""RQ-VAE: the gradient estimators against their formulas, the codebook averages against numpy, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.docid import rqvae
from diffgr_jax.docid.quantizer import Quantizer, relative_errors

SMALL = rqvae.RqvaeOptions(latent=4, hidden=(16,), steps=60, batch=64, learning_rate=5e-3)


def vectors_of(count=200, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(8, 6))[rng.integers(8, size=count)] + 0.1 * rng.normal(size=(count, 6))).astype(np.float32)


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_identity():
  z, q = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  value, pull = jax.vjp(lambda x: rqvae.carry_gradient(x, jnp.asarray(q), "straight_through"), jnp.asarray(z))
  np.testing.assert_allclose(value, q, atol=1e-6)
  np.testing.assert_allclose(pull(jnp.ones((3, 4)))[0], np.ones((3, 4)))


def test_the_rotation_carries_the_latent_to_its_code_and_turns_the_gradient_back():
  z, q = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
  value, pull = jax.vjp(lambda x: rqvae.carry_gradient(x, jnp.asarray(q), "rotation"), jnp.asarray(z))
  np.testing.assert_allclose(value, q, atol=1e-5)
  gradient = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
  for row in range(3):
    e, t = z[row] / np.linalg.norm(z[row]), q[row] / np.linalg.norm(q[row])
    r = (e + t) / np.linalg.norm(e + t)
    turn = np.eye(4) - 2 * np.outer(r, r) + 2 * np.outer(t, e)  # orthogonal, and it takes e to t
    np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-5)
    expected = np.linalg.norm(q[row]) / np.linalg.norm(z[row]) * turn.T @ gradient[row]
    np.testing.assert_allclose(pull(jnp.asarray(gradient))[0][row], expected, atol=1e-4)


def test_moving_averages_and_the_rebirth_of_a_dead_code_by_hand():
  options = rqvae.RqvaeOptions(decay=0.5, dead_share=0.2)
  codes = np.array([[0], [0], [1], [0]], np.int32)
  residuals = np.random.default_rng(0).normal(size=(1, 4, 2)).astype(np.float32)
  before = rqvae.TrainState({}, (), jnp.array([[1.0, 1.0, 0.2]]), jnp.ones((1, 3, 2)))
  counts, sums = rqvae._moving_averages(before, jnp.asarray(codes), jnp.asarray(residuals), jax.random.key(0), options)
  np.testing.assert_allclose(counts[0, :2], [0.5 + 1.5, 0.5 + 0.5])
  np.testing.assert_allclose(sums[0, 0], 0.5 + 0.5 * residuals[0, codes[:, 0] == 0].sum(0), rtol=1e-5)
  np.testing.assert_allclose(counts[0, 2], 4 / 3, rtol=1e-6)  # 0.1 is below a fifth of the mean count: reborn at it
  reborn = np.asarray(sums[0, 2] / counts[0, 2])
  assert np.isclose(residuals[0], reborn[None], atol=1e-5).all(1).any()


@pytest.mark.parametrize("estimator", rqvae.ESTIMATORS)
def test_it_learns_and_its_file_is_the_whole_of_it(estimator):
  vectors = vectors_of()
  options = rqvae.RqvaeOptions(**(SMALL.__dict__ | {"estimator": estimator}))
  quantizer = rqvae.fit_rqvae(vectors, 2, 8, options=options)
  assert isinstance(quantizer, Quantizer)
  codes = quantizer.encode(vectors)
  errors = relative_errors(quantizer, vectors, codes)
  assert errors[1] < errors[0] < 1
  assert errors[1] < 0.6  # 1 is the mean vector alone; sixty steps are few
  again = rqvae.Rqvae.from_arrays(quantizer.arrays())
  np.testing.assert_array_equal(again.encode(vectors), codes)
  np.testing.assert_array_equal(again.decode(codes), quantizer.decode(codes))
  np.testing.assert_array_equal(quantizer.last_level_costs(vectors, codes).argmin(1), codes[:, -1])
  if estimator == "rotation":
    return
  repeated = rqvae.fit_rqvae(vectors, 2, 8, options=options)
  np.testing.assert_array_equal(repeated.codebooks, quantizer.codebooks)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(estimator="gumbel"), "the estimator is one of straight_through, rotation"),
    (dict(steps=0), "steps is at least 1, not 0"),
    (dict(decay=1.0), r"decay is in \[0, 1\), not 1.0"),
    (dict(learning_rate=0.0), "learning_rate is above 0"),
  ],
)
def test_options_that_cannot_work_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    rqvae.RqvaeOptions(**change)


def test_a_loss_that_is_not_finite_ends_the_training():
  options = rqvae.RqvaeOptions(**(SMALL.__dict__ | {"learning_rate": 1e30, "steps": 20}))
  with pytest.raises(ValueError, match="lower --learning_rate"):
    rqvae.fit_rqvae(vectors_of(), 1, 4, options=options)
