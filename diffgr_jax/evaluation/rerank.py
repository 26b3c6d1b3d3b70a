"""How well lists are put in order: R@k and NDCG@k of the one item that was taken, with paired intervals.

    candidates (a b c d)   ranking (c a d b)   target a        its place is 2: R@1 = 0, R@3 = 1, NDCG@3 = 1 / log2(3)

A ranking is a permutation of its list's candidates; what is not is refused here, and is to be mended before. One list,
one relevant item, so NDCG@k is the target's discount. Systems are compared on the same lists, by paired differences.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Float, Int
import numpy as np

from diffgr_jax.evaluation.retrieval import (
  format_table,
  means,
  paired_bootstrap,
  place_in_ranking,
  retrieval_metrics,
)
from diffgr_jax.rerank.records import RankingTask

RECALL_AT = (1, 3, 5)
NDCG_AT = (3, 5, 10)
COMPARED = ("R@1", "NDCG@3")  # with an interval in the table


def ranking_metrics(
  rankings: Sequence[Sequence[int]], tasks: Sequence[RankingTask]
) -> dict[str, Float[np.ndarray, "Q"]]:
  """R@1, R@3, R@5, NDCG@3, NDCG@5 and NDCG@10 of each list.

  Args:
    rankings: of each task, its candidates, best first.
    tasks: the lists, each with its target among the candidates.

  Raises:
    ValueError: a ranking that is no permutation of its list's candidates, or a target that is not among them.
  """
  if len(rankings) != len(tasks) or not tasks:
    raise ValueError(f"{len(rankings)} rankings of {len(tasks)} lists: give one each, of at least one list")
  for row, (ranking, task) in enumerate(zip(rankings, tasks, strict=True)):
    if len(ranking) != len(task.candidates) or set(ranking) != set(task.candidates):
      raise ValueError(f"list {row} (user {task.user!r}): the ranking is no permutation of its candidates")
    if task.target_rank < 0:
      raise ValueError(f"list {row} (user {task.user!r}): the target is not among the candidates")
  width = max(len(ranking) for ranking in rankings)
  indices = np.full((len(rankings), width), -1, np.int64)
  for row, ranking in enumerate(rankings):
    indices[row, : len(ranking)] = ranking
  scores = np.broadcast_to(-np.arange(width, dtype=np.float64), indices.shape)
  placed = place_in_ranking(indices, scores, [[task.target] for task in tasks])
  found = retrieval_metrics(placed, hit_at=RECALL_AT, mrr_at=(), ndcg_at=NDCG_AT)
  return {name.replace("Hit@", "R@").replace("nDCG@", "NDCG@"): values for name, values in found.items()}


def order_by_scores(tasks: Sequence[RankingTask], scores: Sequence[Float[np.ndarray, "_"]]) -> list[tuple[int, ...]]:
  """Each list's candidates by falling score; equal ones stay in the retriever's order."""
  return [
    tuple(task.candidates[at] for at in np.argsort(-np.asarray(own), kind="stable"))
    for task, own in zip(tasks, scores, strict=True)
  ]


def best_possible(posteriors: Float[np.ndarray, "Q K"]) -> dict[str, Float[np.ndarray, "Q"]]:
  """The expectation of every metric, list by list, if candidates stand by falling probability: no order has more.

  Args:
    posteriors: of each list, P(target = candidate | what may be known), rows that sum to 1.
  """
  falling = -np.sort(-posteriors, axis=1)
  discount = 1.0 / np.log2(np.arange(2, falling.shape[1] + 2))
  metrics = {f"R@{k}": falling[:, :k].sum(axis=1) for k in RECALL_AT}
  return metrics | {f"NDCG@{k}": (falling * discount)[:, :k].sum(axis=1) for k in NDCG_AT}


def compare(
  per_list: Mapping[str, Mapping[str, Float[np.ndarray, "Q"]]], baseline: str, seed: int = 0
) -> dict[str, dict[str, float]]:
  """The figures of every system: means, the number of lists, and 95% intervals of the differences to the baseline.

  Args:
    per_list: system -> metric -> values, of the same lists in the same order.
    baseline: a system.
    seed: of the bootstrap.

  Returns:
    system -> `R@1`, ..., `lists`, and for each of `COMPARED` `X - BASELINE`, with ` low` and ` high`; the baseline has
    none of these.
  """
  if baseline not in per_list:
    raise ValueError(f"the baseline {baseline!r} is not among {', '.join(per_list)}")
  figures = {}
  for system, metrics in per_list.items():
    row = means(metrics) | {"lists": len(metrics[COMPARED[0]])}
    for name in COMPARED if system != baseline else ():
      interval = paired_bootstrap(metrics[name], per_list[baseline][name], seed)
      key = f"{name} - {baseline}"
      row |= {key: interval.difference, f"{key} low": interval.low, f"{key} high": interval.high}
    figures[system] = row
  return figures


def ranking_table(figures: Mapping[str, Mapping[str, float]], markdown: bool = False) -> str:
  """The figures as a table, an interval as `LOW to HIGH`."""
  rows = []
  for system, values in figures.items():
    row: dict[str, object] = {"system": system}
    for name, value in values.items():
      if name.endswith(" low"):
        row[f"{name.removesuffix(' low')} (95%)"] = f"{value:+.3f} to {values[name.removesuffix('low') + 'high']:+.3f}"
      elif not name.endswith(" high"):
        row[name] = value
    rows.append(row)
  return format_table(rows, markdown)


def retriever_order(tasks: Sequence[RankingTask]) -> list[tuple[int, ...]]:
  """The lists as they came: what a re-ranker must beat."""
  return [task.candidates for task in tasks]


def target_places(tasks: Sequence[RankingTask]) -> Int[np.ndarray, "K"]:
  """How many targets the retriever put at each place."""
  return np.bincount([task.target_rank for task in tasks], minlength=max(len(task.candidates) for task in tasks))
