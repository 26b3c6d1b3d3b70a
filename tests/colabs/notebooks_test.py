"""The notebooks: paired with their .py, and run cell by cell in a folder of their own, as a reader runs them.

What they train takes an eighth of its steps here: every cell runs, in a fraction of the minutes.
"""

from pathlib import Path
import re
import time

import jupytext
from nbclient import NotebookClient
import nbformat
import pytest

COLABS = Path(__file__).resolve().parents[2] / "colabs"
NAMES = sorted(path.stem for path in COLABS.glob("[0-9]*.py"))
MOST_SECONDS = 1200  # of a cell, on a busy machine
_STEPS = re.compile(r"(?<=steps=)\d{3,}")  # of a config's arguments


def test_there_are_four():
  assert NAMES == ["01_decoding_steps", "02_block_diffusion", "03_train_your_own", "04_pod_in_a_notebook"]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_its_script(name):
  """`make notebooks` writes it anew."""
  script = jupytext.read(COLABS / f"{name}.py")
  notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
  same = lambda cells: [(cell.cell_type, cell.source, cell.metadata.get("cellView")) for cell in cells]
  assert same(script.cells) == same(notebook.cells)
  assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_runs(name, tmp_path, monkeypatch):
  for variable in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):  # of these tests; a reader has none
    monkeypatch.delenv(variable, raising=False)
  notebook = jupytext.read(COLABS / f"{name}.py")
  first = next(cell for cell in notebook.cells if cell.cell_type == "code")
  first.source = f"import sys; sys.path.insert(0, {str(COLABS.parent)!r})\n" + first.source.replace(
    "inside = next(", f"inside = Path({str(COLABS.parent)!r}) or next("
  )
  for cell in notebook.cells:
    if cell.cell_type == "code":
      cell.source = _STEPS.sub(lambda steps: str(int(steps[0]) // 8), cell.source)
  began = time.monotonic()
  NotebookClient(notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
  print(f"{name}: {time.monotonic() - began:.0f} s")
  shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
  assert not any(output.output_type == "error" for output in shown)
  assert any({"image/png", "text/html"} & set(output.get("data", {})) for output in shown)
