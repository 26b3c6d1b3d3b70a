"""Cheap pseudo-queries: parts of a document that stand in for the question it answers.

A document is tokenised once and kept as one flat run of pieces with two layers of bounds over it; a pseudo-query is a
range of words, so drawing one costs no tokenisation.

    pieces     _if _any _comp onent _is _absolute . _all _previous ...
    words       0   1    2     .     3      4     .  5       6            starts of words, in pieces
    sentences   0                                    5                    starts of sentences, in words

All draws come from a numpy Generator that the caller seeds for each example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import re

from jaxtyping import Int
import numpy as np

from diffgr_jax.data.vocab import Vocabulary

SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n")
MIN_SPAN_WORDS, MAX_SPAN_WORDS = 3, 16  # what a person types
SENTENCE_SHARE = 0.5  # of the pseudo-queries; the others are spans


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
