"""Codes that name words: levels of a DocID that say which of its word pieces a document is best told by.

    piece w            level w mod G,  code 1 + (w div G) mod (K - 1)         tokenizers number common pieces first, so
                                                                              that levels get their even share of them
    code of a level    that of the document's heaviest piece of the level; 0 where it has none
    weight             BM25's of the piece in the text (Lucene's form), plus its idf if the title has it

A vector of a few hundred numbers says what a document is about and forgets which words it has; product codes of it are
as forgetful. Beside them, a level here is a set of words of which the document names one. Several pieces may share a
code; a question's piece then favours documents that have another one, too, of which there are few. What a question says
of these levels is models/code_head.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
from jaxtyping import Float, Int
import numpy as np

Pieces = Sequence[Sequence[int]]
_Array = TypeVar("_Array", np.ndarray, jax.Array)

_K1, _B = 0.9, 0.4  # of BM25, as the baseline has them


@dataclass(frozen=True, eq=False)
class WordCoder:
  """What gives word codes to documents: shape of the levels, and how rare the pieces are."""

  levels: int  # G
  codes: int  # K of a level, with the 0 of documents that have none of its pieces
  idf: Float[np.ndarray, "V"]  # of each of the tokenizer's pieces; that of a piece of no document is the largest
  mean_length: float  # pieces of a document

  def __post_init__(self):
    if self.levels < 1 or self.codes < 2:
      raise ValueError(
        f"word codes need a level at least, and 2 codes a level, not {self.levels} levels of {self.codes}"
      )

  def encode(self, titles: Pieces, documents: Pieces) -> Int[np.ndarray, "N G"]:
    """Word codes of documents.

    Args:
      titles: pieces of each title.
      documents: pieces of title and text of each document, parallel to titles.

    Raises:
      ValueError: titles and documents that are not parallel, or a piece that the tokenizer does not have.
    """
    if len(titles) != len(documents):
      raise ValueError(f"word codes need a title a document, not {len(titles)} of {len(documents)}")
    place, count = _counts(documents, len(self.idf))
    row, piece = np.divmod(place, len(self.idf))
    length = np.asarray([len(own) for own in documents])
    saturation = _K1 * (1.0 - _B + _B * length[row] / self.mean_length)
    titled = np.isin(place, _counts(titles, len(self.idf))[0])
    weight = self.idf[piece] * (count / (count + saturation) + titled)
    level, code = piece_codes(piece, self.levels, self.codes)
    # Lightest first, so that the heaviest is written last; among equals the piece that is numbered first.
    order = np.lexsort((-piece, weight))
    codes = np.zeros((len(documents), self.levels), np.int32)
    codes[row[order], level[order]] = code[order]
    return codes

  def arrays(self) -> dict[str, np.ndarray]:
    """Everything the coder is; `from_arrays` takes it back."""
    return {
      "shape": np.asarray([self.levels, self.codes]),
      "idf": self.idf,
      "mean_length": np.asarray(self.mean_length),
    }

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "WordCoder":
    levels, codes = (int(size) for size in arrays["shape"])
    return cls(levels, codes, arrays["idf"], float(arrays["mean_length"]))


def fit_word_coder(documents: Pieces, pieces: int, levels: int, codes: int) -> WordCoder:
  """Counts in how many documents each piece stands.

  Args:
    documents: pieces of title and text of each document.
    pieces: V, of the tokenizer.
    levels: G.
    codes: K of a level.

  Raises:
    ValueError: no document, a piece beyond V, or levels and codes that are too few.
  """
  if not documents:
    raise ValueError("word codes are of documents, and there are none")
  place, count = _counts(documents, pieces)
  having = np.bincount(place % pieces, minlength=pieces)
  idf = np.log1p((len(documents) - having + 0.5) / (having + 0.5))
  return WordCoder(levels, codes, idf.astype(np.float32), float(count.sum() / len(documents)) or 1.0)


def piece_codes(piece: _Array, levels: int, codes: int) -> tuple[_Array, _Array]:
  """Level and code of pieces."""
  return piece % levels, 1 + piece // levels % (codes - 1)


def _counts(rows: Pieces, pieces: int) -> tuple[Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
  """The pieces of every row, each once, at row * V + piece, and how often the row has each."""
  row = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
  piece = np.fromiter((piece for own in rows for piece in own), np.int64)
  if piece.size and not 0 <= piece.min() <= piece.max() < pieces:
    raise ValueError(f"piece {piece.max()} is not among the tokenizer's {pieces}")
  return np.unique(row * pieces + piece, return_counts=True)
