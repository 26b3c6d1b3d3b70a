"""A study: runs of a config one after another, each by the main command, and one table of what they reached.

    OUT/NAME/            the workdir of cell NAME, as `python -m diffgr_jax.main` leaves it
    OUT/NAME.log         what that command printed
    OUT/NAME/cell.json   what the cell is; a cell of this name that is another one is refused
    OUT/study.json       all figures in one record;  OUT/study.md  the table

A cell with results is not run again, a cell that was stopped goes on from its checkpoint, and one that fails does not
keep the others from running. What is best is chosen on validation splits (`valid...`) and reported on all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

from diffgr_jax.evaluation.rerank_study import differences, own_system, read_places, rerank_tables
from diffgr_jax.evaluation.retrieval import format_table, is_baseline, results_record, typed_command
from diffgr_jax.parallel.preemption import EXIT_CODE


@dataclass(frozen=True)
class Cell:
  """One run of a study."""

  name: str
  config: str  # FILE.py:key=value,..., as the main command takes it; {out}, here and in fields, is the study's folder
  fields: Mapping[str, Any] = field(default_factory=dict)  # of the config, where they differ

  def flags(self, out: Path) -> list[str]:
    """The main command's flags; a list is written as Python writes a tuple, which ml_collections reads back."""
    show = lambda value: str(tuple(value) if isinstance(value, list) else value)
    given = [f"--config={self.config}", *(f"--config.{name}={show(value)}" for name, value in self.fields.items())]
    return [flag.replace("{out}", str(out)) for flag in given]


@dataclass(frozen=True)
class Outcome:
  """What became of a cell: its record, or what went wrong in one line."""

  cell: Cell
  record: Mapping[str, Any] | None
  error: str = ""


def cells_of(config: Any) -> list[Cell]:
  """The cells of a study's config.

  Raises:
    ValueError: no cells, an order that is not of these, or a name that is no name of a folder.
  """
  given = config.to_dict()
  names = list(given.get("order") or given["cells"])  # a ConfigDict sorts its fields
  if set(names) != set(given["cells"]):
    raise ValueError(f"config.order names {', '.join(names)}, but the cells are {', '.join(given['cells'])}")
  cells = [Cell(name, given["cells"][name]["config"], given["cells"][name].get("fields", {})) for name in names]
  if not cells:
    raise ValueError("config.cells is empty: a study has at least one cell")
  for cell in cells:
    if cell.name != Path(cell.name).name or cell.name.startswith("."):
      raise ValueError(f"config.cells: {cell.name!r} is no name of a folder")
  return cells


# A run's environment where it says nothing else: large pages are quicker on a CPU (docs/experiments.md, Speed), and are
# asked for before a process starts.
_LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

# A run that was told to leave, in training, where it saves first, or behind it, where all is saved.
_TOLD = (EXIT_CODE, -signal.SIGTERM)


def run_command(cell: Cell, out: Path) -> int:
  """Runs the main command in a process of its own; returns its exit code. SIGTERM is passed on: a run saves first."""
  command = [sys.executable, "-m", "diffgr_jax.main", *cell.flags(out), f"--workdir={out / cell.name}"]
  with open(out / f"{cell.name}.log", "a", encoding="utf-8") as log:
    children: list[subprocess.Popen] = []
    told: list[int] = []

    def tell(number: int, _) -> None:
      told.append(number)
      for child in children:
        child.terminate()

    before = signal.signal(signal.SIGTERM, tell)
    try:
      environment = _LARGE_PAGES | dict(os.environ)
      children.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
      if told:  # before there was a child
        children[0].terminate()
      code = children[0].wait()
      return EXIT_CODE if told else code  # it may have been done before it heard
    finally:
      signal.signal(signal.SIGTERM, before)


def run_cells(cells: Sequence[Cell], out: Path, run: Callable[[Cell, Path], int] = run_command) -> Iterator[Outcome]:
  """Runs what has no results yet, and yields every cell's outcome in order.

  Args:
    cells: the study.
    out: where workdirs and logs go.
    run: runs one cell and returns an exit code.

  Raises:
    ValueError: a cell's workdir belongs to another cell of its name.
    InterruptedError: a cell was told to leave by SIGTERM, and has saved.
  """
  for cell in cells:
    _claim(cell, out)
  for cell in cells:
    results, code = out / cell.name / "results.json", 0
    if not results.exists():
      code = run(cell, out)
    if results.exists():
      yield Outcome(cell, json.loads(results.read_text(encoding="utf-8")))
    elif code not in _TOLD:
      yield Outcome(cell, None, _last_line(out / f"{cell.name}.log") or f"exit code {code}")
    if code in _TOLD:
      raise InterruptedError(f"told to leave in cell {cell.name}, which is saved: start again with the same --out")


def _claim(cell: Cell, out: Path) -> None:
  file, what = out / cell.name / "cell.json", json.loads(json.dumps(asdict(cell)))
  if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8"))) != what:
    raise ValueError(f"{file} is of another cell, {kept['config']} {kept['fields']}: take another --out or remove it")
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")


def _last_line(log: Path) -> str:
  lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
  return next((line.strip() for line in reversed(lines) if line.strip()), "")


# --- what they reached ---


def table_rows(outcomes: Sequence[Outcome], metric: str = "Hit@1") -> list[dict[str, object]]:
  """A row for each decoding of each cell, and the baselines once; a column for each split."""
  rows: list[dict[str, object]] = []
  for outcome in outcomes:
    splits = outcome.record["metrics"] if outcome.record else {}
    methods = dict.fromkeys(method for of_split in splits.values() for method in of_split)
    for method in methods:
      if (baseline := is_baseline(method)) and any(row["decoding"] == method for row in rows):
        continue
      figures = {split: of_split.get(method, {}) for split, of_split in splits.items()}
      first = next(own for own in figures.values() if own)
      rows.append(
        {"run": "" if baseline else outcome.cell.name, "decoding": method}
        | {f"{split} {metric}": own.get(metric) for split, own in figures.items()}
        | {"canvases": first.get("canvases"), "queries/s": f"{first['queries/s']:.3g}"}
      )
    if not outcome.record:
      rows.append({"run": outcome.cell.name, "decoding": f"failed: {outcome.error}"})
  return rows


def best_on_validation(rows: Sequence[Mapping[str, object]], metric: str = "Hit@1") -> Mapping[str, object] | None:
  """The row with the highest mean of the validation splits' figures; baselines are not chosen."""

  def mean(row: Mapping[str, object]) -> float:
    own = [value for name, value in row.items() if name.startswith("valid") and name.endswith(metric)]
    return sum(own) / len(own) if own and all(isinstance(value, float) for value in own) else -1.0  # pyright: ignore

  runs = [row for row in rows if row["run"] and mean(row) >= 0]
  return max(runs, key=mean, default=None)


def study_record(outcomes: Sequence[Outcome], out: Path, against: str = "") -> dict[str, Any]:
  """One record of all runs: a method is called `RUN: METHOD`, a baseline by its name alone, as the first run has it.

  Re-rankers have their paired differences to the run `against`, and `places` (rerank_study.py).
  """
  metrics: dict[str, dict[str, dict[str, float]]] = {}
  places: dict[str, dict[str, dict[str, str]]] = {}
  for outcome in outcomes:
    for split, methods in (outcome.record or {"metrics": {}})["metrics"].items():
      named = {m: m if is_baseline(m) else f"{outcome.cell.name}: {m}" for m in methods}
      for method, figures in methods.items():
        metrics.setdefault(split, {}).setdefault(named[method], dict(figures))
      if placed := read_places(out, outcome.cell.name, split):
        places.setdefault(split, {})[outcome.cell.name] = placed.written()
        rival = read_places(out, against, split) if against not in ("", outcome.cell.name) else None
        if rival:
          metrics[split][named[own_system(methods)]] |= differences([placed], [rival], against)
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={
      f"{outcome.cell.name}: {name}": seed
      for outcome in outcomes
      for name, seed in (outcome.record or {}).get("seeds", {}).items()
    },
    metrics=metrics,
    settings={"runs": {one.cell.name: _setting(one) for one in outcomes}},
  )
  return record | ({"places": places} if places else {})


def _setting(outcome: Outcome) -> Mapping[str, Any]:
  return asdict(outcome.cell) | ({} if outcome.record else {"error": outcome.error})


def write_study(outcomes: Sequence[Outcome], out: Path, against: str = "") -> str:
  """Writes study.json and study.md; returns what study.md says. `against`: what re-rankers are compared with."""
  record = study_record(outcomes, out, against)
  (out / "study.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
  if any("stage" in (outcome.record or {}).get("settings", {}) for outcome in outcomes):
    failed = [f"{outcome.cell.name}: failed" for outcome in outcomes if not outcome.record]
    text = "\n\n".join([rerank_tables(record["metrics"], against), *failed])
    (out / "study.md").write_text(text + "\n", encoding="utf-8")
    return text
  rows = table_rows(outcomes)
  best = best_on_validation(rows)
  chosen = f"Best on validation: {best['run']}, {best['decoding']}.\n\n" if best else ""
  text = chosen + format_table(rows)
  (out / "study.md").write_text(text + "\n", encoding="utf-8")
  return text
