"""Which traces are kept, and the ranking from evidence."""

from dataclasses import replace

import numpy as np
import pytest

from diffgr_jax.rerank import reasoning as r
from diffgr_jax.rerank.records import Evidence, RankingTask

NOTHING = Evidence(0, 0, (), 0, 0, 0, 0.0)
TASK = RankingTask("u", (5, 6), (1, 2, 3), 2, (NOTHING,) * 3)


def words(reasoning):
  return sum(len(content.split()) if isinstance(content, str) else 4 for content in reasoning)


RULES = r.TraceRules(words, least_tokens=6)
GOOD = r.Trace(("after ", 5, " comes ", 2), (2, 1, 3))


def test_a_good_trace_is_kept():
  assert RULES.judge(TASK, GOOD) == r.Outcome(TASK, GOOD, "")


@pytest.mark.parametrize(
  "task, trace, reason",
  [
    (TASK, replace(GOOD, ranking=(1, 2, 3)), r.NOT_FIRST),
    (TASK, replace(GOOD, ranking=(2, 1)), r.NO_RANKING),
    (TASK, replace(GOOD, ranking=(2, 1, 1)), r.NO_RANKING),
    (TASK, replace(GOOD, ranking=(2, 1, 5)), r.NO_RANKING),
    (TASK, replace(GOOD, reasoning=("too ", 2)), r.SHORT),
    (TASK, replace(GOOD, reasoning=("after ", 5, " comes ", 4)), r.FOREIGN_ITEM),
    (replace(TASK, target=5), GOOD, r.NO_TARGET),
    (replace(TASK, target=-1), GOOD, r.NO_TARGET),
  ],
)
def test_a_bad_trace_is_dropped_with_its_reason(task, trace, reason):
  assert RULES.judge(task, trace) == r.Outcome(task, None, reason)


def test_without_the_demand_for_the_target_it_need_not_be_known():
  rules = replace(RULES, target_first=False)
  for target in (-1, 3):
    assert rules.judge(replace(TASK, target=target), GOOD).trace == GOOD
  assert r.count_outcomes([RULES.judge(TASK, GOOD), RULES.judge(replace(TASK, target=1), GOOD)]) == {
    "kept": 1, r.NOT_FIRST: 1,
  }  # fmt: skip


def test_equal_scores_leave_the_retrievers_order():
  assert r.order_by_scores((9, 4, 7, 1), (1.0, 2.0, 1.0, 2.0)) == (4, 1, 9, 7)
  assert r.order_by_scores((9, 4, 7), r.evidence_scores(TASK)) == (9, 4, 7)
  for scores in ((1.0,), (1.0, float("nan"), 2.0)):
    with pytest.raises(ValueError, match="3 candidates need as many scores"):
      r.order_by_scores((9, 4, 7), scores)


def test_more_evidence_never_lowers_the_score():
  rng = np.random.default_rng()
  for _ in range(30):
    counts = rng.integers(0, 30, 5).tolist()
    base = Evidence(counts[0], counts[1], (4,), *counts[2:], float(rng.random()))
    more = [replace(base, **{name: getattr(base, name) + 1}) for name in
            ("followed", "preceded", "popularity", "same_brand", "same_category", "similarity")]  # fmt: skip
    more.append(replace(base, supporters=(4, 5)))
    assert all(r.evidence_score(other) > r.evidence_score(base) for other in more)
  assert r.evidence_score(NOTHING) == 0
