import jax.numpy as jnp
import numpy as np

from diffgr_jax.decoding.denoiser import banned_tokens, log_probabilities


def test_banned_are_the_named_ids_and_the_padding_rows():
  banned = banned_tokens(12, 9, never=[0, 4])
  assert set(np.flatnonzero(banned)) == {0, 4, 9, 10, 11}
  assert not banned_tokens(4, 4, never=[]).any()


def test_log_probabilities_against_numpy():
  logits = np.random.default_rng(0).normal(size=(2, 3, 8)) * 10
  logits[0, 0, 2], logits[1, 1] = -np.inf, -np.inf
  banned = np.arange(8) == 5
  found = np.asarray(log_probabilities(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(banned)))
  rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float64)
  keep = np.where(banned, -np.inf, np.maximum(rounded, -1e30))
  keep -= keep.max(-1, keepdims=True)
  expected = keep - np.log(np.exp(keep).sum(-1, keepdims=True))
  np.testing.assert_allclose(np.exp(found), np.exp(expected), rtol=1e-5, atol=1e-7)
  assert found.dtype == np.float32
  assert (found[..., 5] == -np.inf).all()
