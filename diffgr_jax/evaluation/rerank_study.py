"""The table of a re-ranking study, from the records and rankings that its runs left: a row for each stage.

retriever, boosted trees, best order      once, from the first record
a row for each run                        R@1, R@3, NDCG@3, validity, speed, and its paired differences to one of them
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffgr_jax.evaluation.rerank_report import BEST, RETRIEVER, TREES
from diffgr_jax.evaluation.retrieval import format_table, paired_bootstrap

_SHOWN = ("R@1", "R@3", "NDCG@3", "R@1 of the best", "valid", "tokens a forward", "tokens/s")
_ONCE = (RETRIEVER, TREES, BEST)


def rerank_tables(records: Mapping[str, Mapping[str, Any] | None], out: Path, against: str = "") -> str:
  """A table of each split, in Markdown.

  Args:
    records: run -> what its results.json holds; None: it failed.
    out: the study's folder, with the runs' folders in it.
    against: the run that all others are compared with, list by list; "": none.
  """
  splits = dict.fromkeys(split for record in records.values() if record for split in record["metrics"])
  parts = []
  for split in splits:
    rows: list[dict[str, Any]] = []
    for name, record in records.items():
      if record is None:
        rows.append({"run": f"{name}: failed"})
      elif split in record["metrics"]:
        rows += _rows(name, record["metrics"][split], first=not rows)
        rows[-1] |= _difference(out, name, against, split)
    parts.append(f"{split}:\n\n{format_table(rows, markdown=True)}")
  return "\n\n".join(parts)


def _rows(name: str, systems: Mapping[str, Mapping[str, float]], first: bool) -> list[dict[str, Any]]:
  show = lambda own: {key: own[key] for key in _SHOWN if key in own}
  rows: list[dict[str, Any]] = [
    {"run": "", "decoder": system} | show(systems[system]) for system in _ONCE if first and system in systems
  ]
  own = next(system for system in systems if "valid" in systems[system])
  return [*rows, {"run": name, "decoder": own} | show(systems[own])]


def _difference(out: Path, name: str, against: str, split: str) -> dict[str, Any]:
  """R@1 less that of another run on the same lists, with its 95% interval."""
  files = [out / one / f"rankings.{split}.jsonl" for one in (name, against)]
  if not against or name == against or not all(file.exists() for file in files):
    return {}
  mine, theirs = (_first_right(file) for file in files)
  if set(mine) != set(theirs):
    return {}
  interval = paired_bootstrap(np.array([mine[key] for key in theirs]), np.array(list(theirs.values())), 0)
  return {f"R@1 - {against} (95%)": f"{interval.difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f})"}


def _first_right(file: Path) -> dict[tuple[str, ...], float]:
  """Of each list, whether its target stands first."""
  rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
  return {(row["user"], *row["candidates"]): float(row["ranking"][0] == row["target"]) for row in rows}
