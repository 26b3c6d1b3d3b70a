"""Retrievers to stand beside ours: BM25 and latent semantic analysis, which need no download, and a dense encoder.

    BM25   the lexical baseline that every retriever is set beside: bm25s, Lucene's form, k1 = .9, b = .4, English stems
    LSA    the dense baseline: TF-IDF rows, truncated SVD, cosine (Deerwester et al., 1990)

    dense  sentence vectors of a pretrained encoder (MiniLM), cosine
    hybrid the dense list, put in order by its cosine and BM25 together

All index title and text, and return ranked lists in the form that `retrieval.place_in_ranking` takes. Titles and texts
come in as plain strings, so that nothing here knows a dataset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import time

from jaxtyping import Float, Int
import numpy as np

from diffgr_jax.data.lsa import document_tokens, fit_lsa, quiet_bm25s, tokenize
from diffgr_jax.models.sentence import SentenceEncoder

# Of BM25's share in `hybrid`: best of .05, .1, .2, .3, .4 for MiniLM on gqwiki's validation questions.
HYBRID_WEIGHT = 0.2


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
  index = quiet_bm25s().BM25(k1=k1, b=b)
  index.index(document_tokens(titles, texts), show_progress=False)
  built = time.perf_counter()
  asked = tokenize(queries)
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
  space = fit_lsa(titles, texts, width=width, seed=seed)
  built = time.perf_counter()
  asked = space.vectors(queries)
  indices, scores = _top_k(asked, space.documents, min(k, len(titles)))
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
  encoder = SentenceEncoder(folder)
  documents = encoder.documents(titles, texts)
  built = time.perf_counter()
  indices, scores = _top_k(encoder.vectors(queries), documents, min(k, len(titles)))
  return Ranking(*_fill(indices, scores, k), built - start, time.perf_counter() - built)


def hybrid(vectors: Ranking, words: Ranking, weight: float = HYBRID_WEIGHT) -> Ranking:
  """Puts every list of a dense retriever in order by cosine + weight * BM25 / the query's best BM25.

  Args:
    vectors: lists of `dense`.
    words: lists of `bm25` for the same queries; a document that is not in them counts 0.
    weight: of the words.
  """
  best = np.where(np.isfinite(words.scores[:, :1]), words.scores[:, :1], 1.0)
  named = (vectors.indices[:, :, None] == words.indices[:, None, :]) & (words.indices >= 0)[:, None, :]
  found = np.where(named, words.scores[:, None, :] / best[:, None, :], 0.0).max(axis=2)
  scores = (vectors.scores + weight * found).astype(np.float32)
  order = np.argsort(-scores, axis=1, kind="stable")
  return Ranking(
    np.take_along_axis(vectors.indices, order, axis=1),
    np.take_along_axis(scores, order, axis=1),
    vectors.build_seconds + words.build_seconds,
    vectors.query_seconds + words.query_seconds,
  )


def _check(queries: Sequence[str], k: int) -> None:
  if not queries or k < 1:
    raise ValueError(f"a ranking is for at least one query and one result, not {len(queries)} queries and k = {k}")


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
