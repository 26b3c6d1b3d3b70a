"""Beam search against enumeration: every DocID, or every text, scored by uncached passes in float64."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.beam import AnyText, decode_beams, decode_beams_steps, read_beams
from diffgr_jax.decoding.trace import record_beams
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


def trie_of(toy, seed=3, documents=12):
  codes, _ = toy.codes(seed, documents, duplicates=0)
  names = tuple(map(str, range(len(codes))))
  return build_trie(DocIdIndex(codes, names, names, toy.eos, toy.pad))


@pytest.mark.parametrize("constrained", [True, False])
def test_loop_and_steps_agree_row_by_row_and_the_trace_tells_how(model, toy, constrained):
  allowed = trie_of(toy) if constrained else AnyText(4, toy.eos)
  prompts, valid = model.prompts([5, 2])
  how = dict(config=model.config, width=3)
  whole = decode_beams(model.params(), prompts, valid, model.banned, allowed, **how)
  steps = list(decode_beams_steps(model.params(), prompts, valid, model.banned, allowed, **how))
  twin = read_beams(steps[-1][0], allowed)
  np.testing.assert_array_equal(whole.tokens, twin.tokens)
  np.testing.assert_array_equal(whole.document, twin.document)
  np.testing.assert_allclose(whole.score, twin.score, atol=1e-5)
  assert steps[0][1].shape[1] == 1
  *_, (moved, _) = decode_beams_steps(  # other neighbours, other padding
    model.params(), np.pad(prompts[[1, 1]], ((0, 0), (2, 0))), np.pad(valid[[1, 1]], ((0, 0), (2, 0))), model.banned,
    allowed, **how,
  )  # fmt: skip
  np.testing.assert_array_equal(moved.tokens[0], whole.tokens[1])
  np.testing.assert_allclose(moved.score[0], whole.score[1], atol=1e-5)

  trace = record_beams(iter(steps), model.banned)
  np.testing.assert_array_equal(trace.tokens[-1], whole.tokens)
  for row, rank in itertools.product(range(2), range(3)):
    tokens = np.asarray(whole.tokens[row, rank])
    length = int((tokens >= 0).sum())
    np.testing.assert_array_equal(trace.step_map[row, rank], [*range(length), *[-1] * (len(tokens) - length)])
    one = trace.hypothesis(row, rank)
    text = np.zeros(16, np.int32)  # one length, one program: what stands behind is not seen
    begin = int(valid[row].sum())
    text[: begin + length] = [*prompts[row][valid[row]], *tokens[:length]]
    logits = np.asarray(uncached(model.params(), jnp.asarray(text)[None], model.config), np.float64)
    logits = logits[0, begin - 1 : begin + length - 1]
    probs = np.exp(logits[:, :22]) / np.exp(logits[:, :22]).sum(-1, keepdims=True)
    for t in range(length):
      np.testing.assert_array_equal(one.canvas[t + 1, 0, : t + 1], tokens[: t + 1])
      assert (one.canvas[t + 1, 0, t + 1 :] == -1).all()
      np.testing.assert_allclose(one.commit_confidence[t + 1, 0, t], probs[t, tokens[t]], rtol=1e-4)
      np.testing.assert_allclose(one.confidence[t, 0, t], probs[t].max(), rtol=1e-4)
      np.testing.assert_allclose(one.entropy[t, 0, t], -(probs[t] * np.log(probs[t])).sum(), rtol=1e-3)
    assert np.isfinite(one.confidence).sum() == length == one.steps_of(0)


def test_any_text_is_enumeration_too(model, toy):
  """Three tokens of a vocabulary of four, EOS among them: 1 + 3 + 9 * 4 texts, all of them in the beam."""
  banned = ~np.isin(np.arange(24), [toy.eos, 5, 6, 7])
  texts = [[toy.eos]] + [[a, toy.eos] for a in (5, 6, 7)]
  texts += [[a, b, c] for a, b in itertools.product((5, 6, 7), repeat=2) for c in (toy.eos, 5, 6, 7)]
  prompts, valid = model.prompts([4])
  beams = decode_beams(
    model.params(), prompts, valid, banned, AnyText(3, toy.eos), config=model.config, width=len(texts)
  )
  expected = {}
  for text in texts:
    padded = np.array([[*prompts[0], *text, *[0] * (3 - len(text))]])
    logits = np.asarray(uncached(model.params(), jnp.asarray(padded), model.config), np.float64)[0, 3:-1]
    logits[:, banned] = -np.inf
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected[tuple(text)] = sum(log_probs[i, token] for i, token in enumerate(text))
  found = {tuple(int(t) for t in row if t >= 0): s for row, s in zip(beams.tokens[0], beams.score[0], strict=True)}
  assert found.keys() == expected.keys()
  for text, score in found.items():
    np.testing.assert_allclose(score, expected[text], atol=5e-5)
  assert (np.diff(beams.score[0]) <= 0).all()
  np.testing.assert_allclose(np.exp(np.asarray(beams.score[0], np.float64)).sum(), 1.0, atol=1e-4)  # all of them


def test_an_empty_beam_and_an_empty_prompt_are_refused(model, toy):
  codes, _ = toy.codes(3, 4)
  names = tuple("abcd")
  trie = build_trie(DocIdIndex(codes, names, names, toy.eos, toy.pad))
  prompts, valid = model.prompts([4])
  with pytest.raises(ValueError, match="width is 0"):
    decode_beams(model.params(), prompts, valid, model.banned, trie, config=model.config, width=0)
  with pytest.raises(ValueError, match="length is 0"):
    AnyText(0)
  with pytest.raises(ValueError, match="no prompt may be empty"):
    decode_beams(model.params(), prompts, valid & False, model.banned, trie, config=model.config, width=2)
