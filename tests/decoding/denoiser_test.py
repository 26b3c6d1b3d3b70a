import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.denoiser import GuidedDenoiser, banned_tokens, log_probabilities


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


def test_guidance_moves_away_from_what_is_said_without_the_prompt():
  def denoise(params, prompt, canvas):
    return jnp.broadcast_to(params[prompt].sum(1)[:, None], (*canvas.shape, 4)) + canvas[..., None]

  params = jnp.asarray(np.random.default_rng(0).normal(size=(9, 4)), jnp.float32)
  prompt, canvas = jnp.array([[0, 3, 5], [2, 2, 7]]), jnp.array([[8, 1], [8, 8]])
  hidden = jnp.array([[0, 8, 8], [8, 8, 8]])  # 0 is padding, 8 is MASK
  seen, unseen = denoise(params, prompt, canvas), denoise(params, hidden, canvas)
  guided = GuidedDenoiser(denoise, 1.5, mask_id=8, pad_id=0)(params, prompt, canvas)
  np.testing.assert_allclose(guided, unseen + 2.5 * (seen - unseen), rtol=1e-5)
  with pytest.raises(ValueError, match=r"GuidedDenoiser\.scale is -1"):
    GuidedDenoiser(denoise, -1.0, mask_id=8, pad_id=0)
