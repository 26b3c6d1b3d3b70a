"""Words of documents and their latent semantic analysis: vectors of texts without a pretrained model.

    texts -> stems -> rows of (1 + log count) * idf, length 1 -> times the leading right singular vectors -> length 1

(Deerwester et al., 1990.) The space belongs to the collection that it was made from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import logging
from typing import Any, cast

from jaxtyping import Float
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import Stemmer


@dataclass(frozen=True, eq=False)
class Lsa:
  """The space of one collection.

  Attributes:
    terms: the column of each term.
    idf: its weight.
    basis: leading right singular vectors of the weighted collection.
    documents: the collection's own vectors, in its order.
  """

  terms: dict[str, int]
  idf: Float[np.ndarray, "V"]
  basis: Float[np.ndarray, "V R"]
  documents: Float[np.ndarray, "N R"]

  def vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "B R"]:
    """Vectors of length 1; 0 for a text without any term of the collection."""
    return unit_rows(_tf_idf(_counts(tokenize(texts), self.terms), self.idf) @ self.basis)


def fit_lsa(titles: Sequence[str], texts: Sequence[str], *, width: int = 256, seed: int = 0) -> Lsa:
  """Makes the space of a collection.

  Args:
    titles: of the documents.
    texts: of the documents, parallel to titles.
    width: singular vectors kept; fewer where the collection has a lower rank.
    seed: of the Lanczos iteration's first vector.

  Raises:
    ValueError: a collection without words, or titles and texts that are not parallel.
  """
  tokens = document_tokens(titles, texts)
  terms = {term: column for column, term in enumerate(sorted({term for row in tokens for term in row}))}
  counts = _counts(tokens, terms)
  in_documents = np.bincount(counts.indices, minlength=len(terms))
  idf = np.log((1 + len(titles)) / (1 + in_documents)) + 1
  rows = _tf_idf(counts, idf)
  basis = _right_singular_vectors(rows, width, seed)
  return Lsa(terms, idf, basis, unit_rows(rows @ basis))


def document_tokens(titles: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
  """The words of title and text of each document.

  Raises:
    ValueError: no words at all, or titles and texts that are not parallel.
  """
  if len(titles) != len(texts):
    raise ValueError(f"a collection has one title per text, not {len(titles)} titles and {len(texts)} texts")
  tokens = tokenize([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
  if not any(tokens):
    raise ValueError(f"none of the {len(titles)} documents has a word to index")
  return tokens


def quiet_bm25s() -> Any:
  """The module. It takes hold of a device when it is imported, and then sets its logger to say everything.

  A job of several processes must have met before.
  """
  import bm25s

  logging.getLogger("bm25s").setLevel(logging.WARNING)
  return bm25s


def tokenize(texts: Sequence[str]) -> list[list[str]]:
  """Lower-cased words of two letters or more, without English stop words, stemmed (Snowball)."""
  bm25s = quiet_bm25s()
  stemmer = Stemmer.Stemmer("english")
  rows = bm25s.tokenize(list(texts), stopwords="english", stemmer=stemmer, return_ids=False, show_progress=False)
  return cast(list[list[str]], rows)  # words, because return_ids is False


def unit_rows(vectors: Float[np.ndarray, "B R"]) -> Float[np.ndarray, "B R"]:
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.where(length > 0, length, 1)


def _counts(tokens: Sequence[Sequence[str]], terms: dict[str, int]) -> scipy.sparse.csr_array:
  """How often each known term stands in each row; terms that no document has are dropped."""
  columns = [[terms[term] for term in row if term in terms] for row in tokens]
  starts = np.cumsum([0] + [len(row) for row in columns])
  flat = np.fromiter((column for row in columns for column in row), np.int64, starts[-1])
  counts = scipy.sparse.csr_array((np.ones(len(flat)), flat, starts), shape=(len(tokens), len(terms)))
  counts.sum_duplicates()
  return counts


def _tf_idf(counts: scipy.sparse.csr_array, idf: Float[np.ndarray, "V"]) -> scipy.sparse.csr_array:
  """Rows of unit length with (1 + log count) * idf."""
  weighted = counts.copy()
  weighted.data = (1 + np.log(weighted.data)) * idf[weighted.indices]
  length = np.sqrt((weighted * weighted).sum(axis=1))
  weighted.data /= np.repeat(length, np.diff(weighted.indptr))  # only rows with terms have entries
  return weighted


def _right_singular_vectors(rows: scipy.sparse.csr_array, width: int, seed: int) -> Float[np.ndarray, "V R"]:
  """The leading right singular vectors, strongest first; all of them where there are no more than `width`."""
  smaller = min(cast(tuple[int, int], rows.shape))
  if smaller <= width:  # Lanczos wants fewer vectors than the matrix has
    _, strength, vectors = np.linalg.svd(rows.toarray(), full_matrices=False)
    return vectors[strength > 1e-10].T
  start = np.random.default_rng(seed).normal(size=smaller)
  return np.asarray(scipy.sparse.linalg.svds(rows, k=width, v0=start)[2])[::-1].T
