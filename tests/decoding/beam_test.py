"""Beam search against enumeration: every DocID scored by uncached passes in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.beam import decode_beams
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import build_trie
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind


@functools.partial(jax.jit, static_argnames=("config",))
def uncached(params, tokens, config):
  bound = bind(config, params)
  return bound.logits(bound(tokens, padded_layout(jnp.ones(tokens.shape, bool)), pattern="causal"))


def enumerate_scores(model, prompt, codes, scored, allowed=None):
  """Sum of log-probabilities of each DocID's tokens and EOS; among the children of its prefix if `allowed` is given."""
  text = np.concatenate([np.tile(prompt, (len(codes), 1)), codes], axis=1)
  logits = np.asarray(uncached(model.params(), jnp.asarray(text), model.config), np.float64)
  logits = logits[:, len(prompt) - 1 : -1]
  logits[..., 22:] = -np.inf
  if allowed is not None:
    logits = np.where(allowed, logits, -np.inf)
  with np.errstate(divide="ignore", invalid="ignore"):
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.where(scored, np.take_along_axis(log_probs, codes[..., None], -1)[..., 0], 0.0).sum(-1)


def children(codes, scored, vocab):
  """allowed[d, l, t]: token t follows the first l tokens of document d in some document."""
  allowed = np.zeros((*codes.shape, vocab), bool)
  for d, row in enumerate(codes):
    for level in range(codes.shape[1]):
      alike = (codes[:, :level] == row[:level]).all(axis=1) & scored[:, level]
      allowed[d, level, codes[alike, level]] = True
  return allowed


@pytest.mark.parametrize("renormalise", [False, True])
def test_a_beam_as_wide_as_the_corpus_is_enumeration(model, toy, renormalise):
  codes, scored = toy.codes(3, 12)
  codes, keep = np.unique(codes, axis=0, return_index=True)
  scored = scored[keep]
  names = tuple(map(str, range(len(codes))))
  trie = build_trie(DocIdIndex(codes, names, names, toy.eos, toy.pad))
  prompts, valid = model.prompts([5, 3])
  beams = decode_beams(
    model.params(), prompts, valid, model.banned, trie, config=model.config, width=len(codes) + 2,
    renormalise=renormalise,
  )  # fmt: skip
  for row in range(2):
    allowed = children(codes, scored, model.config.vocab_size) if renormalise else None
    expected = enumerate_scores(model, prompts[row][valid[row]], codes, scored, allowed)
    order = np.argsort(-expected)
    np.testing.assert_array_equal(beams.document[row, : len(codes)], order)
    np.testing.assert_allclose(beams.score[row, : len(codes)], expected[order], atol=5e-5)
    assert (beams.document[row, len(codes) :] == -1).all()
    if renormalise:
      np.testing.assert_allclose(np.exp(expected).sum(), 1.0)
    best = codes[order[0]]
    found = np.asarray(beams.tokens[row, 0])
    np.testing.assert_array_equal(found[scored[order[0]][: len(found)]], best[scored[order[0]]])


def test_a_narrow_beam_is_the_search_of_the_textbook(model, toy):
  codes, scored = toy.codes(5, 14, duplicates=0)
  names = tuple(map(str, range(len(codes))))
  trie = build_trie(DocIdIndex(codes, names, names, toy.eos, toy.pad))
  prompts, valid = model.prompts([4])
  beams = decode_beams(model.params(), prompts, valid, model.banned, trie, config=model.config, width=3)
  hypotheses = [((), 0.0)]
  for level in range(int(scored.sum(1).max())):
    grown = [h for h in hypotheses if h[0] and h[0][-1] == toy.eos]
    for prefix, _ in hypotheses:
      follow = {int(c[level]) for c, s in zip(codes, scored, strict=True) if s[level] and tuple(c[:level]) == prefix}
      for token in follow:
        text = np.zeros((1, toy.length), np.int64)
        text[0, : level + 1] = (*prefix, token)
        part = np.arange(toy.length)[None] <= level
        grown.append(((*prefix, token), enumerate_scores(model, prompts[0], text, part)[0]))
    hypotheses = sorted(grown, key=lambda h: -h[1])[:3]
  for w, (tokens, score) in enumerate(hypotheses):
    np.testing.assert_array_equal(beams.tokens[0, w, : len(tokens)], tokens)
    np.testing.assert_allclose(beams.score[0, w], score, atol=5e-5)


def test_an_empty_beam_and_an_empty_prompt_are_refused(model, toy):
  codes, _ = toy.codes(3, 4)
  names = tuple("abcd")
  trie = build_trie(DocIdIndex(codes, names, names, toy.eos, toy.pad))
  prompts, valid = model.prompts([4])
  with pytest.raises(ValueError, match="width is 0"):
    decode_beams(model.params(), prompts, valid, model.banned, trie, config=model.config, width=0)
  with pytest.raises(ValueError, match="no prompt may be empty"):
    decode_beams(model.params(), prompts, valid & False, model.banned, trie, config=model.config, width=2)
