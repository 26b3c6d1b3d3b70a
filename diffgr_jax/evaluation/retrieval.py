"""Retrieval metrics that ties and shared identifiers cannot flatter.

Documents with exactly equal scores, among them those that share one DocID, cannot be told apart by the system. They
stand in a random order among themselves, and every metric is its expectation over that order, in closed form:

    score       3.1   2.0  2.0  2.0   1.7          relevant: one of the three at 2.0
    place        1    2 .. 4 .. 4      5           above = 1, tied = 3: ranks 2, 3, 4 with probability 1/3 each
    Hit@1 = 0,  Hit@3 = 2/3,  MRR@10 = (1/2 + 1/3 + 1/4) / 3

    scores or ranked lists --place_in_...--> Placements --retrieval_metrics--> one value per query --> means, bootstrap

Scores may come in chunks of queries (`join_placements`). The values per query are kept, because two systems on the same
queries are compared by their paired differences (`paired_bootstrap`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
import os
from pathlib import Path
import platform
import sys

from jaxtyping import Bool, Float, Int
import numpy as np

NOT_RANKED = np.iinfo(np.int64).max // 2  # `above` of a document that a ranked list does not hold
_BLOCK_ELEMENTS = 1 << 24  # of the largest temporary array
STATUSES = ("measured", "compiled", "estimated")


@dataclass(frozen=True)
class Placements:
  """Where the relevant documents of each query stand: one entry per (query, relevant document) pair."""

  queries: int
  query: Int[np.ndarray, "P"]  # ascending; every query has at least one pair
  above: Int[np.ndarray, "P"]  # documents with a greater score
  tied: Int[np.ndarray, "P"]  # documents with exactly this score, itself included
  grade: Int[np.ndarray, "P"]


@dataclass(frozen=True)
class Interval:
  """A paired difference and its 95% bootstrap interval."""

  difference: float
  low: float
  high: float


def shared_identifiers(codes: Int[np.ndarray, "N L"]) -> Int[np.ndarray, "N"]:
  """For every document, the first document with the same code row. Equal rows get equal scores when read through it."""
  _, first, inverse = np.unique(codes, axis=0, return_index=True, return_inverse=True)
  return first[inverse.reshape(-1)]


def place_in_scores(
  scores: Float[np.ndarray, "B N"],
  relevant: Sequence[Sequence[int]],
  grades: Sequence[Sequence[int]] | None = None,
  same_as: Int[np.ndarray, "N"] | None = None,
) -> Placements:
  """Places the relevant documents among the scores of all documents.

  Args:
    scores: of every document for each query of a chunk; -inf ranks last.
    relevant: document indices of each query.
    grades: parallel to `relevant`; None: all 1. Documents of grade 0 are not relevant.
    same_as: from `shared_identifiers`; documents with one identifier then tie, whatever a reduction's rounding does.

  Raises:
    ValueError: NaN among the scores, a query without a relevant document or with one given twice, or an index that is
      no document.
  """
  _refuse_nan(scores)
  query, document, grade = _pairs(len(scores), relevant, grades, scores.shape[1])
  if same_as is not None:
    scores = scores[:, same_as]
  above, tied = _count_against(scores, query, scores[query, document])
  return Placements(len(scores), query, above, tied, grade)


def place_in_ranking(
  indices: Int[np.ndarray, "B K"],
  scores: Float[np.ndarray, "B K"],
  relevant: Sequence[Sequence[int]],
  grades: Sequence[Sequence[int]] | None = None,
) -> Placements:
  """Places the relevant documents in ranked lists, such as a beam's or BM25's.

  Args:
    indices: documents; -1 stands where there is none (the end of a short list, an identifier that no document has)
      and takes no rank.
    scores: of the listed documents, in any order; documents with equal scores tie. A document that is not listed
      ranks below every cutoff. The list is all that is known: where its end may cut a group of equal scores above the
      largest cutoff, ask for a longer one.
    relevant: document indices of each query.
    grades: parallel to `relevant`; None: all 1. Documents of grade 0 are not relevant.

  Raises:
    ValueError: NaN among the scores, a document listed twice, or a query without a relevant document or with one
      given twice.
  """
  listed = indices >= 0
  _refuse_nan(np.where(listed, scores, 0.0))
  by_index = np.sort(indices, axis=1)
  twice = (by_index[:, 1:] == by_index[:, :-1]) & (by_index[:, 1:] >= 0)
  if twice.any():
    row, column = np.argwhere(twice)[0]
    raise ValueError(f"query {row} lists document {by_index[row, column]} twice; keep its best entry")
  query, document, grade = _pairs(len(indices), relevant, grades, None)
  hit = indices[query] == document[:, None]
  found, column = hit.any(axis=1), hit.argmax(axis=1)
  above, tied = _count_against(scores, query, scores[query, column], listed)
  return Placements(len(indices), query, np.where(found, above, NOT_RANKED), np.where(found, tied, 1), grade)


def join_placements(parts: Sequence[Placements]) -> Placements:
  """Puts chunks of queries behind one another."""
  starts = np.cumsum([0] + [part.queries for part in parts])
  return Placements(
    int(starts[-1]),
    np.concatenate([part.query + start for part, start in zip(parts, starts[:-1], strict=True)]),
    np.concatenate([part.above for part in parts]),
    np.concatenate([part.tied for part in parts]),
    np.concatenate([part.grade for part in parts]),
  )


def retrieval_metrics(
  placements: Placements,
  hit_at: Sequence[int] = (1, 10, 100),
  mrr_at: Sequence[int] = (10, 100),
  ndcg_at: Sequence[int] = (10,),
  relevant_grade: int = 1,
) -> dict[str, Float[np.ndarray, "Q"]]:
  """Expected metrics of each query over the random order of ties.

  Hit@k: a relevant document stands among the first k. MRR@k: one over the rank of the first relevant document, 0 beyond
  k. nDCG@k: gain = grade, discount 1 / log2(rank + 1), divided by the best order's (the form of trec_eval).

  Args:
    placements: of the judged documents.
    hit_at: the k of Hit@k.
    mrr_at: the k of MRR@k.
    ndcg_at: the k of nDCG@k.
    relevant_grade: from which grade a document is relevant to Hit and MRR (TREC DL: 2); a query without such a document
      has 0. nDCG reads all grades.

  Returns:
    'Hit@1', ..., 'MRR@10', ..., 'nDCG@10': one value per query, in the order of the queries.
  """
  largest = max((*hit_at, *mrr_at), default=1)
  above, miss = _first_group(_of_grade(placements, relevant_grade), largest)
  metrics = {}
  for k in hit_at:
    metrics[f"Hit@{k}"] = 1.0 - np.take_along_axis(miss, np.clip(k - above, 0, largest)[:, None], axis=1)[:, 0]
  rank = above[:, None] + np.arange(1, largest + 1)[None, :]
  share = (miss[:, :-1] - miss[:, 1:]) / rank  # P(the first relevant one is at this rank) / rank
  for k in mrr_at:
    metrics[f"MRR@{k}"] = np.where(rank <= k, share, 0.0).sum(axis=1)
  for k in ndcg_at:
    metrics[f"nDCG@{k}"] = _ndcg(placements, k)
  return metrics


def means(metrics: Mapping[str, Float[np.ndarray, "Q"]]) -> dict[str, float]:
  """The mean over queries of each metric."""
  return {name: float(np.mean(values)) for name, values in metrics.items()}


def paired_bootstrap(
  a: Float[np.ndarray, "A"], b: Float[np.ndarray, "B"], seed: int, samples: int = 10_000
) -> Interval:
  """Mean of a - b over the same queries, with the 95% percentile interval over resampled sets of queries.

  Raises:
    ValueError: the two have different numbers of queries, or none.
  """
  if a.shape != b.shape or not a.size:
    raise ValueError(f"paired_bootstrap compares two systems on the same queries, not {a.size} against {b.size}")
  difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
  rng = np.random.default_rng(seed)
  block = max(1, _BLOCK_ELEMENTS // difference.size)
  resampled = np.concatenate(
    [
      difference[rng.integers(0, difference.size, (min(block, samples - start), difference.size))].mean(axis=1)
      for start in range(0, samples, block)
    ]
  )
  low, high = np.quantile(resampled, [0.025, 0.975])
  return Interval(float(difference.mean()), float(low), float(high))


def invalid_rate(exists: Bool[np.ndarray, "..."]) -> float:
  """Share of generated identifiers that no document has.

  Args:
    exists: for every generated identifier, whether some document has it.
  """
  if not exists.size:
    raise ValueError("invalid_rate needs at least one generated identifier")
  return float(1.0 - exists.mean())


def is_baseline(method: str) -> bool:
  """Whether records call a search by this name that is nothing of the run's (evaluation/baselines.py)."""
  return method in ("BM25", "LSA") or method.endswith((", dense", " and BM25"))


def format_table(rows: Sequence[Mapping[str, object]], markdown: bool = True) -> str:
  """A table with aligned columns: Markdown, or plain for a terminal.

  Args:
    rows: one mapping per line; the columns are the keys in the order in which they first appear. A row without one of
      them shows '-'; floats have three digits.
  """
  columns = list(dict.fromkeys(key for row in rows for key in row))
  text = [[_cell(row.get(column)) for column in columns] for row in rows]
  numeric = [any(isinstance(row.get(column), int | float | np.number) for row in rows) for column in columns]
  widths = [max(3, len(column), *(len(line[i]) for line in text)) for i, column in enumerate(columns)]

  def line(cells: Sequence[str]) -> str:
    padded = [
      cell.rjust(width) if right else cell.ljust(width)
      for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]
    return "| " + " | ".join(padded) + " |" if markdown else "  ".join(padded).rstrip()

  dashes = ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
  rule = line(dashes) if markdown else "  ".join("-" * width for width in widths)
  return "\n".join([line(columns), rule, *map(line, text)])


def typed_command() -> str:
  """The command of this process as it was typed, with `python -m package.module` in place of the module's file."""
  module = Path(sys.argv[0])
  name = (
    f"python -m {module.parent.name}.{module.stem}"
    if module.parent.name in ("diffgr_jax", "benchmarks")
    else module.name
  )
  return " ".join([name, *sys.argv[1:]])


def results_record(
  *,
  command: str,
  status: str,
  seeds: Mapping[str, int],
  metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
  settings: Mapping[str, object] | None = None,
  exposure: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]] | None = None,
) -> dict[str, object]:
  """The content of a results.json: what was run, with what, where, and what came out.

      {"command": "...", "status": "measured", "seeds": {...}, "settings": {...},
       "versions": {"python": ..., "jax": ..., ...}, "machine": {"platform": ..., "processor": ..., "cpus": 2},
       "metrics": {split: {method: {"Hit@1": 0.5, "queries": 411, ...}}},
       "exposure": {split: {"unseen": {method: {...}}, "seen": ..., "0": ..., "1": ..., "2-4": ..., "5+": ...}}}

  Args:
    command: as it was typed.
    status: 'measured', 'compiled' (read off an ahead-of-time compile) or 'estimated'.
    seeds: of what was random, by name.
    metrics: figures by split and method.
    settings: what else is needed to read the figures: batch sizes, counting rules, content hashes of the data.
    exposure: figures by split, training questions of the document (`exposure.exposure_figures`) and method.

  Raises:
    ValueError: another status, or a figure that is not finite (JSON has no NaN).
  """
  if status not in STATUSES:
    raise ValueError(f"status is one of {', '.join(STATUSES)}, not {status!r}")
  for split, methods in metrics.items():
    for method, figures in methods.items():
      for name, value in figures.items():
        if not np.isfinite(value):
          raise ValueError(f"metrics[{split!r}][{method!r}][{name!r}] is {value}; a result is a finite number")
  return {
    "command": command,
    "status": status,
    "seeds": dict(seeds),
    "settings": dict(settings or {}),
    "versions": {"python": platform.python_version(), **_package_versions()},
    "machine": {
      "platform": platform.platform(),
      "processor": platform.processor() or platform.machine(),
      "cpus": os.cpu_count(),
    },
    "metrics": {
      split: {
        method: {name: value.item() if isinstance(value, np.generic) else value for name, value in figures.items()}
        for method, figures in methods.items()
      }
      for split, methods in metrics.items()
    },
    "exposure": dict(exposure or {}),
  }


def _package_versions() -> dict[str, str]:
  versions = {}
  for package in ("diffgr_jax", "jax", "flax", "numpy", "scipy", "bm25s"):
    try:
      versions[package] = metadata.version(package)
    except metadata.PackageNotFoundError:  # diffgr_jax runs from a checkout too
      versions[package] = "not installed"
  return versions


def _cell(value: object) -> str:
  if value is None:
    return "-"
  return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def _refuse_nan(scores) -> None:
  rows = np.flatnonzero(np.isnan(scores).any(axis=1))
  if rows.size:
    raise ValueError(f"query {rows[0]} has a score that is NaN; scores are numbers or -inf")


def _pairs(queries: int, relevant, grades, documents: int | None):
  """-> query, document, grade of every relevant pair, in the order of the queries."""
  if len(relevant) != queries or (grades is not None and len(grades) != queries):
    raise ValueError(f"{queries} queries have {len(relevant)} lists of relevant documents; give one list each")
  lengths = np.array([len(row) for row in relevant], np.int64)
  if grades is not None and [len(row) for row in grades] != lengths.tolist():
    raise ValueError("grades are parallel to relevant: the same number for every query")
  query = np.repeat(np.arange(queries), lengths)
  document = np.concatenate([np.asarray(row, np.int64) for row in relevant]) if queries else np.zeros(0, np.int64)
  grade = np.ones_like(document)
  if grades is not None and queries:
    grade = np.concatenate([np.asarray(row, np.int64) for row in grades])
  query, document, grade = query[grade > 0], document[grade > 0], grade[grade > 0]
  without = np.setdiff1d(np.arange(queries), query)
  if without.size:
    raise ValueError(f"query {without[0]} has no relevant document; leave it out")
  wrong = document[(document < 0) | (document >= (NOT_RANKED if documents is None else documents))]
  if wrong.size:
    raise ValueError(f"relevant document {wrong[0]} is not the index of a document")
  pairs, count = np.unique(np.stack([query, document]), axis=1, return_counts=True)
  if (count > 1).any():
    row, doubled = pairs[:, count > 1][:, 0]
    raise ValueError(f"query {row} has the relevant document {doubled} twice; give it once")
  return query, document, grade


def _count_against(scores, query, pair_score, counted=None):
  """How many of a query's scores are greater than, and equal to, each pair's; in blocks of pairs to bound memory."""
  above, tied = np.zeros(len(query), np.int64), np.zeros(len(query), np.int64)
  block = max(1, _BLOCK_ELEMENTS // max(1, scores.shape[1]))
  for start in range(0, len(query), block):
    pairs = slice(start, start + block)
    rows, own = scores[query[pairs]], pair_score[pairs, None]
    keep = True if counted is None else counted[query[pairs]]
    above[pairs] = ((rows > own) & keep).sum(axis=1)
    tied[pairs] = ((rows == own) & keep).sum(axis=1)
  return above, tied


def _of_grade(placements: Placements, least: int) -> Placements:
  """The pairs of a grade or a better one."""
  own = placements.grade >= least
  pairs = (x[own] for x in (placements.query, placements.above, placements.tied, placements.grade))
  return Placements(placements.queries, *pairs)


def _first_group(placements: Placements, largest: int):
  """The best-placed group of ties that holds a relevant document: no other decides Hit and MRR.

  Returns:
    above Int[Q]: documents before the group. miss Float[Q largest+1]: the probability that none of its first j
    places has a relevant document. With m relevant of e tied, that is C(e - m, j) / C(e, j).
  """
  above = np.full(placements.queries, NOT_RANKED)
  np.minimum.at(above, placements.query, placements.above)
  first = placements.above == above[placements.query]
  relevant = np.bincount(placements.query[first], minlength=placements.queries)
  tied = np.zeros(placements.queries, np.int64)
  tied[placements.query[first]] = placements.tied[first]
  taken = np.arange(largest)[None, :]
  places = np.maximum(tied[:, None] - taken, 1)
  others = np.maximum((tied - relevant)[:, None] - taken, 0)
  miss = np.cumprod(others / places, axis=1)
  return above, np.concatenate([np.ones((placements.queries, 1)), miss], axis=1)


def _ndcg(placements: Placements, k: int):
  """Expectation is linear in the places, so each relevant document has the mean discount of its group's places."""
  discount = 1.0 / np.log2(np.arange(2, k + 2))
  cumulative = np.concatenate([[0.0], np.cumsum(discount)])
  first, last = np.minimum(placements.above, k), np.minimum(placements.above + placements.tied, k)
  gain = placements.grade * (cumulative[last] - cumulative[first]) / placements.tied
  order = np.lexsort((-placements.grade, placements.query))
  starts = np.searchsorted(placements.query, np.arange(placements.queries))
  place = np.arange(len(order)) - starts[placements.query]  # the query column is sorted already
  ideal = placements.grade[order] * np.where(place < k, discount[np.minimum(place, k - 1)], 0.0)
  total = lambda values: np.bincount(placements.query, values, minlength=placements.queries)
  return total(gain) / total(ideal)
