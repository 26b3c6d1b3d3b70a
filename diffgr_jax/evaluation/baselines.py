"""Retrievers to stand beside ours: BM25 and latent semantic analysis, which need no download, and a dense encoder.

    BM25   the lexical baseline that every retriever is set beside: bm25s, Lucene's form, k1 = .9, b = .4, English stems
    LSA    the dense baseline: TF-IDF rows, truncated SVD, cosine (Deerwester et al., 1990)

    dense  sentence vectors of a pretrained encoder (MiniLM), cosine

All index title and text, and return ranked lists in the form that `retrieval.place_in_ranking` takes. Titles and texts
come in as plain strings, so that nothing here knows a dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import time
from typing import cast

import bm25s
from jaxtyping import Float, Int
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import Stemmer

from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.models.encoder import encode_texts
from diffgr_jax.models.hf_weights import load_hf

_SENTENCE_PIECES = 128  # what MiniLM was trained with


@dataclass(frozen=True)
class Ranking:
  """The best documents of each query, best first, and what they cost."""

  indices: Int[np.ndarray, "Q K"]  # -1 where the list is shorter
  scores: Float[np.ndarray, "Q K"]  # -inf there
  build_seconds: float  # indexing the documents
  query_seconds: float  # answering all queries


def bm25(
  titles: Sequence[str],
  texts: Sequence[str],
  queries: Sequence[str],
  k: int = 100,
  *,
  k1: float = 0.9,
  b: float = 0.4,
) -> Ranking:
  """Ranks documents by BM25 over title and text.

  A list holds only documents that share a word with the query, so it may be shorter than k.

  Args:
    titles: of the documents.
    texts: of the documents, parallel to titles.
    queries: the questions.
    k: length of the lists.
    k1: saturation of a term's frequency.
    b: strength of the normalisation by length.

  Raises:
    ValueError: no queries, a collection without words, titles and texts that are not parallel, or k below 1.
  """
  _check(queries, k)
  start = time.perf_counter()
  index = bm25s.BM25(k1=k1, b=b)
  index.index(_document_tokens(titles, texts), show_progress=False)
  built = time.perf_counter()
  asked = _tokens(queries)
  indices, scores = index.retrieve(asked, k=min(k, len(titles)), show_progress=False, backend_selection="numpy")
  indices = np.where(scores > 0, indices, -1).astype(np.int64)
  scores = np.where(scores > 0, scores, -np.inf).astype(np.float32)
  return Ranking(*_fill(indices, scores, k), built - start, time.perf_counter() - built)


def lsa(
  titles: Sequence[str],
  texts: Sequence[str],
  queries: Sequence[str],
  k: int = 100,
  *,
  width: int = 256,
  seed: int = 0,
) -> Ranking:
  """Ranks documents by the cosine of their TF-IDF rows' projections on the leading right singular vectors.

  The list of a query without any word of the collection is empty.

  Args:
    titles: of the documents.
    texts: of the documents, parallel to titles.
    queries: the questions.
    k: length of the lists.
    width: singular vectors kept; fewer where the collection has a lower rank.
    seed: of the Lanczos iteration's first vector.

  Raises:
    ValueError: no queries, a collection without words, titles and texts that are not parallel, or k below 1.
  """
  _check(queries, k)
  start = time.perf_counter()
  tokens = _document_tokens(titles, texts)
  terms = {term: column for column, term in enumerate(sorted({term for row in tokens for term in row}))}
  counts = _counts(tokens, terms)
  in_documents = np.bincount(counts.indices, minlength=len(terms))
  idf = np.log((1 + len(titles)) / (1 + in_documents)) + 1
  rows = _tf_idf(counts, idf)
  basis = _right_singular_vectors(rows, width, seed)
  documents = _unit_rows(rows @ basis)
  built = time.perf_counter()
  asked = _unit_rows(_tf_idf(_counts(_tokens(queries), terms), idf) @ basis)
  indices, scores = _top_k(asked, documents, min(k, len(titles)))
  unknown = ~asked.any(axis=1, keepdims=True)
  indices, scores = np.where(unknown, -1, indices), np.where(unknown, np.float32(-np.inf), scores)
  return Ranking(*_fill(indices, scores, k), built - start, time.perf_counter() - built)


def dense(
  titles: Sequence[str], texts: Sequence[str], queries: Sequence[str], k: int = 100, *, folder: Path
) -> Ranking:
  """Ranks documents by the cosine of sentence vectors (MiniLM: mean pooling, "title. text", at most 128 pieces).

  Args:
    titles: of the documents.
    texts: of the documents, parallel to titles.
    queries: the questions.
    k: length of the lists.
    folder: a Hugging Face folder with an encoder and its tokenizer.json.
  """
  _check(queries, k)
  start = time.perf_counter()
  spec, params = load_hf(folder)
  tokenizer = HfTokenizer(folder)
  encode = lambda rows: encode_texts(params, spec.config, tokenizer, rows, max_length=_SENTENCE_PIECES)
  documents = encode([f"{title}. {text}" for title, text in zip(titles, texts, strict=True)])
  built = time.perf_counter()
  indices, scores = _top_k(encode(list(queries)), documents, min(k, len(titles)))
  return Ranking(*_fill(indices, scores, k), built - start, time.perf_counter() - built)


def _check(queries: Sequence[str], k: int) -> None:
  if not queries or k < 1:
    raise ValueError(f"a ranking is for at least one query and one result, not {len(queries)} queries and k = {k}")


def _document_tokens(titles: Sequence[str], texts: Sequence[str]) -> list[list[str]]:
  if len(titles) != len(texts):
    raise ValueError(f"a collection has one title per text, not {len(titles)} titles and {len(texts)} texts")
  tokens = _tokens([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
  if not any(tokens):
    raise ValueError(f"none of the {len(titles)} documents has a word to index")
  return tokens


def _tokens(texts: Sequence[str]) -> list[list[str]]:
  """Lower-cased words of two letters or more, without English stop words, stemmed (Snowball)."""
  stemmer = Stemmer.Stemmer("english")
  rows = bm25s.tokenize(list(texts), stopwords="english", stemmer=stemmer, return_ids=False, show_progress=False)
  return cast(list[list[str]], rows)  # words, because return_ids is False


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
  """The leading right singular vectors; all of them where there are no more than `width`."""
  smaller = min(cast(tuple[int, int], rows.shape))
  if smaller <= width:  # Lanczos wants fewer vectors than the matrix has
    _, strength, vectors = np.linalg.svd(rows.toarray(), full_matrices=False)
    return vectors[strength > 1e-10].T
  start = np.random.default_rng(seed).normal(size=smaller)
  return np.asarray(scipy.sparse.linalg.svds(rows, k=width, v0=start)[2]).T


def _unit_rows(vectors: Float[np.ndarray, "B R"]) -> Float[np.ndarray, "B R"]:
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.where(length > 0, length, 1)


def _top_k(queries: Float[np.ndarray, "Q R"], documents: Float[np.ndarray, "N R"], k: int):
  """Indices and cosines of the k nearest documents, in blocks of queries."""
  indices, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
  for start in range(0, len(queries), 256):
    block = slice(start, start + 256)
    cosine = (queries[block] @ documents.T).astype(np.float32)
    best = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(cosine, best, axis=1), axis=1, kind="stable")
    indices[block] = np.take_along_axis(best, order, axis=1)
    scores[block] = np.take_along_axis(cosine, indices[block], axis=1)
  return indices, scores


def _fill(indices: Int[np.ndarray, "Q M"], scores: Float[np.ndarray, "Q M"], k: int):
  """Lengthens the lists of a small collection to k."""
  missing = ((0, 0), (0, k - indices.shape[1]))
  return np.pad(indices, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
