"""Pseudo beam search against canvases decoded one by one."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import policies
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas, forwards_per_row
from diffgr_jax.decoding.constraint import matching_documents
from diffgr_jax.decoding.pseudo_beam import pseudo_beam
from diffgr_jax.decoding.scoring import one_pass_scores


def arrange(toy, seed, rows=4, documents=30):
  codes, scored = toy.codes(seed, documents)
  prompt, _, seeds, banned = toy.inputs(seed, rows)
  return toy.params(seed, 0.5), prompt, seeds, codes, scored, banned


def options_of(toy, policy=None):
  return DecodeOptions(policy or policies.Confidence(), toy.mask)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_beam_of_one_is_constrained_decoding(toy, steps):
  params, prompt, seeds, codes, scored, banned = arrange(toy, int(np.random.default_rng().integers(1000)))
  how = dict(denoise=toy.denoise, options=options_of(toy), steps=steps)
  found = pseudo_beam(params, prompt, seeds, codes, scored, banned, width=1, **how)
  canvas = np.full((4, toy.length), toy.mask, np.int32)
  state = decode_canvas(params, prompt, canvas, seeds, banned, codes=codes, **how)
  spelled = np.asarray(matching_documents(state.canvas, jnp.asarray(codes), jnp.asarray(scored))).argmax(axis=1)
  assert found.document[:, 0].tolist() == spelled.tolist()
  assert found.canvases.tolist() == forwards_per_row(state).tolist()


@pytest.mark.parametrize("policy", [policies.Confidence(), policies.Entropy()], ids=lambda p: type(p).__name__)
def test_canvases_begin_with_the_likeliest_tokens_that_exist(toy, policy):
  """One position a pass: canvas w is the constrained decode of a canvas that holds the w-th choice already."""
  params, prompt, seeds, codes, scored, banned = arrange(toy, int(np.random.default_rng().integers(1000)))
  how = dict(denoise=toy.denoise, options=options_of(toy, policy), steps=toy.length)
  found = pseudo_beam(params, prompt, seeds, codes, scored, banned, width=3, **how)
  index = map(jnp.asarray, (codes, scored, banned))
  scores = np.asarray(one_pass_scores(params, jnp.asarray(prompt), *index, denoise=toy.denoise, mask_id=toy.mask))
  empty = np.full((4, toy.length), toy.mask, np.int32)
  # Filling all that a first token decides, which one document may be alone in having, would hide where it stands.
  one_each = replace(how["options"], finish_when_unique=False)
  state = decode_canvas(params, prompt, empty, seeds, banned, codes=codes, **how | {"options": one_each})
  first = np.asarray(state.step_map)
  assert ((first == 0).sum(axis=1) == 1).all()
  place = first.argmin(axis=1)  # the position that the first pass commits
  logits = np.asarray(toy.denoise(params, jnp.asarray(prompt), jnp.asarray(empty)))
  for row in range(4):
    at = place[row]
    choices = sorted(set(codes[:, at].tolist()), key=lambda token: -logits[row, at, token])[:3]
    expected = set()
    for token in choices:
      begun = empty[row : row + 1].copy()
      begun[0, at] = token
      own = decode_canvas(
        params, prompt[row : row + 1], begun, seeds[row : row + 1], banned, codes=codes,
        **(how | {"steps": toy.length - 1}),
      )  # fmt: skip
      expected.add(int(np.asarray(matching_documents(own.canvas, jnp.asarray(codes), jnp.asarray(scored)))[0].argmax()))
    listed = [document for document in found.document[row].tolist() if document >= 0]
    assert set(listed) == expected
    assert listed == sorted(listed, key=lambda document: -scores[row, document])
    np.testing.assert_allclose(found.score[row][: len(listed)], scores[row, listed], rtol=1e-5)


def test_a_wide_beam_never_names_a_document_twice(toy):
  params, prompt, seeds, codes, scored, banned = arrange(toy, 3)
  how = dict(denoise=toy.denoise, options=options_of(toy), steps=3)
  found = pseudo_beam(params, prompt, seeds, codes, scored, banned, width=9, **how)
  for row in range(4):
    listed = [document for document in found.document[row].tolist() if document >= 0]
    assert len(set(listed)) == len(listed) >= 1
    assert int(found.canvases[row]) <= 1 + 9 * 2
  with pytest.raises(ValueError, match="width is 0"):
    pseudo_beam(params, prompt, seeds, codes, scored, banned, width=0, **how)
