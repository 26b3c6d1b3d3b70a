"""Studies: what is run, what is left, what is chosen; the main command stands in for itself in configs_test."""

import json
import os
import signal
import subprocess
import sys
import textwrap

from absl import flags
import ml_collections
from ml_collections import config_flags
import pytest

from diffgr_jax.evaluation import study
from diffgr_jax.evaluation.study import Cell, best_on_validation, cells_of, run_cells, table_rows, write_study

A, B, C = (Cell(name, f"configs/{name}.py:steps=1", {"seed": 3, "splits": ("x", "y")}) for name in "abc")


def record(valid, test):
  row = lambda hit: {"Hit@1": hit, "queries/s": 10.4, "canvases": 2.0}
  return {
    "seeds": {"training": 5},
    "metrics": {
      "valid": {"BM25": row(0.9), "one-pass": row(valid), "free": row(valid / 2)},
      "test": {"BM25": row(0.8), "one-pass": row(test), "free": row(test / 2)},
    },
  }


class Runner:
  """Writes results, or fails, or is told to leave, by a cell's name."""

  def __init__(self, done="", **codes):
    self.codes, self.done, self.ran = codes, done, []

  def __call__(self, cell, out):
    self.ran.append(cell.name)
    code = self.codes.get(cell.name, 0)
    (out / f"{cell.name}.log").write_text("began\nerror: no such folder\n\n")
    if code == 0 or cell.name in self.done:
      hit = 0.1 + 0.1 * "abc".index(cell.name)
      (out / cell.name / "results.json").write_text(json.dumps(record(hit, 1 - hit)))
    return code


def test_a_failed_cell_is_named_and_the_others_run(tmp_path):
  outcomes = list(run_cells([A, B, C], tmp_path, Runner(b=1)))
  assert [outcome.error for outcome in outcomes] == ["", "error: no such folder", ""]
  assert [outcome.record is None for outcome in outcomes] == [False, True, False]
  text = write_study(outcomes, tmp_path)
  assert "failed: error: no such folder" in text
  assert (tmp_path / "study.md").read_text() == text + "\n"
  written = json.loads((tmp_path / "study.json").read_text())
  of_run = [f"{run}: {method}" for run in "ac" for method in ("one-pass", "free")]
  assert list(written["metrics"]["test"]) == ["BM25", *of_run]  # a baseline once
  assert written["metrics"]["test"]["c: one-pass"]["Hit@1"] == pytest.approx(0.7)
  assert written["seeds"] == {"a: training": 5, "c: training": 5}
  assert written["settings"]["runs"]["b"] == {
    "name": "b", "config": "configs/b.py:steps=1", "fields": {"seed": 3, "splits": ["x", "y"]},
    "error": "error: no such folder",
  }  # fmt: skip
  assert "error" not in written["settings"]["runs"]["a"]


def test_what_has_results_is_not_run_again(tmp_path):
  list(run_cells([A, B], tmp_path, Runner(b=1)))
  again = Runner()
  outcomes = list(run_cells([A, B, C], tmp_path, again))
  assert again.ran == ["b", "c"]
  assert all(outcome.record for outcome in outcomes)


def test_told_to_leave_while_a_cell_runs_a_study_tells_the_cell(tmp_path):
  """The cell's process is in its imports, and does not save yet."""
  program = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from diffgr_jax.evaluation import study
    started = study.subprocess.Popen
    def popen(*args, **how):
      child = started(*args, **how)
      print(child.pid, flush=True)
      return child
    study.subprocess.Popen = popen
    out = Path(sys.argv[1])
    try:
      list(study.run_cells([study.Cell("a", "configs/docid/base.py:steps=1", {})], out))
    except InterruptedError as told:
      print(told, flush=True)
  """)
  with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.terminate()
    assert "told to leave in cell a, which is saved: start again" in process.stdout.read()
  with pytest.raises(ProcessLookupError):
    os.kill(child, 0)


def test_a_cell_that_was_told_to_leave_ends_the_study(tmp_path):
  runner = Runner(b=75)
  with pytest.raises(InterruptedError, match="cell b, which is saved"):
    list(run_cells([A, B, C], tmp_path, runner))
  assert runner.ran == ["a", "b"]


def test_told_to_leave_when_a_cell_is_done_a_study_ends_behind_it(tmp_path):
  runner, outcomes = Runner(done="b", b=75), []
  with pytest.raises(InterruptedError, match="cell b, which is saved"):
    outcomes.extend(run_cells([A, B, C], tmp_path, runner))
  assert runner.ran == ["a", "b"]
  again = Runner()
  assert all(outcome.record for outcome in run_cells([A, B, C], tmp_path, again))
  assert again.ran == ["c"]


def test_a_command_that_was_done_before_it_heard_counts_as_told(tmp_path, monkeypatch):
  monkeypatch.setattr(study.sys, "executable", "/bin/true")

  class Finishing(subprocess.Popen):
    def wait(self, timeout=None):
      code = super().wait(timeout)
      os.kill(os.getpid(), signal.SIGTERM)
      return code

  monkeypatch.setattr(study.subprocess, "Popen", Finishing)
  assert study.run_command(A, tmp_path) == 75


@pytest.mark.parametrize("own", [None, "glibc.malloc.hugetlb=0"])
def test_a_run_has_large_pages_unless_its_user_says_otherwise(tmp_path, monkeypatch, own):
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  if own:
    monkeypatch.setenv("GLIBC_TUNABLES", own)
  command = tmp_path / "command"
  command.write_text("#!/bin/sh\necho $GLIBC_TUNABLES\n", encoding="utf-8")
  command.chmod(0o755)
  monkeypatch.setattr(study.sys, "executable", str(command))
  assert study.run_command(A, tmp_path) == 0
  assert (tmp_path / "a.log").read_text(encoding="utf-8").split() == [own or "glibc.malloc.hugetlb=1"]


def test_a_workdir_of_another_cell_is_refused_before_anything_runs(tmp_path):
  list(run_cells([B], tmp_path, Runner()))
  runner = Runner()
  with pytest.raises(ValueError, match=r"b/cell\.json is of another cell, configs/b\.py:steps=1"):
    list(run_cells([A, Cell("b", "configs/b.py:steps=2")], tmp_path, runner))
  assert runner.ran == []


def test_the_best_is_chosen_on_validation_alone(tmp_path):
  rows = table_rows(list(run_cells([A, B, C], tmp_path, Runner())))
  assert [(row["run"], row["decoding"]) for row in rows][:3] == [("", "BM25"), ("a", "one-pass"), ("a", "free")]
  assert sum(row["decoding"] == "BM25" for row in rows) == 1
  best = best_on_validation(rows)
  assert best is not None
  assert (best["run"], best["decoding"]) == ("c", "one-pass")  # worst on test, and a baseline is better
  assert best["test Hit@1"] == pytest.approx(0.7)
  assert best_on_validation(rows[:1]) is None


def test_flags_are_read_back_as_what_they_were(monkeypatch, tmp_path):
  assert A.flags(tmp_path) == ["--config=configs/a.py:steps=1", "--config.seed=3", "--config.splits=('x', 'y')"]
  assert Cell("d", "configs/d.py:start={out}/a").flags(tmp_path) == [f"--config=configs/d.py:start={tmp_path}/a"]
  named = Cell("e", "configs/e.py", {"examples": "{out}/b"})
  assert named.flags(tmp_path)[1] == f"--config.examples={tmp_path}/b"
  own = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=own)
  cell = Cell("c", "configs/docid/base.py:steps=7", {"eval_splits": ("valid",), "decodings": ["one_pass", "topk"]})
  monkeypatch.setattr(sys, "argv", ["main", *cell.flags(tmp_path)])  # where overrides are looked for
  own(sys.argv)
  assert own.config.steps == 7
  assert tuple(own.config.eval_splits) == ("valid",)
  assert tuple(own.config.decodings) == ("one_pass", "topk")


def test_cells_need_names():
  config = ml_collections.ConfigDict({"cells": {"a": {"config": "x.py", "fields": {"seed": 1}}}})
  assert cells_of(config) == [Cell("a", "x.py", {"seed": 1})]
  ordered = ml_collections.ConfigDict({"cells": {"a": {"config": "x"}, "b": {"config": "y"}}, "order": ("b", "a")})
  assert [cell.name for cell in cells_of(ordered)] == ["b", "a"]
  ordered.order = ("b", "c")
  with pytest.raises(ValueError, match="order names b, c, but the cells are a, b"):
    cells_of(ordered)
  with pytest.raises(ValueError, match="at least one cell"):
    cells_of(ml_collections.ConfigDict({"cells": {}}))
  with pytest.raises(ValueError, match=r"'/a' is no name of a folder"):
    cells_of(ml_collections.ConfigDict({"cells": {"/a": {"config": "x.py"}}}))
