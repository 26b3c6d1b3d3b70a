"""Re-ranking evaluation: every row of the table on the same lists, faults counted, users and interactions chosen."""

import json
import shutil

import numpy as np
import pytest

from diffgr_jax.evaluation import rerank_report
from diffgr_jax.evaluation.rerank_answers import Written, parse_answers, ranked, write_answers
from diffgr_jax.evaluation.rerank_baselines import kept_trees, read_trees
from diffgr_jax.evaluation.rerank_report import (
  BEST,
  RETRIEVER,
  answer_figures,
  evaluate_rerank,
  fitted_trees,
  law_of,
  print_rerank,
)
from diffgr_jax.rerank.chat import encode_messages
from diffgr_jax.rerank.prompt import render, render_prompt
from diffgr_jax.training.rerank_run import open_rerank, with_pool


@pytest.fixture
def runs(rerank_runs):
  folder, state = rerank_runs
  return folder, state.params


def written_by_hand(run, tasks, fault=""):
  """The messages that a good model would write, or ones with a fault, as decoded tokens."""
  rows = []
  for task in tasks:
    ranking = sorted(task.candidates, key=lambda item: item != task.target)
    message = render(task, run.shop, run.prompts, ("because",), ranking)
    whole, prompt = (
      encode_messages([one], run.vocab, run.codes, run.prompts.template)[0]
      for one in (message, render_prompt(task, run.shop, run.prompts))
    )
    rows.append(whole.tokens[len(prompt.tokens) :].copy())
  if fault == "duplicate":
    at = np.flatnonzero(rows[0] >= run.vocab.docid_token(0, 0))
    rows[0][at[2:4]] = rows[0][at[:2]]
  if fault == "truncated":
    rows[0] = rows[0][:-1]
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for out, row in zip(tokens, rows, strict=True):
    out[: len(row)] = row
  length = (tokens != 0).sum(axis=1)
  passes = np.where(tokens != 0, np.arange(tokens.shape[1]), -1)
  return Written(tokens, length, passes, length, {"reasoning": (length, length), "answer": (length, length)}, 1.0)


@pytest.mark.parametrize("fault", ["", "duplicate", "truncated"])
def test_faults_fall_back_or_are_repaired_and_counted(runs, fault):
  run = open_rerank(runs[0] / "sft")
  tasks = [task for task in run.lists("test").tasks if task.target_rank][:6]
  written = written_by_hand(run, tasks, fault)
  answers = parse_answers(run, written, tasks)
  figures = answer_figures(written, answers)
  assert figures["valid"] == pytest.approx(1.0 if not fault else 5 / 6)
  if fault:
    assert figures[fault] == pytest.approx(1 / 6)
    assert ranked(answers, tasks, "input_order")[0] == tasks[0].candidates
  for row, task in list(zip(ranked(answers, tasks, "repair"), tasks, strict=True))[1 if fault else 0 :]:
    assert row[0] == task.target
  assert sum(figures[name] for name in ("valid", "omission", "duplicate", "out_of_set", "unparsable", "truncated")) == 1


def test_rows_do_not_depend_on_the_batch(runs):
  """Contract 4, through prompts of many lengths and both decoders."""
  folder, params = runs
  for name in ("sft", "convert"):
    run = open_rerank(folder / name)
    tasks = run.lists("test").tasks[:7]
    whole = write_answers(run, params, tasks, batch_size=7)
    for size in (1, 3):
      np.testing.assert_array_equal(write_answers(run, params, tasks, batch_size=size).tokens, whole.tokens)


def test_the_record_has_every_system_on_the_same_lists(runs, tmp_path, capsys):
  folder, params = runs
  run = open_rerank(folder / "sft")
  run.set_decoding(["eval_splits=test"])
  record = evaluate_rerank(run, params, step=4, out=tmp_path / "one" / "results.json")
  systems = record["metrics"]["test"]
  assert list(systems) == [RETRIEVER, "boosted trees", "autoregressive", "autoregressive, repair", BEST]
  assert len({own["lists"] for own in systems.values()}) == 1
  assert "R@1 - retriever low" in systems["autoregressive"]
  law = law_of(run)
  assert law is not None
  posteriors = law.posteriors(run.lists("test").tasks[: systems[BEST]["lists"]])
  assert systems[BEST]["R@1"] == pytest.approx(posteriors.max(axis=1).mean())
  assert systems["autoregressive"]["R@1 of the best"] == systems["autoregressive"]["R@1"] / systems[BEST]["R@1"]
  assert {"valid", "tokens/s", "tokens a forward", "repaired"} <= set(
    systems["autoregressive"] | systems["autoregressive, repair"]
  )
  lines = [json.loads(line) for line in (tmp_path / "one" / "rankings.test.jsonl").read_text().splitlines()]
  assert len(lines) == systems[RETRIEVER]["lists"] == record["settings"]["lists"]["test"]["measured"]
  assert all(line["target"] in line["candidates"] for line in lines)
  assert all(sorted(line["ranking"]) == sorted(line["candidates"]) for line in lines)
  print_rerank(record, tmp_path)
  assert "autoregressive: 0.0% valid; " in capsys.readouterr().out
  # The same run against itself, list by list.
  how = dict(step=4, trees=False, out=tmp_path / "two" / "r.json")
  again = evaluate_rerank(run, params, against=str(tmp_path / "one"), **how)
  assert again["metrics"]["test"]["autoregressive"]["R@1 - one"] == 0
  with pytest.raises(FileNotFoundError, match=r"there is no rankings.test.jsonl; evaluate that run first"):
    evaluate_rerank(run, params, against=str(tmp_path), **how)


def test_trees_are_taken_over_from_a_start_with_the_same_lists(runs, tmp_path, monkeypatch):
  first, mine = tmp_path / "first", tmp_path / "mine"
  for workdir in (first, mine):
    shutil.copytree(runs[0] / "convert", workdir, ignore=shutil.ignore_patterns("trees.json"))
  kept = kept_trees(fitted_trees(open_rerank(first)))
  record = json.loads((mine / "config.json").read_text())
  record["config"] |= {"start": "run", "start_from": str(first)}
  (mine / "config.json").write_text(json.dumps(record))
  fitted = []
  monkeypatch.setattr(rerank_report, "fit_trees", lambda *_, **__: fitted.append(1) or read_trees(kept))
  assert kept_trees(fitted_trees(open_rerank(mine))) == kept
  assert not fitted
  assert (mine / "trees.json").read_text() == (first / "trees.json").read_text()
  (mine / "trees.json").unlink()
  record["config"]["list_seed"] = 7
  (first / "config.json").write_text(json.dumps(record))
  fitted_trees(open_rerank(mine))
  assert fitted


def test_other_lists_of_the_same_run_have_trees_of_their_own(runs, tmp_path):
  folder, params = runs
  workdir = tmp_path / "run"
  shutil.copytree(folder / "sft", workdir, ignore=shutil.ignore_patterns("trees*.json"))
  run = open_rerank(workdir)
  run.set_decoding(["eval_splits=test", "eval_limit=4"])
  own, pool = run.config.list_pool, 12
  other = with_pool(run, pool)
  record = evaluate_rerank(other, params, step=4, out=tmp_path / "other" / "results.json")
  assert record["settings"]["list_pool"] == pool != own
  assert [path.name for path in workdir.glob("trees*")] == ["trees.12.json"]
  evaluate_rerank(run, params, step=4, out=tmp_path / "own" / "results.json")
  assert (workdir / "trees.json").exists()
  mine, theirs = ([task.candidates for task in one.lists("test").tasks[:20]] for one in (run, other))
  assert mine != theirs
  with pytest.raises(ValueError, match="a pool of 2 holds no list of"):
    with_pool(run, 2)


def test_users_are_chosen_and_held_out_ones_are_refused(runs, tmp_path):
  folder, params = runs
  run = open_rerank(folder / "sft")
  run.set_decoding(["eval_splits=test"])
  (tmp_path / "apart.txt").write_text(f"{run.shop.users[0]}\n")
  asked = [task.user for task in run.lists("test").tasks[:3]]
  (tmp_path / "users.txt").write_text("\n".join(asked))
  how = dict(step=4, trees=False)
  evaluate_rerank(run, params, out=tmp_path / "r.json", users=str(tmp_path / "users.txt"), **how)
  lines = [json.loads(line)["user"] for line in (tmp_path / "rankings.test.jsonl").read_text().splitlines()]
  assert lines == asked
  (tmp_path / "unknown.txt").write_text("nobody\n")
  with pytest.raises(ValueError, match="'nobody' is no user of made_up"):
    evaluate_rerank(run, params, out=tmp_path / "r.json", users=str(tmp_path / "unknown.txt"), **how)
  apart = open_rerank(folder / "sft")
  apart.set_decoding([f"held_out_users={tmp_path / 'apart.txt'}", "eval_splits=test"])
  with pytest.raises(ValueError, match="is held out: such users are never evaluated"):
    evaluate_rerank(apart, params, out=tmp_path / "r.json", users=str(tmp_path / "apart.txt"), **how)


def test_a_folder_of_interactions_is_measured_on_the_same_items(runs, tmp_path):
  folder, params = runs
  run = open_rerank(folder / "sft")
  run.set_decoding(["eval_splits=test"])
  items = run.shop.items
  rows = [{"item_id": item.item_id, "title": item.title} for item in items]
  (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  events = [
    {"user": f"new{user}", "item_id": items[item].item_id, "time": time}
    for user, history in enumerate(run.shop.histories[:40])
    for time, item in enumerate(history)
  ]
  (tmp_path / "interactions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
  out = tmp_path / "out" / "r.json"
  record = evaluate_rerank(run, params, step=4, out=out, interactions=str(tmp_path), trees=False)
  users = [json.loads(line)["user"] for line in (tmp_path / "out" / "rankings.test.jsonl").read_text().splitlines()]
  assert users
  assert all(user.startswith("new") for user in users)
  assert record["settings"]["lists"]["test"]["asked"] == 40
