"""Trace files: what is written is read, a user's own notation, and bad rows by their line."""

from dataclasses import replace
import functools
import json

import numpy as np
import pytest

from diffgr_jax.data.records import BadRow
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank import reasoning as r
from diffgr_jax.rerank import trace_files as f
from diffgr_jax.rerank.chat import count_tokens
from diffgr_jax.rerank.template_traces import TemplateTraces

RULES = r.TraceRules(len, least_tokens=1)


def rows_file(tmp_path, *rows):
  path = tmp_path / "traces.jsonl"
  path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
  return path


def test_what_is_written_is_read(tmp_path, shop, vocab, make_task):
  rng = np.random.default_rng()
  tasks = [replace(make_task(rng), user=f"é{i}") for i in range(200)]  # about one in twelve ends on its target
  source = TemplateTraces(shop, p.COMPACT, r.TraceRules(functools.partial(count_tokens, vocab=vocab)))
  outcomes = list(source.traces(tasks))
  counts = f.write_traces(tmp_path / "deep" / "t.jsonl", outcomes, shop)
  assert counts == r.count_outcomes(outcomes)
  assert [path.name for path in (tmp_path / "deep").iterdir()] == ["t.jsonl"]
  again, skipped = f.read_traces([tmp_path / "deep" / "t.jsonl"], shop, source.rules)
  assert not skipped
  assert [outcome.trace for outcome in again.traces(tasks)] == [outcome.trace for outcome in outcomes]
  assert {outcome.dropped for outcome in again.traces(tasks)} == {"", r.NO_TRACE}
  assert again.unused(tasks) == 0
  assert again.unused([]) == counts["kept"]


def test_rows_find_their_task_and_are_judged(tmp_path, shop, make_task):
  task = make_task(np.random.default_rng(), candidates=3)
  names = [shop.items[item].item_id for item in (task.target, *(i for i in task.candidates if i != task.target))]
  path = rows_file(
    tmp_path,
    {"user": task.user, "reasoning": "because", "ranking": names},
    {"user": "other", "reasoning": ["after ", {"item": names[1]}], "ranking": names},
    "",
    {"user": task.user, "task": 4, "try": 0, "dropped": "truncated"},
  )
  source, skipped = f.read_traces([path], shop, RULES)
  assert not skipped
  other = replace(
    task,
    user="other",
    target=task.candidates[0] if names[0] != shop.items[task.candidates[0]].item_id else task.candidates[1],
  )
  shorter = replace(task, candidates=task.candidates[:2], evidence=task.evidence[:2])
  kept, dropped, none = source.traces([task, other, shorter])
  assert kept.trace.reasoning == ("because",)
  assert (dropped.dropped, none.dropped) == (r.NOT_FIRST, r.NO_TRACE)
  assert source.unused([task]) == 1


def test_ids_in_strings_become_items_and_markers_become_nothing(tmp_path, shop, codes):
  spelt = "".join(f"<{'abcd'[level]}_{code}>" for level, code in enumerate(codes[3]))
  row = {"user": 7, "reasoning": [f"<think> since {spelt} \n", {"item": "B004"}, " </think>"], "ranking": ["B001"]}
  source, _ = f.read_traces([rows_file(tmp_path, row)], shop, RULES, codes)
  assert source.rows["7", frozenset({1})] == r.Trace(("think since ", 3, " ", 4, " /think"), (1,))


@pytest.mark.parametrize(
  "row, kind, message",
  [
    ("{", "broken JSON", "broken JSON"),
    ("[]", "not an object", "JSON object"),
    ({"reasoning": "x", "ranking": ["B001"]}, "no id", "needs 'user'"),
    ({"user": "u", "reasoning": "x"}, "no ranking", "needs 'ranking'"),
    ({"user": "u", "reasoning": "x", "ranking": []}, "no ranking", "needs 'ranking'"),
    ({"user": "u", "reasoning": "x", "ranking": ["B001", "B001"]}, "item ranked twice", "item 'B001' twice"),
    ({"user": "u", "reasoning": "x", "ranking": ["B999"]}, "unknown item", "'B999' is no item of the shop"),
    ({"user": "u", "reasoning": "x", "ranking": [None]}, "unknown item", "None is no item"),
    ({"user": "u", "ranking": ["B001"]}, "no reasoning", "needs 'reasoning'"),
    ({"user": "u", "reasoning": {}, "ranking": ["B001"]}, "no reasoning", "needs 'reasoning'"),
    ({"user": "u", "reasoning": [3], "ranking": ["B001"]}, "broken reasoning", "not 3"),
    ({"user": "u", "reasoning": [{"item": "B9"}], "ranking": ["B001"]}, "unknown item", "'B9' is no item"),
    ({"user": "u", "reasoning": "see <a_1>", "ranking": ["B001"]}, "unknown ID", "tokens such as <a_1>"),
    ({"user": "A", "reasoning": "x", "ranking": ["B001"]}, "second trace", "user 'A' has a trace for these candidates"),
  ],
)  # fmt: skip
def test_bad_rows_are_named_by_their_line_or_counted(row, kind, message, tmp_path, shop, codes):
  good = {"user": "A", "reasoning": "x", "ranking": ["B001"]}
  path = rows_file(tmp_path, good, row)
  with pytest.raises(BadRow, match=message) as error:
    f.read_traces([path], shop, RULES, codes)
  assert str(error.value).startswith(f"{path}:2: ")
  source, skipped = f.read_traces([path], shop, RULES, codes, on_bad_row="skip")
  assert skipped == {kind: 1}
  assert len(source.rows) == 1


def test_a_missing_file_is_named(tmp_path, shop):
  with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
    f.read_traces([tmp_path / "none.jsonl"], shop, RULES)
