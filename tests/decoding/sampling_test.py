import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.sampling import filtered, make_sampling, most_likely, token_scores


def reference(log_probs, temperature, top_k, top_p):
  """One distribution in float64: temper, keep the k best, then the smallest head of mass top_p."""
  p = np.exp(log_probs / temperature)
  p /= p.sum()
  order = np.argsort(-p, kind="stable")[: top_k or len(p)]
  head = p[order] / p[order].sum()
  kept = order[: int(np.searchsorted(np.cumsum(head), top_p, side="left")) + 1] if top_p < 1 else order
  out = np.zeros_like(p)
  out[kept] = p[kept] / p[kept].sum()
  return out


SETTINGS = [(1.0, 0, 1.0), (0.7, 3, 1.0), (1.4, 0, 0.6), (2.0, 5, 0.5), (1.0, 1, 1.0), (1.0, 0, 1e-6)]
WRONG = [((-1.0,), "temperature is -1"), ((1.0, -1), "top_k is -1"), ((1.0, 0, 0.0), r"top_p is 0.0; .*\(0, 1\]")]


@pytest.mark.parametrize("temperature, top_k, top_p", SETTINGS)
def test_filtered_against_numpy(temperature, top_k, top_p):
  logits = np.random.default_rng(top_k).normal(size=(4, 3, 11)) * 2
  ours = jnp.exp(filtered(jnp.asarray(logits, jnp.float32), make_sampling(temperature, top_k, top_p)))
  expected = np.apply_along_axis(lambda row: reference(row, temperature, top_k, top_p), -1, logits)
  np.testing.assert_allclose(ours, expected, atol=2e-6)


@pytest.mark.parametrize("size", [7, 128, 384, 512])
def test_most_likely_is_the_first_of_the_best(size):
  rng = np.random.default_rng(size)
  for scores in (rng.normal(size=(5, 3, size)), rng.integers(0, 3, (5, 3, size)), np.full((5, 3, size), -np.inf)):
    np.testing.assert_array_equal(most_likely(jnp.asarray(scores, jnp.float32)), scores.argmax(axis=-1))


def test_draws_follow_the_filtered_distribution_and_the_rows_own_key():
  logits = np.random.default_rng(0).normal(size=9)
  keys = jax.vmap(jax.random.key)(jnp.arange(20_000))
  many = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None], (20_000, 9))
  draws = jnp.argmax(token_scores(many, make_sampling(1.3, 6, 0.9), keys), axis=-1)
  found = np.bincount(draws, minlength=9) / 20_000
  expected = reference(logits, 1.3, 6, 0.9)
  assert np.abs(found - expected).max() < 5 * np.sqrt(0.25 / 20_000)
  assert (found[expected == 0] == 0).all()
  again = jnp.argmax(token_scores(many[:3], make_sampling(1.3, 6, 0.9), keys[:3]), axis=-1)
  np.testing.assert_array_equal(again, draws[:3])


def test_temperature_zero_is_the_most_likely_token():
  log_probs = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)), jnp.float32)
  keys = jax.vmap(jax.random.key)(jnp.arange(2))
  np.testing.assert_array_equal(token_scores(log_probs, make_sampling(0.0, 2, 0.5), keys), log_probs)


@pytest.mark.parametrize("change, message", WRONG)
def test_impossible_settings_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    make_sampling(*change)
