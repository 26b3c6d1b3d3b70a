"""Traces from evidence: blind to the target, long enough, true to the evidence, varied by the seed."""

from collections import Counter
from dataclasses import replace
import functools

import numpy as np
import pytest

from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank import reasoning as r
from diffgr_jax.rerank.chat import Part, count_tokens, encode_message
from diffgr_jax.rerank.records import Evidence, Item, RankingTask, Shop
from diffgr_jax.rerank.template_traces import TemplateTraces, fill


@pytest.fixture
def source(size, shop):
  options, vocab = size
  return TemplateTraces(shop, options, r.TraceRules(functools.partial(count_tokens, vocab=vocab)))


def random_tasks(make_task, count=40, **settings):
  rng = np.random.default_rng()
  return [make_task(rng, **settings) for _ in range(count)]


def test_the_target_decides_what_is_kept_and_nothing_else(source, make_task):
  blind_to = []

  def score(task):
    blind_to.append(task.target)
    return r.evidence_scores(task)

  source = replace(source, score=score)
  for task in random_tasks(make_task, 10):
    first = r.order_by_scores(task.candidates, r.evidence_scores(task))[0]
    outcomes = list(source.traces([replace(task, target=target) for target in task.candidates]))
    assert [outcome.trace is not None for outcome in outcomes] == [target == first for target in task.candidates]
    assert {outcome.dropped for outcome in outcomes if outcome.trace is None} == {r.NOT_FIRST}
  assert set(blind_to) == {-1}


def test_traces_are_long_enough_and_cite_what_is_given(source, size, make_task, shop, codes):
  options, vocab = size
  lengths = []
  for task in random_tasks(make_task):
    task = replace(task, target=r.order_by_scores(task.candidates, r.evidence_scores(task))[0])
    (outcome,) = source.traces([task])
    trace = outcome.trace
    assert trace is not None
    cited = r.cited_items(trace.reasoning)
    assert set(cited) <= r.given_items(task)
    assert trace.ranking[0] == task.target
    compared = [item for item in cited if item in task.candidates and item not in task.history]
    in_order = list(dict.fromkeys(item for item in compared if item not in task.history))
    expected = [item for item in trace.ranking if item in in_order]
    assert in_order == expected  # candidates are met in the order of the ranking
    encoded = encode_message(
      p.render(task, shop, options, *(trace.reasoning, trace.ranking)), vocab, codes, options.template
    )
    lengths.append(int((encoded.parts == Part.REASONING).sum()))
  assert min(lengths) >= 100
  if options is p.COMPACT:
    assert np.mean(lengths) < 300  # with the 600 pieces of this vocabulary; words of a larger one are fewer tokens


def test_a_short_list_that_yields_no_long_trace_is_dropped(source, make_task):
  (task,) = random_tasks(make_task, 1, candidates=1, history=1)
  strict = replace(source, rules=replace(source.rules, least_tokens=500))
  assert next(strict.traces([task])).dropped == r.SHORT
  assert next(replace(source, rules=replace(source.rules, least_tokens=10)).traces([task])).trace is not None


def test_wording_varies_with_the_seed_alone(source, make_task):
  tasks = random_tasks(make_task, 12)
  source = replace(source, rules=replace(source.rules, target_first=False))
  texts = [[outcome.trace for outcome in replace(source, seed=seed).traces(tasks)] for seed in (3, 3, 4)]
  assert texts[0] == texts[1] != texts[2]
  assert [trace.ranking for trace in texts[0]] == [trace.ranking for trace in texts[2]]
  alone = [next(replace(source, seed=3).traces([task])).trace for task in reversed(tasks)]
  assert alone == texts[0][::-1]  # whatever stands beside a task
  openings = Counter(next(replace(source, seed=seed).traces(tasks[:1])).trace.reasoning[0] for seed in range(30))
  assert len(openings) >= 6


def test_a_trace_says_what_the_evidence_says():
  items = (
    Item("0", "", "Opi", ("Nails",)), Item("1", "", "Opi", ("Nails",)), Item("2", "", "", ("Soaps",)),
    Item("3", "", "Dove", ("Creams",)), Item("4", "", "Opi", ("Nails",)), Item("5", "", "", ()),
  )  # fmt: skip
  shop = Shop("s", items, (), (), "")
  nothing = Evidence(0, 0, (), 0, 0, 0, 0.0)
  task = RankingTask(
    "u", (2, 0, 1), (5, 3, 4), -1, (nothing, Evidence(9, 0, (1,), 70, 0, 0, 0.0), Evidence(1, 0, (), 9, 2, 2, 0.0))
  )
  rules = r.TraceRules(lambda reasoning: 0, target_first=False)  # never long enough: all candidates are named
  for seed in range(20):
    source = TemplateTraces(shop, p.COMPACT, rules, seed=seed)
    trace = source.write(task, (3, 4, 5))
    text = "".join(content if isinstance(content, str) else f"#{content}" for content in trace.reasoning)
    assert "#1 (Nails), #0 (Nails), #2 (Soaps)" in text
    assert "Nails" in text.split("#1")[0]
    assert "Opi" in text.split("#1")[0]
    need = text.split("#2 (Soaps)")[1].split(". ", 2)[1]
    assert "Creams" in need or "reams" in text
    assert "#3" in need
    assert "#1" in need
    assert "after some, with #1, famous" in text
    assert "after one, known, brand two, kind two" in text
    assert text.endswith("#5: no evidence.") or "#5 stays behind: no evidence." in text
  alone = TemplateTraces(shop, p.COMPACT, rules).write(replace(task, history=()), (4, 3, 5))
  assert "nothing" in str(alone.reasoning).lower() or "empty" in str(alone.reasoning)


def test_any_score_can_rank(source, make_task):
  (task,) = random_tasks(make_task, 1)
  by_place = {item: float(place) for place, item in enumerate(task.candidates)}
  reversed_source = replace(
    source, score=lambda t: [by_place[item] for item in t.candidates], rules=replace(source.rules, target_first=False)
  )
  assert next(reversed_source.traces([task])).trace.ranking == task.candidates[::-1]


def test_phrases_are_filled():
  assert fill("{a} and {b}: {c}.", a="x", b=7, c=(8, " too")) == ("x and ", 7, ": ", 8, " too.")
