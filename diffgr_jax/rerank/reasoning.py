"""Reasoning traces: what they are, where they come from, and which of them are kept.

    tasks --TraceSource--> outcomes, one a task: a trace that was kept, or the reason why there is none

    template_traces.py   written from the evidence
    model_traces.py      sampled from an autoregressive model
    trace_files.py       a user's own, and the files that the others write

No source is shown a target. Which traces are kept is decided afterwards, by `TraceRules`, the same for all: GR2's
rejection sampling keeps a trace only if its ranking has the target first.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
import math
from typing import Protocol

from diffgr_jax.rerank.records import Evidence, RankingTask
from diffgr_jax.rerank.wording import Content

LEAST_TOKENS = 100

# why a trace is dropped
NO_TARGET = "target is no candidate"
NO_RANKING = "no ranking of the candidates"
NOT_FIRST = "target not first"
FOREIGN_ITEM = "cites an item that is not given"
SHORT = "too short"
NO_TRACE = "no trace"


@dataclass(frozen=True, slots=True)
class Trace:
  """A reasoning, its cited items as positions in the shop's items, and the ranking it comes to, best first."""

  reasoning: tuple[Content, ...]
  ranking: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
  """What became of a task: `trace`, or `dropped`, the reason why there is none ("" where there is one)."""

  task: RankingTask
  trace: Trace | None
  dropped: str = ""


class TraceSource(Protocol):
  """Makes traces."""

  def traces(self, tasks: Sequence[RankingTask]) -> Iterator[Outcome]:
    """Yields an outcome for each task, in order. (A shard of a source yields those of its tasks.)"""
    ...


@dataclass(frozen=True)
class TraceRules:
  """Which traces are kept.

  Attributes:
    count_tokens: how many tokens a reasoning has.
    least_tokens: shorter ones are dropped.
    target_first: whether the ranking must have the target first. Without it a task needs no target.
  """

  count_tokens: Callable[[Sequence[Content]], int]
  least_tokens: int = LEAST_TOKENS
  target_first: bool = True

  def ranking_fault(self, task: RankingTask, ranking: Sequence[int]) -> str:
    """Why a ranking is dropped, whatever its reasoning; "" if it is not."""
    if sorted(ranking) != sorted(task.candidates):
      return NO_RANKING
    if fault := self.task_fault(task):
      return fault
    return NOT_FIRST if self.target_first and ranking[0] != task.target else ""

  def task_fault(self, task: RankingTask) -> str:
    """Why no trace of a task can be kept; "" if one can."""
    return NO_TARGET if self.target_first and task.target not in task.candidates else ""

  def judge(self, task: RankingTask, trace: Trace) -> Outcome:
    """Keeps or drops a trace."""
    fault = self.ranking_fault(task, trace.ranking)
    if not fault and not given_items(task).issuperset(cited_items(trace.reasoning)):
      fault = FOREIGN_ITEM
    if not fault and self.count_tokens(trace.reasoning) < self.least_tokens:
      fault = SHORT
    return Outcome(task, None, fault) if fault else Outcome(task, trace)


def given_items(task: RankingTask) -> set[int]:
  """The items that a reasoning may cite."""
  return {*task.history, *task.candidates}


def cited_items(reasoning: Iterable[Content]) -> list[int]:
  return [content for content in reasoning if not isinstance(content, str)]


def count_outcomes(outcomes: Iterable[Outcome]) -> Counter[str]:
  """How many traces were kept, and how many were dropped for each reason."""
  return Counter(outcome.dropped or "kept" for outcome in outcomes)


# --- a ranking from evidence ---


def evidence_score(evidence: Evidence) -> int | float:
  """A score made by hand, for want of a learned one: what followed the last items counts most, then company, likeness.

  Counts go in as logarithms, for the second user who did the same says less than the first.
  """
  return (
    1.0 * math.log1p(evidence.followed)
    + 0.3 * math.log1p(evidence.preceded)
    + 0.3 * len(evidence.supporters)
    + 0.3 * math.log1p(evidence.same_brand)
    + 0.2 * math.log1p(evidence.same_category)
    + 1.0 * evidence.similarity
    + 0.05 * math.log1p(evidence.popularity)
  )


def evidence_scores(task: RankingTask) -> list[int | float]:
  """`evidence_score` of each candidate."""
  return [evidence_score(evidence) for evidence in task.evidence]


def order_by_scores(candidates: Sequence[int], scores: Sequence[int | float]) -> tuple[int, ...]:
  """The candidates by falling scores; of equal ones the retriever's order decides.

  Raises:
    ValueError: not a score for each candidate, or one that is NaN.
  """
  if len(scores) != len(candidates) or any(math.isnan(score) for score in scores):
    raise ValueError(f"{len(candidates)} candidates need as many scores, and numbers; got {list(scores)}")
  return tuple(candidates[place] for place in sorted(range(len(candidates)), key=lambda place: -scores[place]))
