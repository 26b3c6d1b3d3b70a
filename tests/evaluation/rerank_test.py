"""Metrics of rankings by hand, the best possible by enumeration, and what is refused."""

import itertools
import math

import numpy as np
import pytest

from diffgr_jax.evaluation import rerank
from diffgr_jax.rerank.records import RankingTask


def task(candidates, target):
  return RankingTask("u", (99,), tuple(candidates), target, ())


def test_metrics_are_those_of_the_targets_place():
  rng = np.random.default_rng()
  tasks, rankings = [], []
  for _ in range(40):
    size = int(rng.integers(2, 12))
    candidates = rng.choice(50, size, replace=False).tolist()
    tasks.append(task(candidates, candidates[rng.integers(size)]))
    rankings.append(rng.permutation(candidates).tolist())
  metrics = rerank.ranking_metrics(rankings, tasks)
  assert list(metrics) == ["R@1", "R@3", "R@5", "NDCG@3", "NDCG@5", "NDCG@10"]
  for row, (ranking, own) in enumerate(zip(rankings, tasks, strict=True)):
    place = ranking.index(own.target) + 1
    for name, values in metrics.items():
      kind, k = name.split("@")
      inside = place <= int(k)
      assert values[row] == pytest.approx(inside * (1.0 if kind == "R" else 1 / math.log2(place + 1)))


def test_the_best_possible_is_the_best_of_all_orders():
  chances = np.random.default_rng().dirichlet(np.ones(5), size=3)
  best = rerank.best_possible(chances)
  for row, own in enumerate(chances):
    values = {name: [] for name in best}
    for order in itertools.permutations(range(5)):
      expected = dict.fromkeys(best, 0.0)
      for target, chance in enumerate(own):
        found = rerank.ranking_metrics([order], [task(range(5), target)])
        for name in best:
          expected[name] += chance * found[name][0]
      for name in best:
        values[name].append(expected[name])
    for name in best:
      assert best[name][row] == pytest.approx(max(values[name]))


def test_equal_scores_stay_in_the_retrievers_order():
  tasks = [task((7, 3, 9), 3), task((4, 2), 2)]
  assert rerank.order_by_scores(tasks, [np.array([0.5, 0.5, 1.0]), np.array([0.0, 0.0])]) == [(9, 7, 3), (4, 2)]
  assert rerank.retriever_order(tasks) == [(7, 3, 9), (4, 2)]
  assert rerank.target_places(tasks).tolist() == [0, 2, 0]


@pytest.mark.parametrize(
  "rankings, message",
  [
    ([(1, 2)], "1 rankings of 2 lists"),
    ([(1, 2, 3), (1, 2)], "list 1 .user 'u'.: the ranking is no permutation"),
    ([(1, 2, 3), (1, 2, 2)], "no permutation"),
    ([(1, 2, 4), (1, 2, 3)], "list 0 .user 'u'.: the ranking is no permutation"),
  ],
)
def test_what_is_no_permutation_is_refused(rankings, message):
  with pytest.raises(ValueError, match=message):
    rerank.ranking_metrics(rankings, [task((1, 2, 3), 1), task((1, 2, 3), 2)])


def test_a_list_without_its_target_is_refused():
  with pytest.raises(ValueError, match="the target is not among the candidates"):
    rerank.ranking_metrics([(1, 2)], [task((1, 2), 5)])
  with pytest.raises(ValueError, match="0 rankings of 0 lists"):
    rerank.ranking_metrics([], [])


def test_systems_are_compared_by_their_paired_differences():
  tasks = [task((1, 2, 3), 2)] * 50
  systems = {
    "retriever": rerank.ranking_metrics([(1, 2, 3)] * 50, tasks),
    "better": rerank.ranking_metrics([(2, 1, 3)] * 40 + [(1, 2, 3)] * 10, tasks),
  }
  figures = rerank.compare(systems, "retriever")
  assert figures["retriever"]["R@1"] == 0.0
  assert figures["better"]["R@1"] == figures["better"]["R@1 - retriever"] == 0.8
  assert 0.65 < figures["better"]["R@1 - retriever low"] < 0.8 < figures["better"]["R@1 - retriever high"] < 0.93
  table = rerank.ranking_table(figures)
  assert "R@1 - retriever (95%)" in table
  low, high = (figures["better"][f"R@1 - retriever {end}"] for end in ("low", "high"))
  assert f"{low:+.3f} to {high:+.3f}" in table
  with pytest.raises(ValueError, match="the baseline 'x' is not among retriever, better"):
    rerank.compare(systems, "x")
