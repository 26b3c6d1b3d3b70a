"""The table of a re-ranking study, from the records and rankings that its runs left: a row for each stage.

retriever, boosted trees, best order      once, from the record of the run that others are compared with
a row for each run                        R@1, R@3, NDCG@3, validity, speed, and its paired differences to one of them

A study keeps where each run has the targets, a letter a list, so that studies of several seeds can be pooled later from
their records alone:  "0": first, "2": third;  "a", "c": the same, of an invalid answer (its ranking is the fallback).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np

from diffgr_jax.evaluation.rerank_report import BEST, RETRIEVER, TREES
from diffgr_jax.evaluation.retrieval import format_table, paired_bootstrap

_SHOWN = ("R@1", "R@3", "NDCG@3", "R@1 of the best", "valid", "tokens a forward", "tokens/s")
_ONCE = (RETRIEVER, TREES, BEST)
_COMPARED = ("R@1", "NDCG@3", "valid")
_VALID, _INVALID = "0123456789", "abcdefghij"  # by the target's place; the last: tenth or behind


@dataclass(frozen=True, eq=False)
class Placed:
  """Where a run has the targets, list by list."""

  lists: str  # a fingerprint of the lists, in their order
  place: Int[np.ndarray, "Q"]  # 0: first
  valid: Bool[np.ndarray, "Q"]

  def metrics(self) -> dict[str, Float[np.ndarray, "Q"]]:
    gain = np.where(self.place < 3, 1.0 / np.log2(self.place + 2.0), 0.0)
    return {"R@1": (self.place == 0).astype(float), "NDCG@3": gain, "valid": self.valid.astype(float)}

  def written(self) -> dict[str, str]:
    letters = (
      (_VALID if valid else _INVALID)[min(place, 9)] for place, valid in zip(self.place, self.valid, strict=True)
    )
    return {"lists": self.lists, "places": "".join(letters)}

  @classmethod
  def read(cls, kept: Mapping[str, str]) -> "Placed":
    place = np.array([int(letter, 20) % 10 for letter in kept["places"]])
    return cls(kept["lists"], place, np.array([letter in _VALID for letter in kept["places"]]))


def read_places(out: Path, name: str, split: str) -> Placed | None:
  """From the rankings that a run left in a study's folder; None: it left none."""
  file = out / name / f"rankings.{split}.jsonl"
  if not file.exists():
    return None
  rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
  lists = json.dumps([[row["user"], *row["candidates"]] for row in rows])
  return Placed(
    hashlib.sha256(lists.encode()).hexdigest()[:16],
    np.array([row["ranking"].index(row["target"]) for row in rows]),
    np.array([row["verdict"] == "ok" for row in rows]),
  )


def differences(mine: Sequence[Placed], theirs: Sequence[Placed], against: str) -> dict[str, float]:
  """R@1, NDCG@3 and validity less another run's on the same lists, with 95% intervals over lists.

  Args:
    mine: one for each seed; a list counts with its mean over seeds.
    theirs: of the same seeds.
    against: what the other is called.

  Returns:
    `X - AGAINST`, with ` low` and ` high`; nothing where the lists are others.
  """
  if len(mine) != len(theirs) or len({one.lists for one in (*mine, *theirs)}) != 1:
    return {}
  figures = {}
  for name in _COMPARED:
    a, b = (np.mean([one.metrics()[name] for one in placed], axis=0) for placed in (mine, theirs))
    interval = paired_bootstrap(a, b, 0)
    key = f"{name} - {against}"
    figures |= {key: interval.difference, f"{key} low": interval.low, f"{key} high": interval.high}
  return figures


def by_run(systems: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, Mapping[str, float]]]:
  """A study's figures, `RUN: SYSTEM` -> figures, as run -> system -> figures."""
  runs: dict[str, dict[str, Mapping[str, float]]] = {}
  for name, figures in systems.items():
    run, _, system = name.partition(": ")
    runs.setdefault(run, {})[system] = figures
  return runs


def own_system(systems: Mapping[str, Mapping[str, float]]) -> str:
  """The run's own row of a record: its answers, those that are invalid replaced by the input order."""
  return next(system for system in systems if "valid" in systems[system])


def rerank_tables(metrics: Mapping[str, Mapping[str, Mapping[str, float]]], against: str = "") -> str:
  """A table of each split, in Markdown.

  Args:
    metrics: split -> `RUN: SYSTEM` (a run's own, its repaired answers and others) -> figures.
    against: the run that all others are compared with; "": none.
  """
  return "\n\n".join(f"{split}:\n\n{format_table(_rows(systems, against))}" for split, systems in metrics.items())


def _rows(systems: Mapping[str, Mapping[str, float]], against: str) -> list[dict[str, Any]]:
  runs = by_run(systems)
  show = lambda own: {key: own[key] for key in _SHOWN if key in own}
  first = runs.get(against) or next(iter(runs.values()))  # the first may have been measured on few lists
  rows: list[dict[str, Any]] = [
    {"run": "", "decoder": system} | show(first[system]) for system in _ONCE if system in first
  ]
  for run, found in runs.items():
    own = own_system(found)
    row = {"run": run, "decoder": own} | show(found[own])
    for name in _COMPARED if against else ():
      key = f"{name} - {against}"
      if key in found[own]:
        low, high = found[own][f"{key} low"], found[own][f"{key} high"]
        row[f"{key} (95%)"] = f"{found[own][key]:+.3f} ({low:+.3f} to {high:+.3f})"
    rows.append(row)
  return rows


def pool_seeds(records: Sequence[Mapping[str, Any]], against: str) -> dict[str, dict[str, dict[str, float]]]:
  """The metrics of studies that differ in their seeds: means over them, the least and the most, paired differences.

  Args:
    records: study.json of each.
    against: the run that all others are compared with.

  Returns:
    split -> `RUN: SYSTEM` -> figures, of what all of them have.

  Raises:
    ValueError: fewer than two, or two of one seed.
  """
  seeds = [record["seeds"] for record in records]
  if len(records) < 2 or any(a == b for at, a in enumerate(seeds) for b in seeds[:at]):
    raise ValueError(
      f"{len(records)} studies of {len({str(one) for one in seeds})} seeds: give two or more, each its own"
    )
  pooled: dict[str, dict[str, dict[str, float]]] = {}
  for split, systems in records[0]["metrics"].items():
    for name, first in systems.items():
      found = [record["metrics"].get(split, {}).get(name) for record in records]
      if any(one is None for one in found):
        continue
      shown = [key for key in first if key in _SHOWN and all(key in one for one in found)]
      figures = {key: float(np.mean([one[key] for one in found])) for key in shown}
      for key in ("R@1", "valid"):
        if key in figures:
          values = [one[key] for one in found]
          figures |= {f"{key} least": min(values), f"{key} most": max(values)}
      run = name.partition(": ")[0]
      places = [record["places"].get(split, {}) for record in records]
      if "valid" in first and run != against and all(run in own and against in own for own in places):
        mine, theirs = ([Placed.read(own[which]) for own in places] for which in (run, against))
        figures |= differences(mine, theirs, against)
      pooled.setdefault(split, {})[name] = figures | {"seeds": len(records)}
  return pooled
