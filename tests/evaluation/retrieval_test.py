"""Metrics against every order of the ties, one permutation at a time."""

import itertools
import json

import numpy as np
import pytest

from diffgr_jax.evaluation import retrieval

HIT_AT, MRR_AT, NDCG_AT = (1, 3, 100), (2, 100), (1, 3, 10)


def brute_force(scores, grade_of):
  """The mean of each metric over all orders of all documents in which scores never rise."""
  totals, orders = {}, 0
  for order in itertools.permutations(range(len(scores))):
    if any(scores[a] < scores[b] for a, b in itertools.pairwise(order)):
      continue
    orders += 1
    grades = [grade_of.get(document, 0) for document in order]
    first = next(rank for rank, grade in enumerate(grades, 1) if grade)
    for k in HIT_AT:
      totals[f"Hit@{k}"] = totals.get(f"Hit@{k}", 0) + (first <= k)
    for k in MRR_AT:
      totals[f"MRR@{k}"] = totals.get(f"MRR@{k}", 0) + (1 / first if first <= k else 0)
    for k in NDCG_AT:
      gain = sum(grade / np.log2(rank + 1) for rank, grade in enumerate(grades[:k], 1))
      best = sum(grade / np.log2(rank + 1) for rank, grade in enumerate(sorted(grades)[::-1][:k], 1))
      totals[f"nDCG@{k}"] = totals.get(f"nDCG@{k}", 0) + gain / best
  return {name: total / orders for name, total in totals.items()}


def tied_problem(seed, queries=12, documents=6):
  """Scores of three values, so that most are tied, and one to four relevant documents with grades 1 to 3."""
  rng = np.random.default_rng(seed)
  scores = rng.choice([0.0, 1.5, -np.inf], (queries, documents))
  relevant = [rng.choice(documents, rng.integers(1, 5), replace=False).tolist() for _ in range(queries)]
  grades = [rng.integers(1, 4, len(row)).tolist() for row in relevant]
  return scores, relevant, grades


def check(placements, scores, relevant, grades):
  metrics = retrieval.retrieval_metrics(placements, HIT_AT, MRR_AT, NDCG_AT)
  assert set(metrics) == {*(f"Hit@{k}" for k in HIT_AT), *(f"MRR@{k}" for k in MRR_AT), *(f"nDCG@{k}" for k in NDCG_AT)}
  for q in range(len(scores)):
    expected = brute_force(scores[q], dict(zip(relevant[q], grades[q], strict=True)))
    for name, value in expected.items():
      np.testing.assert_allclose(metrics[name][q], value, atol=1e-12, err_msg=f"query {q} {name}")


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_scores_are_the_mean_over_all_orders_of_ties(seed):
  scores, relevant, grades = tied_problem(seed)
  check(retrieval.place_in_scores(scores, relevant, grades), scores, relevant, grades)


def test_metrics_of_ranked_lists_are_those_of_the_scores():
  scores, relevant, grades = tied_problem(5)
  rng = np.random.default_rng(6)
  order = np.stack([rng.permutation(scores.shape[1]) for _ in scores])  # any order: the scores decide
  listed = np.take_along_axis(scores, order, axis=1)
  check(retrieval.place_in_ranking(order, listed, relevant, grades), scores, relevant, grades)


def test_without_ties_the_metrics_are_the_ordinary_ones():
  rng = np.random.default_rng(7)
  scores = rng.normal(size=(40, 300))
  relevant = [[int(rng.integers(300))] for _ in range(40)]
  metrics = retrieval.retrieval_metrics(retrieval.place_in_scores(scores, relevant))
  rank = np.array([1 + (row > row[document[0]]).sum() for row, document in zip(scores, relevant, strict=True)])
  for k in (1, 10, 100):
    np.testing.assert_allclose(metrics[f"Hit@{k}"], rank <= k, atol=1e-12)
  for k in (10, 100):
    np.testing.assert_allclose(metrics[f"MRR@{k}"], np.where(rank <= k, 1 / rank, 0), atol=1e-12)
  np.testing.assert_allclose(metrics["nDCG@10"], np.where(rank <= 10, 1 / np.log2(rank + 1), 0), atol=1e-12)


def test_a_constant_system_gets_what_chance_gets():
  metrics = retrieval.retrieval_metrics(retrieval.place_in_scores(np.zeros((1, 500)), [[17]]))
  np.testing.assert_allclose(
    [metrics["Hit@1"][0], metrics["Hit@10"][0], metrics["Hit@100"][0]], [1 / 500, 1 / 50, 1 / 5]
  )
  np.testing.assert_allclose(metrics["MRR@10"][0], (1 / np.arange(1, 11)).sum() / 500)


def test_documents_that_share_an_identifier_tie_whatever_their_rounding():
  codes = np.array([[4, 1], [5, 2], [4, 1], [5, 3], [4, 1]])
  same_as = retrieval.shared_identifiers(codes)
  np.testing.assert_array_equal(same_as, [0, 1, 0, 3, 0])
  scores = np.array([[1.0, 0.5, 1.0 + 1e-7, 0.2, 1.0 - 1e-7]])
  placed = retrieval.place_in_scores(scores, [[2]], same_as=same_as)
  np.testing.assert_allclose(retrieval.retrieval_metrics(placed)["Hit@1"], 1 / 3)
  unaware = retrieval.place_in_scores(scores, [[2]])
  np.testing.assert_allclose(retrieval.retrieval_metrics(unaware)["Hit@1"], 1.0)


def test_a_missing_result_takes_no_rank_and_an_unlisted_document_has_none():
  indices = np.array([[-1, 7, -1, 3], [9, 8, -1, -1]])
  scores = np.array([[9.0, 2.0, 9.0, 1.0], [1.0, 1.0, np.nan, -np.inf]])
  metrics = retrieval.retrieval_metrics(retrieval.place_in_ranking(indices, scores, [[3], [5]]))
  np.testing.assert_allclose(metrics["MRR@10"], [0.5, 0.0])
  np.testing.assert_allclose(metrics["Hit@100"], [1.0, 0.0])
  np.testing.assert_allclose(metrics["nDCG@10"], [1 / np.log2(3), 0.0])


def test_chunks_of_queries_join_to_the_whole_and_blocks_change_nothing(monkeypatch):
  scores, relevant, grades = tied_problem(8)
  whole = retrieval.retrieval_metrics(retrieval.place_in_scores(scores, relevant, grades))
  monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 13)
  parts = [
    retrieval.place_in_scores(scores[rows], relevant[rows], grades[rows])
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12))
  ]
  joined = retrieval.retrieval_metrics(retrieval.join_placements(parts))
  for name, values in whole.items():
    np.testing.assert_array_equal(joined[name], values)
  assert retrieval.means(joined)["MRR@10"] == pytest.approx(whole["MRR@10"].sum() / 12)


def test_grade_zero_is_not_relevant():
  scores = np.array([[3.0, 2.0, 1.0]])
  with_zero = retrieval.place_in_scores(scores, [[0, 1]], [[0, 2]])
  without = retrieval.place_in_scores(scores, [[1]], [[2]])
  for name, values in retrieval.retrieval_metrics(without).items():
    np.testing.assert_array_equal(retrieval.retrieval_metrics(with_zero)[name], values)


@pytest.mark.parametrize("least", [2, 3])
def test_hit_and_mrr_may_count_from_a_higher_grade(least):
  scores, relevant, grades = tied_problem(9)
  metrics = retrieval.retrieval_metrics(
    retrieval.place_in_scores(scores, relevant, grades), HIT_AT, MRR_AT, NDCG_AT, relevant_grade=least
  )
  without = 0
  for q in range(len(scores)):
    graded = dict(zip(relevant[q], grades[q], strict=True))
    counted = {document: grade for document, grade in graded.items() if grade >= least}
    expected = brute_force(scores[q], counted) if counted else {}
    without += not counted
    for name in (name for name in metrics if not name.startswith("nDCG")):
      np.testing.assert_allclose(metrics[name][q], expected.get(name, 0.0), atol=1e-12)
    for name, value in brute_force(scores[q], graded).items():
      if name.startswith("nDCG"):
        np.testing.assert_allclose(metrics[name][q], value, atol=1e-12)
  assert without > 0 or least == 2


@pytest.mark.parametrize(
  "relevant, grades, message",
  [
    ([[0], []], None, "query 1 has no relevant document"),
    ([[0], [1]], [[1], [0]], "query 1 has no relevant document"),
    ([[0], [3]], None, "relevant document 3 is not"),
    ([[-1], [0]], None, "relevant document -1 is not"),
    ([[0], [2, 2]], None, "query 1 has the relevant document 2 twice"),
    ([[0]], None, "one list each"),
    ([[0], [1]], [[1], [1, 1]], "parallel"),
  ],
)
def test_bad_judgements_are_refused(relevant, grades, message):
  with pytest.raises(ValueError, match=message):
    retrieval.place_in_scores(np.zeros((2, 3)), relevant, grades)


def test_bad_scores_and_lists_are_refused():
  with pytest.raises(ValueError, match="query 1 has a score that is NaN"):
    retrieval.place_in_scores(np.array([[0.0, 1.0], [np.nan, 1.0]]), [[0], [0]])
  with pytest.raises(ValueError, match="query 0 lists document 4 twice"):
    retrieval.place_in_ranking(np.array([[4, 2, 4]]), np.array([[3.0, 2.0, 1.0]]), [[4]])


def test_paired_bootstrap_is_the_interval_of_the_mean_difference():
  rng = np.random.default_rng(9)
  b = rng.random(400)
  a = b + rng.normal(0.1, 0.5, 400)
  interval = retrieval.paired_bootstrap(a, b, seed=1)
  half = 1.96 * (a - b).std() / 20  # the normal interval, which 400 pairs are enough for
  assert interval.difference == pytest.approx((a - b).mean())
  assert interval.low == pytest.approx(interval.difference - half, abs=0.1 * half)
  assert interval.high == pytest.approx(interval.difference + half, abs=0.1 * half)
  assert interval == retrieval.paired_bootstrap(a, b, seed=1)
  assert interval != retrieval.paired_bootstrap(a, b, seed=2)


def test_paired_bootstrap_pairs():
  """A constant gain on very different queries has no spread at all; unpaired, it would have a wide one."""
  b = np.linspace(0, 100, 50)
  interval = retrieval.paired_bootstrap(b + 1, b, seed=0, samples=200)
  np.testing.assert_allclose([interval.low, interval.high], 1.0)
  with pytest.raises(ValueError, match="50 against 49"):
    retrieval.paired_bootstrap(b, b[1:], seed=0)


def test_bootstrap_blocks_cover_all_samples(monkeypatch):
  a, b = np.arange(10.0), np.zeros(10)
  whole = retrieval.paired_bootstrap(a, b, seed=3, samples=500)
  monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", 70)  # 7 samples a block, 500 is no multiple
  assert retrieval.paired_bootstrap(a, b, seed=3, samples=500) == whole


def test_invalid_rate():
  assert retrieval.invalid_rate(np.array([[True, False], [True, True]])) == 0.25
  with pytest.raises(ValueError, match="at least one"):
    retrieval.invalid_rate(np.zeros((0, 4), bool))


def test_tables_align_and_show_what_is_missing():
  rows = [{"method": "BM25", "Hit@1": 0.69812}, {"method": "one pass", "Hit@1": np.float64(0.5), "queries": 411}]
  assert retrieval.format_table(rows).split("\n") == [
    "| method   | Hit@1 | queries |",
    "| -------- | ----: | ------: |",
    "| BM25     | 0.698 |       - |",
    "| one pass | 0.500 |     411 |",
  ]
  assert retrieval.format_table(rows, markdown=False).split("\n") == [
    "method    Hit@1  queries",
    "--------  -----  -------",
    "BM25      0.698        -",
    "one pass  0.500      411",
  ]


def test_a_results_record_survives_json_and_says_where_it_was_made():
  metrics = {"test": {"BM25": {"Hit@1": np.float64(0.5), "queries": np.int64(4)}}}
  record = retrieval.results_record(
    command="python -m diffgr_jax.evaluate", status="measured", seeds={"init": 0}, metrics=metrics
  )
  assert json.loads(json.dumps(record, allow_nan=False)) == record
  assert record["metrics"] == {"test": {"BM25": {"Hit@1": 0.5, "queries": 4}}}
  assert record["versions"]["numpy"] == np.__version__
  assert record["machine"]["cpus"] >= 1
  assert set(record) == {"command", "status", "seeds", "settings", "versions", "machine", "metrics", "exposure"}


def test_a_results_record_refuses_an_unknown_status_and_nan():
  with pytest.raises(ValueError, match="measured, compiled, estimated, not 'guessed'"):
    retrieval.results_record(command="x", status="guessed", seeds={}, metrics={})
  with pytest.raises(ValueError, match=r"metrics\['test'\]\['BM25'\]\['Hit@1'\] is nan"):
    retrieval.results_record(command="x", status="measured", seeds={}, metrics={"test": {"BM25": {"Hit@1": np.nan}}})
