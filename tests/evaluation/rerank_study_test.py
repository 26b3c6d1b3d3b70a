"""A re-ranking study's table: what stands once, one row a run, differences list by list."""

import json

import numpy as np

from diffgr_jax.evaluation.rerank_study import rerank_tables
from diffgr_jax.evaluation.study import Cell, Outcome, write_study

LISTS = [(f"u{row}", ("a", "b", "c")) for row in range(40)]


def left(out, name, right):
  """The rankings of a run that is right on the first `right` lists."""
  (out / name).mkdir()
  rows = [
    {"user": user, "candidates": items, "target": "b", "ranking": ("b", "a", "c") if at < right else ("a", "b", "c")}
    for at, (user, items) in enumerate(LISTS)
  ]
  (out / name / "rankings.test.jsonl").write_text("\n".join(map(json.dumps, rows)))
  row = {"R@1": right / 40, "R@3": 1.0, "NDCG@3": 0.8}
  systems = {"retriever": row | {"R@1": 0.0}, "boosted trees": row, "best order, expected": row}
  systems |= {f"block of {name}": row | {"valid": 0.5, "tokens/s": 3.0}, f"block of {name}, repair": row}
  return {"metrics": {"test": systems}, "settings": {"stage": "cft"}}


def test_the_table(tmp_path):
  records = {"sft": left(tmp_path, "sft", 30), "cft": left(tmp_path, "cft", 10), "rl": None}
  text = rerank_tables(records, tmp_path, against="sft")
  lines = text.splitlines()
  assert lines[0] == "test:"
  assert sum("boosted trees" in line for line in lines) == 1
  assert "repair" not in text
  assert "rl: failed" in text
  (row,) = [line for line in lines if line.startswith("| cft")]
  assert "-0.500 (-0.650 to -0.350)" in row
  (row,) = [line for line in lines if line.startswith("| sft")]
  assert "(" not in row  # it is not compared with itself


def test_runs_of_other_lists_are_not_compared(tmp_path):
  records = {"sft": left(tmp_path, "sft", 30), "cft": left(tmp_path, "cft", 10)}
  file = tmp_path / "cft" / "rankings.test.jsonl"
  file.write_text("\n".join(file.read_text().splitlines()[:20]))
  assert "95%" not in rerank_tables(records, tmp_path, against="sft")


def test_the_study_writes_it(tmp_path):
  record = left(tmp_path, "sft", 30)
  text = write_study([Outcome(Cell("sft", "x"), record)], tmp_path)
  assert (tmp_path / "study.md").read_text() == text + "\n"
  written = json.loads((tmp_path / "study.json").read_text())["metrics"]["test"]
  assert np.isclose(written["sft: retriever"]["R@1"], 0)
  assert written["sft: block of sft"] == record["metrics"]["test"]["block of sft"]
