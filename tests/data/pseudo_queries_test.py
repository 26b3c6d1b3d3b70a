"""Pseudo-queries are parts of their document, drawn evenly, and cost no tokenisation."""

import functools

import numpy as np
import pytest

from diffgr_jax.data import pseudo_queries as pq
from diffgr_jax.data.vocab import train_vocabulary

TEXT = "The first one ends here. Does the second one? Yes!\n\nA last one has os.path.join in it and no full stop"
SENTENCES = [
  "The first one ends here.",
  "Does the second one?",
  "Yes!",
  "A last one has os.path.join in it and no full stop",
]


@functools.cache
def vocab():
  return train_vocabulary([TEXT] * 3, 330)


def tokenized(text=TEXT):
  return pq.tokenize_texts([text], vocab())[0]


def is_part(part, whole):
  return any((whole[i : i + len(part)] == part).all() for i in range(len(whole) - len(part) + 1))


def test_sentences():
  assert pq.split_sentences(TEXT) == SENTENCES
  assert pq.split_sentences(" \n\n ") == []


def test_bounds_cut_the_text_into_its_words_and_sentences():
  text = tokenized()
  words = [vocab().decode(part) for part in np.split(text.pieces, text.words[1:-1])]
  assert words[:6] == ["the", "first", "one", "ends", "here.", "does"]
  assert vocab().decode(text.pieces) == " ".join(SENTENCES).lower()
  assert (text.words[-1], text.sentences[-1]) == (len(text.pieces), text.num_words)
  sentences = np.split(text.pieces, text.words[text.sentences[1:-1]])
  assert [vocab().decode(part) for part in sentences] == [sentence.lower() for sentence in SENTENCES]


@pytest.mark.parametrize("max_pieces", [1, 4, 100])
def test_a_span_is_a_run_of_whole_words_from_anywhere(max_pieces):
  text, rng = tokenized(), np.random.default_rng(0)
  starts = set()
  for _ in range(400):
    span = pq.draw_span(text, rng, max_pieces)
    assert 1 <= len(span) <= max_pieces
    assert is_part(span, text.pieces)
    assert vocab().word_start[span[0]]
    starts.add(span.tobytes())
  if max_pieces == 100:
    total = text.num_words
    assert len(starts) > 0.5 * (total - 2) * (total - 1) / 2  # runs of three words or more
  assert len(pq.draw_span(text, rng, 100, max_words=3)) < len(text.pieces)


def test_a_pseudo_query_without_dropout_is_a_sentence_or_a_short_span():
  text, rng = tokenized(), np.random.default_rng(0)
  sentences = {tuple(part.tolist()) for part in np.split(text.pieces, text.words[text.sentences[1:-1]])}
  drawn = [pq.draw_pseudo_query(text, rng, 100, word_dropout=0.0) for _ in range(400)]
  assert all(is_part(query, text.pieces) for query in drawn)
  found = [tuple(query.tolist()) for query in drawn]
  assert sentences <= set(found)
  assert 0.4 < np.mean([query in sentences for query in found]) < 0.75


def test_dropout_leaves_whole_words_and_never_none():
  text, rng = tokenized(), np.random.default_rng(0)
  words = {part.tobytes() for part in np.split(text.pieces, text.words[1:-1])}
  lengths = {rate: [] for rate in (0.0, 0.5, 1.0)}
  for rate, seen in lengths.items():
    for _ in range(300):
      query = pq.draw_pseudo_query(text, rng, 100, word_dropout=rate)
      bounds = np.flatnonzero(vocab().word_start[query])
      assert {part.tobytes() for part in np.split(query, bounds[1:])} <= words
      seen.append(len(bounds))
  assert set(lengths[1.0]) == {1}
  assert abs(np.mean(lengths[0.5]) / np.mean(lengths[0.0]) - 0.5) < 0.1


@pytest.mark.parametrize("text", ["", "\u0000", "one", "one two"])
def test_short_texts_draw_what_they_have(text):
  tokens, rng = tokenized(text), np.random.default_rng(0)
  for _ in range(20):
    assert is_part(pq.draw_span(tokens, rng, 8), tokens.pieces)
    assert is_part(pq.draw_pseudo_query(tokens, rng, 8, 0.5), tokens.pieces)
    assert bool(len(pq.draw_span(tokens, rng, 8))) == bool(len(tokens.pieces))
