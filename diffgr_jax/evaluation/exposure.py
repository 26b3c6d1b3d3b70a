"""How well a question is answered by how often its document was asked for in training: the table behind `seen`.

    training questions of the document    0 | 1 | 2-4 | 5+        unseen: 0    seen: 1 or more

A question with several relevant documents counts for the one that was asked for most. Figures of groups are means over
other questions each: they are compared within a group, between methods, and each carries its paired interval to BM25.
"""

from collections.abc import Mapping, Sequence

from jaxtyping import Bool, Float, Int
import numpy as np

from diffgr_jax.data.records import Query
from diffgr_jax.evaluation.retrieval import means, paired_bootstrap

# name: least and most training questions
GROUPS = {
  "unseen": (0, 0), "seen": (1, np.inf), "0": (0, 0), "1": (1, 1), "2-4": (2, 4), "5+": (5, np.inf),
}  # fmt: skip
BASELINE = "BM25"
_METRICS = ("Hit@1", "Hit@10", "Hit@100", "MRR@10", "MRR@100", "nDCG@10")


def training_questions(queries: Sequence[Query], doc_ids: Sequence[str]) -> Int[np.ndarray, "N"]:
  """How many training questions each document answers. Documents that are not of the index are passed over."""
  place = {doc_id: row for row, doc_id in enumerate(doc_ids)}
  rows = [place[doc_id] for query in queries for doc_id in set(query.doc_ids) if doc_id in place]
  return np.bincount(np.array(rows, np.int64), minlength=len(doc_ids))


def exposures(relevant: Sequence[Sequence[int]], asked: Int[np.ndarray, "N"]) -> Int[np.ndarray, "Q"]:
  """The training questions of each question's most asked-for document."""
  return np.array([asked[list(rows)].max() for rows in relevant], np.int64)


def members(exposure: Int[np.ndarray, "Q"]) -> dict[str, Bool[np.ndarray, "Q"]]:
  """The questions of each group."""
  return {name: (exposure >= least) & (exposure <= most) for name, (least, most) in GROUPS.items()}


def exposure_figures(
  per_query: Mapping[str, Mapping[str, Float[np.ndarray, "Q"]]], exposure: Int[np.ndarray, "Q"]
) -> dict[str, dict[str, dict[str, float]]]:
  """The figures of every method on every group that has questions.

  Args:
    per_query: method -> metric -> values, in the order of the questions.
    exposure: of each question.

  Returns:
    group -> method -> means, `queries`, and the 95% interval of Hit@1's difference to BM25 where that was measured.
  """
  figures: dict[str, dict[str, dict[str, float]]] = {}
  for name, inside in members(exposure).items():
    if not inside.any():
      continue
    figures[name] = {}
    for method, metrics in per_query.items():
      own = {metric: values[inside] for metric, values in metrics.items() if metric in _METRICS}
      row = means(own) | {"queries": int(inside.sum())}
      if method != BASELINE and BASELINE in per_query:
        interval = paired_bootstrap(own["Hit@1"], per_query[BASELINE]["Hit@1"][inside], seed=0)
        row |= {"Hit@1 - BM25 low": interval.low, "Hit@1 - BM25 high": interval.high}
      figures[name][method] = row
  return figures
