"""A re-ranking study's table: what stands once, one row a run, differences list by list; seeds pooled."""

import json

import numpy as np
import pytest

from diffgr_jax.evaluation import rerank_study
from diffgr_jax.evaluation.study import Cell, Outcome, write_study

LISTS = [(f"u{row}", ("a", "b", "c", "d")) for row in range(40)]


def left(out, name, right, valid=40, lists=LISTS, seed=0):
  """The record and rankings of a run that is right on the first `right` lists, and elsewhere has the target third."""
  (out / name).mkdir(parents=True)
  rows = []
  for at, (user, items) in enumerate(lists):
    ranking = ("b", "a", "c", "d") if at < right else ("a", "c", "b", "d")
    verdict = "ok" if at < valid else "duplicate"
    rows.append({"user": user, "candidates": items, "target": "b", "ranking": ranking, "verdict": verdict})
  (out / name / "rankings.test.jsonl").write_text("\n".join(map(json.dumps, rows)))
  row = {"R@1": right / 40, "R@3": 1.0, "NDCG@3": 0.8}
  systems = {"retriever": row | {"R@1": 0.0}, "boosted trees": row, "best order, expected": row}
  systems |= {f"block of {name}": row | {"valid": valid / 40, "tokens/s": 3.0}, f"block of {name}, repair": row}
  return {"metrics": {"test": systems}, "settings": {"stage": "cft"}, "seeds": {"training": seed}}


def outcomes(out, *runs, **how):
  return [Outcome(Cell(name, "x"), left(out, name, *given, **how)) for name, *given in runs]


def written(out, given, against="sft"):
  text = write_study(given, out, against)
  assert (out / "study.md").read_text() == text + "\n"
  return text, json.loads((out / "study.json").read_text())


def test_the_table(tmp_path):
  runs = [*outcomes(tmp_path, ("mid", 5), ("sft", 30), ("cft", 10, 20)), Outcome(Cell("rl", "x"), None, "no memory")]
  text, record = written(tmp_path, runs)
  lines = text.splitlines()
  assert lines[0] == "test:"
  assert sum("boosted trees" in line for line in lines) == 1
  assert "repair" not in text
  assert "rl: failed" in text
  (row,) = [line for line in lines if "boosted trees" in line]
  assert "0.750" in row  # from sft, not from what stands first
  (row,) = [line for line in lines if line.startswith("| cft")]
  assert "-0.500 (-0.650 to -0.350)" in row
  (row,) = [line for line in lines if line.startswith("| sft")]
  assert "(" not in row  # it is not compared with itself
  figures = record["metrics"]["test"]["cft: block of cft"]
  assert figures["R@1"] == 0.25
  assert np.isclose(figures["R@1 - sft"], -0.5)
  assert np.isclose(figures["NDCG@3 - sft"], -0.5 * (1 - 0.5))  # third: half of the gain
  assert np.isclose(figures["valid - sft"], -0.5)
  assert figures["R@1 - sft low"] < -0.5 < figures["R@1 - sft high"]
  assert "R@1 - sft" not in record["metrics"]["test"]["cft: block of cft, repair"]
  assert np.isclose(record["metrics"]["test"]["sft: retriever"]["R@1"], 0)


def test_runs_of_other_lists_are_not_compared(tmp_path):
  runs = outcomes(tmp_path, ("sft", 30)) + outcomes(tmp_path, ("cft", 10), lists=LISTS[:20])
  assert "95%" not in written(tmp_path, runs)[0]


def test_places_are_kept_as_letters(tmp_path):
  _, record = written(tmp_path, outcomes(tmp_path, ("sft", 2, 39)))
  kept = record["places"]["test"]["sft"]
  assert kept["places"] == "00" + 37 * "2" + "c"
  placed = rerank_study.Placed.read(kept)
  assert placed.written() == kept
  assert placed.metrics()["valid"].sum() == 39
  assert placed.metrics()["R@1"].sum() == 2
  assert np.isclose(placed.metrics()["NDCG@3"].sum(), 2 + 38 * 0.5)
  far = rerank_study.Placed("x", np.array([0, 9, 14]), np.array([True, False, True]))
  assert far.written()["places"] == "0j9"


def test_seeds_are_pooled_from_their_records(tmp_path):
  records = []
  for seed, right in ((0, 10), (1, 20)):
    out = tmp_path / str(seed)
    records.append(written(out, outcomes(out, ("sft", 30), ("cft", right, 30 + seed), seed=seed))[1])
  pooled = rerank_study.pool_seeds(records, "sft")["test"]
  figures = pooled["cft: block of cft"]
  assert (figures["R@1"], figures["R@1 least"], figures["R@1 most"]) == (0.375, 0.25, 0.5)
  assert (figures["valid least"], figures["valid most"], figures["seeds"]) == (0.75, 31 / 40, 2)
  # ten lists that one seed of two has right are half a list each
  by_list = np.r_[np.zeros(10), np.full(10, -0.5), np.full(10, -1.0), np.zeros(10)]
  assert np.isclose(figures["R@1 - sft"], by_list.mean())
  low, high = figures["R@1 - sft low"], figures["R@1 - sft high"]
  spread = 1.96 * by_list.std() / np.sqrt(40)
  assert np.allclose([low, high], [by_list.mean() - spread, by_list.mean() + spread], atol=0.03)
  assert "R@1 - sft" not in pooled["sft: block of sft"]
  assert pooled["sft: retriever"]["R@1"] == 0
  assert "0.375" in rerank_study.rerank_tables({"test": pooled}, "sft")


def test_one_seed_twice_is_refused(tmp_path):
  record = written(tmp_path, outcomes(tmp_path, ("sft", 30)))[1]
  with pytest.raises(ValueError, match="2 studies of 1 seeds: give two or more, each its own"):
    rerank_study.pool_seeds([record, record], "sft")
