"""Divergences against scipy and by hand; buckets never exceed the whole, and are it where k is the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from diffgr_jax.diffusion.divergence import DIVERGENCES, buckets, divergence

BANNED = 3  # of 12 outcomes, the last


def pair(seed=0, rows=5, size=12):
  rng = np.random.default_rng(seed)
  draw = lambda: log_softmax(np.where(np.arange(size) < size - BANNED, rng.normal(size=(rows, size)) * 2, -np.inf), -1)
  return jnp.asarray(draw(), jnp.float32), jnp.asarray(draw(), jnp.float32)


def by_hand(kind, teacher, student, beta):
  p, q = (np.exp(np.asarray(x, np.float64)) for x in (teacher, student))
  kl = lambda a, b: rel_entr(a, b).sum(-1)
  middle = beta * p + (1 - beta) * q
  return {
    "forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, middle) + (1 - beta) * kl(q, middle),
  }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_divergences_by_hand(kind, beta):
  teacher, student = pair()
  np.testing.assert_allclose(divergence(kind, teacher, student, beta), by_hand(kind, teacher, student, beta), rtol=1e-4)
  assert np.abs(divergence(kind, teacher, teacher, beta)).max() < 1e-6
  gradient = jax.grad(lambda x: divergence(kind, teacher, jax.nn.log_softmax(x), beta).sum())(student)
  assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_buckets_lose_but_never_add(kind):
  teacher, student = pair(1, rows=200)
  whole, before = divergence(kind, teacher, student), -1e-6
  for k in (1, 3, 8, 12 - BANNED):
    ids = jax.lax.top_k(teacher, k)[1]
    coarse = divergence(kind, buckets(teacher, ids), buckets(student, ids))
    assert (coarse >= before - 1e-4 * (1 + whole)).all()
    assert (coarse <= whole + 1e-4 * (1 + whole)).all()
    before = coarse
  np.testing.assert_allclose(before, whole, atol=1e-4)


def test_buckets_are_distributions():
  teacher, student = pair(2)
  ids = jax.lax.top_k(teacher, 4)[1]
  for one in (teacher, student):
    np.testing.assert_allclose(np.exp(buckets(one, ids)).sum(axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(buckets(one, ids)[:, :4], jnp.take_along_axis(one, ids, axis=1))


def test_an_unknown_divergence_is_named():
  with pytest.raises(ValueError, match="forward_kl, reverse_kl, jsd, not 'tv'"):
    divergence("tv", *pair())
