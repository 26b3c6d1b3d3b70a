"""A loss curve that moves while a run trains, for notebooks."""

from collections.abc import Iterator
import contextlib
import io
import json
from pathlib import Path
import threading
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffgr_jax.viz.steps import FAINT, INK


def read_losses(workdir: str | Path) -> tuple[list[int], list[float]]:
  """Steps and losses that a run has written so far; the newest of a step that was done twice."""
  path, found = Path(workdir) / "metrics.jsonl", {}
  if path.exists():
    for line in path.read_text().splitlines():
      with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
        row = json.loads(line)
        if "loss" in row:
          found[int(row["step"])] = float(row["loss"])
  steps = sorted(found)
  return steps, [found[step] for step in steps]


def draw_losses(steps: list[int], losses: list[float], total: int) -> bytes:
  """The curve as a PNG."""
  figure = Figure(figsize=(7, 2.6), dpi=100, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  axes.plot(steps, losses, color="#0072b2", linewidth=1.6)
  axes.set_xlim(0, total)
  axes.set_xlabel("step", fontsize=9, color=INK)
  axes.set_ylabel("training loss", fontsize=9, color=INK)
  if losses:
    axes.set_title(f"step {steps[-1]:,} of {total:,}: {losses[-1]:.3f}", loc="left", fontsize=10, color=INK)
  axes.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
  axes.grid(alpha=0.25)
  for side in ("top", "right"):
    axes.spines[side].set_visible(False)
  out = io.BytesIO()
  figure.savefig(out, format="png")
  return out.getvalue()


@contextlib.contextmanager
def live_losses(workdir: str | Path, total: int, *, every: float = 2.0) -> Iterator[None]:
  """Shows the curve below the cell, drawn anew every few seconds while the body trains.

  Args:
    workdir: of the run.
    total: steps that it will take.
    every: seconds between two pictures.
  """
  from IPython.display import Image, display  # of the notebook, where this is used

  shown: Any = display(Image(draw_losses(*read_losses(workdir), total)), display_id=True)
  done = threading.Event()

  def watch():
    seen = 0
    while not done.wait(every):
      steps, losses = read_losses(workdir)
      if len(steps) > seen:
        seen = len(steps)
        shown.update(Image(draw_losses(steps, losses, total)))

  watcher = threading.Thread(target=watch, daemon=True)
  watcher.start()
  try:
    yield
  finally:
    done.set()
    watcher.join()
    shown.update(Image(draw_losses(*read_losses(workdir), total)))
