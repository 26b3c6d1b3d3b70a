import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import scoring


def brute_force(log_probs, codes, scored):
  return np.array(
    [
      [sum(row[i, t] for i, t in enumerate(code) if counts[i]) for code, counts in zip(codes, scored, strict=True)]
      for row in np.asarray(log_probs, np.float64)
    ]
  )


def test_scores_against_brute_force(toy):
  for seed, documents in ((0, 1), (1, 7), (2, 37)):
    codes, scored = toy.codes(seed, documents, duplicates=documents // 7)
    logits = np.random.default_rng(seed).normal(size=(3, toy.length, toy.vocab))
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    exact = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    scores = scoring.score_documents(log_probs, jnp.asarray(codes), jnp.asarray(scored))
    np.testing.assert_allclose(scores, brute_force(exact, codes, scored), rtol=1e-5)


def test_retrieval_against_brute_force(toy):
  codes, scored = toy.codes(0, 50)
  prompt, _, _, banned = toy.inputs(0, 4)
  params = toy.params(0)
  inputs = (params, *map(jnp.asarray, (prompt, codes, scored, banned)))
  spec = dict(denoise=toy.denoise, mask_id=toy.mask)
  found, scores = scoring.one_pass_retrieve(*inputs, k=10, **spec)
  logits = np.asarray(toy.denoise(params, prompt, jnp.full((4, toy.length), toy.mask)), np.float64)
  logits[..., banned] = -np.inf
  exact = brute_force(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), codes, scored)
  order = np.argsort(-np.round(exact, 9), axis=-1, kind="stable")[:, :10]
  assert (found == order).all()
  np.testing.assert_allclose(scores, np.take_along_axis(exact, order, -1), rtol=1e-5)
  np.testing.assert_allclose(scoring.one_pass_scores(*inputs, **spec), exact, rtol=1e-5)


def test_what_stands_after_eos_does_not_count_and_banned_tokens_rule_out(toy):
  codes, scored = toy.codes(0, 8)
  log_probs = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, toy.length, toy.vocab)))
  other = np.where(scored, codes, 9)
  assert (other != codes).any()
  same = [scoring.score_documents(log_probs, jnp.asarray(c), jnp.asarray(scored)) for c in (codes, other)]
  assert (same[0] == same[1]).all()
  banned = log_probs.at[:, 0, codes[3, 0]].set(-jnp.inf)
  ruled_out = scoring.score_documents(banned, jnp.asarray(codes), jnp.asarray(scored)) == -jnp.inf
  assert (ruled_out == (codes[:, 0] == codes[3, 0])[None]).all()


def test_ties_go_to_the_lower_index_and_k_is_checked():
  index, score = scoring.top_documents(jnp.array([[0.0, 2.0, 2.0, 1.0]]), 3)
  assert index.tolist() == [[1, 2, 3]]
  assert score.tolist() == [[2.0, 2.0, 1.0]]
  for k in (0, 5):
    with pytest.raises(ValueError, match=rf"k is {k}; it must be in 1\.\.4"):
      scoring.top_documents(jnp.zeros((1, 4)), k)


def test_a_canvas_of_another_length_is_refused(toy):
  codes, scored = (jnp.asarray(x) for x in toy.codes(0, 8))
  with pytest.raises(ValueError, match="log_probs has 3 positions, codes 6"):
    inspect.unwrap(scoring.score_documents)(jnp.zeros((1, 3, toy.vocab)), codes, scored)  # without the shape check


def test_the_prior_is_subtracted_once_for_every_position_that_counts(toy):
  codes, scored = toy.codes(5, 20)
  prompt, _, _, banned = toy.inputs(5, 3)
  log_prior = np.random.default_rng(6).normal(size=(toy.length, toy.vocab)).astype(np.float32)
  inputs = (toy.params(5), *map(jnp.asarray, (prompt, codes, scored, banned)))
  spec = dict(denoise=toy.denoise, mask_id=toy.mask)
  plain = np.asarray(scoring.one_pass_scores(*inputs, **spec))
  corrected = np.asarray(scoring.one_pass_scores(*inputs, jnp.asarray(log_prior), **spec))
  prior = brute_force(log_prior[None], codes, scored)[0]
  possible = np.isfinite(plain)
  np.testing.assert_allclose(corrected[possible], (plain - prior[None])[possible], atol=1e-4)
  assert (corrected[~possible] == -np.inf).all()
