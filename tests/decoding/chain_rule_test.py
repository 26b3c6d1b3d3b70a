"""Chain-rule rescoring against the sum written out, document by document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.chain_rule import rescore_by_chain
from diffgr_jax.decoding.scoring import one_pass_retrieve


def arrange(toy, seed):
  codes, scored = toy.codes(seed, 20)
  prompt, _, _, banned = toy.inputs(seed, 3)
  prior = 0.3 * np.random.default_rng(seed).normal(size=(toy.length, toy.vocab)).astype(np.float32)
  return toy.params(seed, 0.5), tuple(map(jnp.asarray, (prompt, codes, scored, banned, prior)))


def written_out(toy, params, prompt, code, counts, banned, prior, steps):
  """The score of one document for one query, and the canvases that it takes behind the first."""
  total, spent = 0.0, 0
  group = np.arange(toy.length) * steps // toy.length
  for step in range(steps):
    own = counts & (group == step)
    if not (counts & (group >= step)).any():
      break
    shown = np.where(group < step, code, toy.mask).astype(np.int32)
    logits = toy.denoise(params, prompt[None], shown[None])[0]
    allowed = ~banned & (np.arange(toy.vocab) != toy.mask)
    log_probs = np.asarray(jax.nn.log_softmax(jnp.where(jnp.asarray(allowed)[None], logits, -jnp.inf)), np.float64)
    total += sum(log_probs[at, code[at]] - prior[at, code[at]] for at in np.flatnonzero(own))
    spent += step > 0
  return total, spent


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_scores_are_sums_over_groups_from_left_to_right(toy, steps):
  seed = int(np.random.default_rng().integers(1000))
  params, inputs = arrange(toy, seed)
  found = rescore_by_chain(params, *inputs, denoise=toy.denoise, mask_id=toy.mask, candidates=7, steps=steps, k=12)
  first, plain = one_pass_retrieve(params, *inputs, denoise=toy.denoise, mask_id=toy.mask, k=12)
  prompt, codes, scored, banned, prior = map(np.asarray, inputs)
  for row in range(3):
    assert set(found.document[row][:7].tolist()) == set(first[row][:7].tolist())
    assert found.document[row][7:].tolist() == first[row][7:].tolist()
    np.testing.assert_allclose(found.score[row][7:], plain[row][7:], rtol=1e-5)
    exact = [
      written_out(toy, params, prompt[row], codes[d], scored[d], banned, prior, steps)
      for d in found.document[row][:7].tolist()
    ]
    np.testing.assert_allclose(found.score[row][:7], [score for score, _ in exact], rtol=1e-4, atol=1e-4)
    assert (np.diff(np.asarray(found.score[row][:7])) <= 1e-6).all()
    assert int(found.canvases[row]) == 1 + sum(spent for _, spent in exact)
    assert int(found.forwards[row]) == 1 + max(spent for _, spent in exact)


def test_one_group_is_one_pass_scoring(toy):
  params, inputs = arrange(toy, 5)
  how = dict(denoise=toy.denoise, mask_id=toy.mask, k=10)
  found = rescore_by_chain(params, *inputs, candidates=10, steps=1, **how)
  document, score = one_pass_retrieve(params, *inputs, **how)
  assert (found.document == document).all()
  np.testing.assert_allclose(found.score, score, rtol=1e-5)


def test_what_cannot_be_is_refused(toy):
  params, inputs = arrange(toy, 5)
  how = dict(denoise=toy.denoise, mask_id=toy.mask)
  with pytest.raises(ValueError, match=r"k is 21; it must be in 1\.\.20"):
    rescore_by_chain(params, *inputs, candidates=1, k=21, **how)
  with pytest.raises(ValueError, match=r"candidates is 6; it must be in 1\.\.5"):
    rescore_by_chain(params, *inputs, candidates=6, k=5, **how)
  with pytest.raises(ValueError, match=r"steps is 7; it must be in 0\.\.6"):
    rescore_by_chain(params, *inputs, candidates=2, steps=7, k=5, **how)
