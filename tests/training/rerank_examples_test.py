"""Which traces a re-ranker learns from."""

import numpy as np
import pytest

from diffgr_jax.rerank.reasoning import Outcome, Trace
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.rerank_examples import agreeing_at_most


def outcomes(agreeing, others, dropped):
  rng = np.random.default_rng(0)
  firsts = rng.permutation([0] * agreeing + [1] * others + [-1] * dropped)
  for user, first in enumerate(firsts.tolist()):
    task = RankingTask(f"u{user}", (9,), (3, 4), target=-1, evidence=())
    ranking = (3, 4) if first == 0 else (4, 3)
    yield Outcome(task, None, "target not first") if first < 0 else Outcome(task, Trace(("so",), ranking))


@pytest.mark.parametrize(("share", "agreeing"), [(1.0, 70), (0.9, 70), (0.5, 30), (0.4, 20), (0.0, 0)])
def test_the_surplus_of_what_the_retriever_knew_is_drawn_out(share, agreeing):
  made = list(outcomes(70, 30, 40))
  kept = agreeing_at_most(made, share, seed=0)
  first = [one.trace.ranking[0] for one in kept]
  assert (first.count(3), first.count(4)) == (agreeing, 30)
  assert [one.task.user for one in kept] == [one.task.user for one in made if one in kept]  # in their order
  assert kept == agreeing_at_most(made, share, seed=0)
  if share == 0.5:
    assert kept != agreeing_at_most(made, share, seed=1)
