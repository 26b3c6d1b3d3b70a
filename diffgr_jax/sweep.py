"""Runs a study: `python -m diffgr_jax.sweep --config=configs/docid/study.py:path=DIR,... --out=DIR`.

configs/rerank/study.py has all stages of a re-ranker, one after another.

Every cell is a run of the main command in a process and a workdir of its own (OUT/NAME, its output in OUT/NAME.log).
Started again with the same --out, it goes on where it stopped. Writes OUT/study.json and OUT/study.md. Exit codes: 0
all cells have results, 1 a mistake or a failed cell, 75 told to leave by SIGTERM, and saved.
"""

from pathlib import Path
import sys

from absl import flags
from ml_collections import config_flags
from tqdm import tqdm

from diffgr_jax import cli
from diffgr_jax.evaluation.study import cells_of, run_cells, write_study
from diffgr_jax.parallel.preemption import EXIT_CODE

_CONFIG = config_flags.DEFINE_config_file("config", None, "the study; FILE.py:key=value,...")
flags.mark_flag_as_required("config")
_OUT = flags.DEFINE_string("out", "workdir/study", "where workdirs, logs and tables go")
_ONLY = flags.DEFINE_list("only", [], "names of cells; default: all")


def main(_) -> int | None:
  cells, out = cells_of(_CONFIG.value), Path(_OUT.value)
  if unknown := sorted(set(_ONLY.value) - {cell.name for cell in cells}):
    raise ValueError(f"--only={unknown[0]}: cells are {', '.join(cell.name for cell in cells)}")
  cells = [cell for cell in cells if not _ONLY.value or cell.name in _ONLY.value]
  out.mkdir(parents=True, exist_ok=True)
  outcomes, text = [], ""
  try:
    for outcome in tqdm(run_cells(cells, out), total=len(cells), desc="study", unit="cell"):
      outcomes.append(outcome)
      print(f"{outcome.cell.name}: {outcome.error or 'done'}", file=sys.stderr, flush=True)
      text = write_study(outcomes, out, _CONFIG.value.get("against", ""))
  except InterruptedError as told:
    print(told, file=sys.stderr)
    return EXIT_CODE
  print(f"{text}\n\nwritten: {out}/study.json, study.md")
  return 1 if any(outcome.error for outcome in outcomes) else None


if __name__ == "__main__":
  cli.run(main)
