"""Groups of questions by training exposure, against a count by hand and against the metrics of each group alone."""

import numpy as np
import pytest

from diffgr_jax.data.records import Query
from diffgr_jax.evaluation import exposure
from diffgr_jax.evaluation.retrieval import paired_bootstrap

DOC_IDS = tuple("abcdefg")
TRAIN = [Query(str(i), "?", tuple(ids)) for i, ids in enumerate(["b", "cc", "cd", "cx", "d", *"eeeee", "ef", "gx"])]
ASKED = [0, 1, 3, 2, 6, 1, 1]  # of a to g: a question that names a document twice counts once


def test_training_questions_are_counted_by_document():
  assert exposure.training_questions(TRAIN, DOC_IDS).tolist() == ASKED
  assert exposure.training_questions([], DOC_IDS).tolist() == [0] * 7


def test_a_question_belongs_to_its_most_asked_document():
  asked = np.array(ASKED)
  assert exposure.exposures([[0], [0, 5], [2, 1], [4]], asked).tolist() == [0, 1, 3, 6]


def test_groups_are_what_their_names_say():
  by_hand = {
    "unseen": [0], "seen": [1, 2, 3, 4, 5, 6, 99], "0": [0], "1": [1], "2-4": [2, 3, 4], "5+": [5, 6, 99],
  }  # fmt: skip
  counts = np.array([0, 1, 2, 3, 4, 5, 6, 99])
  assert {name: counts[inside].tolist() for name, inside in exposure.members(counts).items()} == by_hand


def test_figures_are_those_of_the_group_alone():
  rng = np.random.default_rng(0)
  counts = rng.choice([0, 1, 2, 7], 60)
  per_query = {
    method: {"Hit@1": rng.integers(0, 2, 60).astype(float), "nDCG@10": rng.random(60)} for method in ("BM25", "ours")
  } | {"one document": {"Hit@1": rng.integers(0, 2, 60).astype(float)}}
  figures = exposure.exposure_figures(per_query, counts)
  assert list(figures) == ["unseen", "seen", "0", "1", "2-4", "5+"]
  assert figures["unseen"] == figures["0"]
  for name, chosen in (("seen", counts > 0), ("1", counts == 1), ("2-4", counts == 2), ("5+", counts == 7)):
    for method, metrics in per_query.items():
      row = figures[name][method]
      assert row["queries"] == sum(chosen)
      for metric, values in metrics.items():
        assert row[metric] == pytest.approx(sum(v for v, own in zip(values, chosen, strict=True) if own) / sum(chosen))
      assert ("Hit@1 - BM25 low" in row) == (method != "BM25")
    interval = paired_bootstrap(per_query["ours"]["Hit@1"][chosen], per_query["BM25"]["Hit@1"][chosen], seed=0)
    assert figures[name]["ours"]["Hit@1 - BM25 low"] == interval.low
    assert "nDCG@10" not in figures[name]["one document"]


def test_a_group_without_questions_is_left_out():
  figures = exposure.exposure_figures({"ours": {"Hit@1": np.ones(3)}}, np.zeros(3, int))
  assert list(figures) == ["unseen", "0"]
  assert figures["0"]["ours"] == {"Hit@1": 1.0, "queries": 3}  # nothing to compare with
