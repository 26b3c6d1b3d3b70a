"""Retrieval measured: every query is answered by each decoding (answers.py), and the answers become metrics.

A decoding that generates one DocID ranks one document: it has Hit@1, and its Hit@10 would say nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import time
from typing import Any

from jaxtyping import Float, Int
import numpy as np

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.data.records import Collection, Query
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.evaluation.answers import Answer, Asked, Beam, Method, OnePass
from diffgr_jax.evaluation.retrieval import (
  Placements,
  invalid_rate,
  join_placements,
  means,
  place_in_ranking,
  place_in_scores,
  retrieval_metrics,
  shared_identifiers,
)
from diffgr_jax.parallel.rules import split_of
from diffgr_jax.training.run import Run

Metrics = dict[str, float]


@dataclass(frozen=True)
class Judged:
  """Queries as document indices of one index."""

  texts: list[str]
  relevant: list[list[int]]
  grades: list[list[int]]


def judge(queries: Sequence[Query], index: DocIdIndex) -> Judged:
  """Looks the relevant documents up.

  Raises:
    ValueError: a query whose document the index does not have.
  """
  place = {doc_id: i for i, doc_id in enumerate(index.doc_ids)}
  judged = Judged([], [], [])
  for query in queries:
    if missing := [doc_id for doc_id in query.doc_ids if doc_id not in place]:
      raise ValueError(f"query {query.query_id} names document {missing[0]}, which the index does not have")
    judged.texts.append(query.query)
    judged.relevant.append([place[doc_id] for doc_id in query.doc_ids])
    judged.grades.append(list(query.grades) or [1] * len(query.doc_ids))
  return judged


def evaluate_method(
  run: Run, params: Any, method: Method, judged: Judged, index: DocIdIndex
) -> tuple[Metrics, dict[str, np.ndarray]]:
  """Ranks and measures all queries with one decoding.

  Returns:
    Means, with forwards and canvases per query and queries/s (compilation apart), and the metrics of each query.
  """
  shards = split_of("batch", run.config.decode_rules)
  batch = -(-run.config.eval_batch_size // shards) * shards  # filled up where the mesh does not divide it
  prompts = encode_prompts(judged.texts, run.vocab, run.config.prompt_length)
  asked, same = Asked(run, params, index), SharedDocIds.of(index)

  def answer(start: int) -> tuple[Placements, Answer]:
    which = slice(start, min(start + batch, len(prompts)))
    given = method.decoding.answer(asked, _rows(prompts, start, batch), np.arange(start, start + batch, dtype=np.int32))
    given = _first_rows(given, which.stop - start)
    return _place(given, judged.relevant[which], judged.grades[which], same), given

  answer(0)  # compiles
  began = time.perf_counter()
  parts = [answer(start) for start in range(0, len(prompts), batch)]
  seconds = time.perf_counter() - began

  placements, answers = zip(*parts, strict=True)
  per_query = retrieval_metrics(join_placements(placements), relevant_grade=run.config.relevant_grade)
  if not method.ranks:  # one document a query: only its first place means anything
    per_query = {name: values for name, values in per_query.items() if name == "Hit@1"}
  figures = means(per_query)
  if method.may_miss:
    named = [given.document[:, 0] >= 0 for given in answers if given.document is not None]
    figures["invalid"] = invalid_rate(np.concatenate(named))
  figures |= {
    "forwards": float(np.concatenate([given.forwards for given in answers]).mean()),
    "canvases": float(np.concatenate([given.canvases for given in answers]).mean()),
    "queries/s": len(prompts) / seconds,
    "queries": len(prompts),
  }
  return figures, per_query


def quick_metrics(run: Run, params: Any, collection: Collection, limit: int = 512) -> Metrics:
  """Hit@1 and MRR@100 of one pass (or the widest beam) on validation queries, to watch a run; nothing without any.

  They are the first `limit` queries of the splits whose names begin with "valid", taken in turn.
  """
  splits = [queries for name, queries in collection.queries.items() if name.startswith("valid")]
  queries = [query for rank in itertools.zip_longest(*splits) for query in rank if query is not None][:limit]
  if not queries:
    return {}
  method = Method("one-pass", OnePass(run.config.prior_weight))
  if run.autoregressive:
    method = Method("beam", Beam(int(max(run.config.beam_widths)), run.renormalises))
  figures, _ = evaluate_method(run, params, method, judge(queries, run.index), run.index)
  return {f"valid {name}": figures[name] for name in ("Hit@1", "MRR@100")}


# --- documents with one DocID tie ---


@dataclass(frozen=True, eq=False)
class SharedDocIds:
  """Which documents have the same DocID."""

  first: Int[np.ndarray, "N"]  # for each document, the first with its DocID
  order: Int[np.ndarray, "N"]  # documents, those of one DocID side by side
  start: Int[np.ndarray, "N"]  # where those of a document's DocID begin in it
  size: Int[np.ndarray, "N"]  # how many they are

  @classmethod
  def of(cls, index: DocIdIndex) -> "SharedDocIds":
    first = shared_identifiers(np.where(index.scored, index.codes, -1))
    order = np.argsort(first, kind="stable")
    return cls(first, order, np.searchsorted(first[order], first), np.bincount(first)[first])

  def spread(
    self, listed: Int[np.ndarray, "B K"], scores: Float[np.ndarray, "B K"]
  ) -> tuple[Int[np.ndarray, "B M"], Float[np.ndarray, "B M"]]:
    """Lists, in place of each document, all that have its DocID, with one score: that of the first that is listed."""
    most = int(self.size.max())
    if most == 1:
      return listed, scores
    listed = _without_repeats(np.where(listed >= 0, self.first[listed], -1))
    every = np.full((*listed.shape, most), -1)
    for place in range(most):
      there = (listed >= 0) & (self.size[listed] > place)
      every[..., place] = np.where(there, self.order[np.minimum(self.start[listed] + place, len(self.order) - 1)], -1)
    return every.reshape(len(listed), -1), np.repeat(scores, most, axis=1)


def _without_repeats(listed: Int[np.ndarray, "B K"]) -> Int[np.ndarray, "B K"]:
  """-1 in place of a document that stands further left already."""
  order = np.argsort(listed, axis=1, kind="stable")
  inside = np.take_along_axis(listed, order, axis=1)
  inside[:, 1:][inside[:, 1:] == inside[:, :-1]] = -1
  kept = np.empty_like(listed)
  np.put_along_axis(kept, order, inside, axis=1)
  return kept


def _place(answer: Answer, relevant, grades, same: SharedDocIds) -> Placements:
  if answer.document is None:
    return place_in_scores(answer.score, relevant, grades, same.first)
  return place_in_ranking(*same.spread(answer.document, answer.score), relevant, grades)


def _rows(prompts: np.ndarray, start: int, batch: int) -> np.ndarray:
  """A batch of fixed size: the last one is filled up with its own last row."""
  rows = prompts[start : start + batch]
  return np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows), axis=0)])


def _first_rows(answer: Answer, count: int) -> Answer:
  document = None if answer.document is None else answer.document[:count]
  return Answer(document, answer.score[:count], answer.forwards[:count], answer.canvases[:count])
