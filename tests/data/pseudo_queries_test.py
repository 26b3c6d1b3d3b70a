"""Pseudo-queries are parts of their document, drawn evenly, and cost no tokenisation."""

import functools
import gzip
import json

import numpy as np
import pytest

from diffgr_jax.data import pseudo_queries as pq
from diffgr_jax.data.records import BadRow
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


def test_generated_queries_of_every_form_come_to_their_documents(tmp_path):
  rows = [
    {"doc_id": "a", "queries": ["first of a", " "]},
    {"id": 7, "predicted_queries": ["of seven"]},
    {"_id": "a", "queries": ["second of a"]},
    {"docid": "elsewhere", "queries": ["of another collection"]},
  ]
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (tmp_path / "q.jsonl").write_text(lines)
  (tmp_path / "q.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  for name in ("q.jsonl", "q.jsonl.gz"):
    found = pq.read_generated(tmp_path / name, ("a", "b", "7"))
    assert found == ([["first of a", "second of a"], [], ["of seven"]], {})
  with pytest.raises(ValueError, match="queries for none of the 1 documents"):
    pq.read_generated(tmp_path / "q.jsonl", ("c",))
  with pytest.raises(FileNotFoundError):
    pq.read_generated(tmp_path / "nothing.jsonl", ("a",))


@pytest.mark.parametrize(
  "row, kind, message",
  [
    (b"{", "broken JSON", "broken JSON"),
    (b'{"queries": ["x"]}', "no id", "'doc_id' or '_id' or 'docid' or 'id'"),
    (b'{"id": "a"}', "no queries", "needs 'queries' or 'predicted_queries', a list"),
    (b'{"id": "a", "queries": "x"}', "no queries", "a list of strings"),
    (b'{"id": "a", "queries": ["x", 3]}', "no queries", "a list of strings"),
    (b'{"id": "a", "queries": ["\xff"]}', "not UTF-8", "byte 0xff"),
  ],
)
def test_a_bad_row_of_generated_queries(tmp_path, row, kind, message):
  file = tmp_path / "q.jsonl"
  file.write_bytes(b'{"id": "a", "queries": ["good"]}\n' + row + b"\n")
  with pytest.raises(BadRow, match=message) as caught:
    pq.read_generated(file, ("a",))
  assert str(caught.value).startswith(f"{file}:2: ")
  assert pq.read_generated(file, ("a",), "skip") == ([["good"]], {kind: 1})


def test_a_cut_off_file_of_generated_queries(tmp_path):
  file = tmp_path / "q.jsonl.gz"
  file.write_bytes(gzip.compress(b'{"id": "a", "queries": ["good"]}\n')[:-4])
  with pytest.raises(BadRow, match="cut off"):
    pq.read_generated(file, ("a",))
  assert pq.read_generated(file, ("a",), "skip") == ([["good"]], {"broken gzip": 1})
