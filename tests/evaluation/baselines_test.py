"""BM25 and LSA against their formulas in float64, and collections smaller than the list."""

import collections
import logging

import numpy as np
import pytest

from diffgr_jax.evaluation import baselines, retrieval

WORDS = ["amber", "bison", "cobalt", "dingo", "ember", "falcon", "granit", "hazel", "indigo", "jaguar"]  # own stems


def collection(seed, documents=12):
  rng = np.random.default_rng(seed)
  titles = [str(rng.choice(WORDS)) for _ in range(documents)]
  texts = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(documents)]
  queries = [" ".join(rng.choice(WORDS, 3, replace=False)) for _ in range(5)]
  return titles, texts, queries


def counts_of(texts):
  return np.array([[collections.Counter(text.split())[word] for word in WORDS] for text in texts], np.float64)


def dense(ranking, documents):
  """Scores by document, -inf where not listed."""
  scores = np.full((len(ranking.indices), documents), -np.inf)
  for row, (indices, values) in enumerate(zip(ranking.indices, ranking.scores, strict=True)):
    scores[row, indices[indices >= 0]] = values[indices >= 0]
  return scores


def test_bm25_scores_are_the_formula():
  titles, texts, queries = collection(0)
  tf = counts_of([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
  in_documents = (tf > 0).sum(axis=0)
  idf = np.log(1 + (len(tf) - in_documents + 0.5) / (in_documents + 0.5))
  length = tf.sum(axis=1, keepdims=True)
  expected = (counts_of(queries) > 0) @ (idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * length / length.mean()))).T
  actual = dense(baselines.bm25(titles, texts, queries), len(tf))
  np.testing.assert_allclose(actual, np.where(expected > 0, expected, -np.inf), rtol=1e-5)


def test_bm25_says_nothing(caplog):
  with caplog.at_level(logging.DEBUG):
    baselines.bm25(["a lamp", "silver"], ["red light", "metal"], ["lamp"], 1)
  assert caplog.records == []


@pytest.mark.parametrize("width", [4, 256])  # fewer than the rank, and all of it
def test_lsa_scores_are_the_cosines_of_the_projections(width):
  titles, texts, queries = collection(1)
  tf = counts_of([f"{title} {text}" for title, text in zip(titles, texts, strict=True)])
  idf = np.log((1 + len(tf)) / (1 + (tf > 0).sum(axis=0))) + 1

  def rows(counts):
    weighted = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    return weighted / np.linalg.norm(weighted, axis=1, keepdims=True)

  basis = np.linalg.svd(rows(tf), full_matrices=False)[2][:width].T
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  expected = unit(rows(counts_of(queries)) @ basis) @ unit(rows(tf) @ basis).T
  actual = dense(baselines.lsa(titles, texts, queries, width=width), len(tf))
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("rank", [baselines.bm25, baselines.lsa])
def test_lists_are_sorted_cut_at_k_and_filled_beyond_the_collection(rank):
  titles, texts, queries = collection(2)
  long, short = rank(titles, texts, queries, 20), rank(titles, texts, queries, 3)
  assert long.indices.shape == long.scores.shape == (5, 20)
  assert (long.scores[:, :-1] >= long.scores[:, 1:]).all()
  np.testing.assert_array_equal(long.indices == -1, np.isneginf(long.scores))
  assert (long.indices[:, 12:] == -1).all()
  np.testing.assert_array_equal(short.scores, long.scores[:, :3])
  assert long.build_seconds >= 0
  assert long.query_seconds >= 0


def test_a_hybrid_orders_the_dense_lists_by_both_scores():
  rng = np.random.default_rng()
  vectors = baselines.Ranking(np.array([[4, 2, 7], [1, 0, 3]]), rng.normal(size=(2, 3)).astype(np.float32), 1.0, 2.0)
  words = baselines.Ranking(np.array([[2, 9, 4], [-1, -1, -1]]), np.array([[8, 4, 2], [-np.inf] * 3]), 3.0, 4.0)
  got = baselines.hybrid(vectors, words, 0.5)
  first = {4: vectors.scores[0, 0] + 0.5 * 2 / 8, 2: vectors.scores[0, 1] + 0.5, 7: vectors.scores[0, 2]}
  assert got.indices[0].tolist() == sorted(first, key=first.get, reverse=True)
  np.testing.assert_allclose(got.scores[0], sorted(first.values(), reverse=True), rtol=1e-6)
  np.testing.assert_allclose(got.scores[1], np.sort(vectors.scores[1])[::-1], rtol=1e-6)  # no word is known
  assert (got.build_seconds, got.query_seconds) == (4.0, 6.0)


@pytest.mark.parametrize("rank", [baselines.bm25, baselines.lsa])
def test_stems_stop_words_and_case_do_not_matter(rank):
  found = rank(["Joins", "Splits"], ["joined paths", "splitting of strings"], ["the JOINING", "string"], 2)
  np.testing.assert_array_equal(found.indices[:, 0], [0, 1])


@pytest.mark.parametrize("rank", [baselines.bm25, baselines.lsa])
def test_a_query_without_a_known_word_has_an_empty_list(rank):
  found = rank(["amber"], ["bison"], ["zebra", "", "the", "bison"], 4)
  np.testing.assert_array_equal(found.indices, [[-1] * 4, [-1] * 4, [-1] * 4, [0, -1, -1, -1]])


@pytest.mark.parametrize("rank", [baselines.bm25, baselines.lsa])
def test_the_lists_are_what_the_metrics_take(rank):
  titles, texts, _ = collection(3)
  titles = [f"{title} unique{i}" for i, title in enumerate(titles)]
  found = rank(titles, texts, [f"unique{i}" for i in range(12)])
  metrics = retrieval.retrieval_metrics(
    retrieval.place_in_ranking(found.indices, found.scores, [[i] for i in range(12)])
  )
  np.testing.assert_array_equal(metrics["Hit@1"], np.ones(12))


def test_lsa_is_the_same_with_the_same_seed():
  titles, texts, queries = collection(4)
  first, second = (baselines.lsa(titles, texts, queries, width=3, seed=7) for _ in range(2))
  np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize("rank", [baselines.bm25, baselines.lsa])
@pytest.mark.parametrize(
  "titles, texts, queries, k, message",
  [
    (["amber"], ["bison"], [], 3, "0 queries"),
    (["amber"], ["bison"], ["amber"], 0, "k = 0"),
    (["amber"], ["bison", "cobalt"], ["amber"], 3, "1 titles and 2 texts"),
    (["a", ""], ["the", "of"], ["amber"], 3, "none of the 2 documents"),
    ([], [], ["amber"], 3, "none of the 0 documents"),
  ],
)
def test_impossible_input_gets_one_clear_line(rank, titles, texts, queries, k, message):
  with pytest.raises(ValueError, match=message):
    rank(titles, texts, queries, k)
