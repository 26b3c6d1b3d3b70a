"""Cheap pseudo-queries: parts of a document that stand in for the question it answers.

A document is tokenised once and kept as one flat run of pieces with two layers of bounds over it; a pseudo-query is a
range of words, so drawing one costs no tokenisation.

    pieces     _if _any _comp onent _is _absolute . _all _previous ...
    words       0   1    2     .     3      4     .  5       6            starts of words, in pieces
    sentences   0                                    5                    starts of sentences, in words

All draws come from a numpy Generator that the caller seeds for each example.

Questions that a model generated for the documents (doc2query, docT5query) are better ones; `read_generated` reads them
from JSON lines, a document may stand on several:

    {"doc_id": "D7", "queries": ["which bridge fell in 1940", ...]}
    {"id": "0", "predicted_queries": ["what was the manhattan project", ...]}         as published for MS MARCO
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import re

from jaxtyping import Int
import numpy as np

from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, existing, identifier, parse_line, parse_object, whole_characters
from diffgr_jax.data.sources import read_lines
from diffgr_jax.data.vocab import Vocabulary

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n")
MIN_SPAN_WORDS, MAX_SPAN_WORDS = 3, 16  # what a person types
SENTENCE_SHARE = 0.5  # of the pseudo-queries; the others are spans
_ID_KEYS = ("doc_id", "_id", "docid", "id")
_QUERY_KEYS = ("queries", "predicted_queries")


@dataclass(frozen=True, eq=False)
class TokenizedText:
  """A text as pieces, with the bounds of its words and sentences; each list of bounds ends with the total."""

  pieces: Int[np.ndarray, "n"]
  words: Int[np.ndarray, "w_1"]  # in pieces
  sentences: Int[np.ndarray, "s_1"]  # in words

  @property
  def num_words(self) -> int:
    return len(self.words) - 1


def split_sentences(text: str) -> list[str]:
  """Splits at the ends of sentences and at blank lines."""
  return [part for part in map(str.strip, SENTENCE_END.split(text)) if part]


def tokenize_texts(texts: Sequence[str], vocab: Vocabulary) -> list[TokenizedText]:
  """Tokenises texts sentence by sentence. A text that yields no piece becomes a TokenizedText of no words."""
  sentences = [split_sentences(text) for text in texts]
  pieces = iter(vocab.encode_many([sentence for parts in sentences for sentence in parts]))
  return [_join([next(pieces) for _ in parts], vocab) for parts in sentences]


def read_generated(
  file: str | Path, doc_ids: Sequence[str], on_bad_row: OnBadRow = "error"
) -> tuple[list[list[str]], Counter[str]]:
  """Reads the generated queries of the documents.

  Args:
    file: JSON lines, plain or gzip.
    doc_ids: of the corpus.
    on_bad_row: "error" or "skip".

  Returns:
    The queries of each document (none where the file has none), and the counts of skipped rows by fault. Rows of other
    documents are passed over: such files are made for whole collections.

  Raises:
    BadRow: with on_bad_row="error".
    FileNotFoundError: no such file.
    ValueError: it has queries for none of these documents.
  """
  path, skipped, row_of = existing(file), Counter[str](), {doc_id: row for row, doc_id in enumerate(doc_ids)}

  def parse(line: bytes, place: str) -> tuple[str, list[str]]:
    row = parse_object(line, place)
    doc_id = identifier(row, _ID_KEYS, place)
    queries = next((row[key] for key in _QUERY_KEYS if key in row), None)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries):
      raise BadRow(
        place, "no queries", f"document {doc_id!r} needs {' or '.join(map(repr, _QUERY_KEYS))}, a list of strings"
      )
    return doc_id, [whole_characters(query, place) for query in queries if query.strip()]

  generated: list[list[str]] = [[] for _ in doc_ids]
  try:
    for number, line in read_lines(path):
      for doc_id, queries in parse_line(line, path, number, parse, on_bad_row, skipped):
        if doc_id in row_of:
          generated[row_of[doc_id]] += queries
  except BadRow as bad:
    if on_bad_row == "error":
      raise
    skipped[bad.kind] += 1
  if not any(generated):
    raise ValueError(
      f"{path} has queries for none of the {len(doc_ids)} documents; its ids must be those of the corpus"
    )
  return generated, skipped


def draw_span(
  text: TokenizedText, rng: np.random.Generator, max_pieces: int, max_words: int | None = None
) -> Int[np.ndarray, "n"]:
  """Draws a range of words that begins anywhere and has at most `max_pieces` pieces.

  Its length in words is uniform up to `max_words` (None: up to the whole text), but at least `MIN_SPAN_WORDS` where the
  text has them, so that long and short contexts are both seen.
  """
  longest = min(text.num_words, max_words or text.num_words)
  length = int(rng.integers(min(MIN_SPAN_WORDS, longest), longest, endpoint=True))
  first = int(rng.integers(0, text.num_words - length, endpoint=True))
  start, stop = text.words[first], text.words[first + length]
  return text.pieces[start : min(stop, start + max_pieces)]


def draw_pseudo_query(
  text: TokenizedText, rng: np.random.Generator, max_pieces: int, word_dropout: float
) -> Int[np.ndarray, "n"]:
  """Draws a sentence or a short span, with every word left out with probability `word_dropout` (but never all)."""
  if not text.num_words:
    return text.pieces
  if rng.random() < SENTENCE_SHARE:
    number = int(rng.integers(len(text.sentences) - 1))
    first, last = text.sentences[number], text.sentences[number + 1]
  else:
    length = int(rng.integers(min(MIN_SPAN_WORDS, text.num_words), min(MAX_SPAN_WORDS, text.num_words), endpoint=True))
    first = int(rng.integers(0, text.num_words - length, endpoint=True))
    last = first + length
  kept = rng.random(last - first) >= word_dropout
  if not kept.any():
    kept[rng.integers(len(kept))] = True
  bounds = text.words[first : last + 1]
  return text.pieces[bounds[0] : bounds[-1]][np.repeat(kept, np.diff(bounds))][:max_pieces]


def _join(sentences: list[list[int]], vocab: Vocabulary) -> TokenizedText:
  sentences = [pieces for pieces in sentences if pieces]
  pieces = np.array([piece for sentence in sentences for piece in sentence], np.int32)
  first_pieces = np.cumsum([0, *map(len, sentences)])  # of each sentence, and the total
  starts = vocab.word_start[pieces]
  starts[first_pieces[:-1]] = True
  words = np.append(np.flatnonzero(starts), len(pieces)).astype(np.int32)
  return TokenizedText(pieces, words, np.searchsorted(words, first_pieces).astype(np.int32))
