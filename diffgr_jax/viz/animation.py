"""A decode as a small film for notebooks: one frame a step, with a slider, as HTML that needs nothing else."""

from collections.abc import Callable
import dataclasses

from matplotlib.animation import FuncAnimation
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from diffgr_jax.decoding.trace import Trace
from diffgr_jax.viz.steps import ENTROPY_INK, FAINT, INK, RowView, draw_cells, row_view


def animate_trace(trace: Trace, row: int, vocab_piece: Callable[[int], str], title: str, *, fps: int = 1) -> str:
  """Films one row of a trace.

  Each frame has the canvas (as `steps.draw_trace` draws it) above the entropy of every masked position, as the model
  saw it when it chose what to commit next. Below it are the player's buttons and a slider over the steps.

  Args:
    trace: what `trace_decode` or another recorder of decoding/trace.py made.
    row: which row of the batch.
    vocab_piece: display form of a token id.
    title: the query.
    fps: frames a second.

  Returns:
    HTML with all frames inside, for IPython.display.HTML.

  Raises:
    IndexError: the trace has no such row.
  """
  view, taken = row_view(trace, row), trace.steps_taken(row)
  length = view.canvas.shape[1]
  entropy = np.full((view.steps + 1, length), np.nan)
  entropy[: view.steps] = np.where(view.masked[: view.steps], trace.entropy[taken, row], np.nan)
  width = max(8, min(0.55 * length, 14))
  figure = Figure(figsize=(width, 2.9), dpi=90, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  cells, bars = figure.subplots(2, 1, height_ratios=[1, 1.5], sharex=True)
  highest = float(np.nanmax(entropy, initial=0.1)) * 1.1

  def frame(step: int):
    cells.clear()
    bars.clear()
    draw_cells(cells, _line(view, step), vocab_piece, cell_points=(width - 1.0) * 72 / length)
    cells.set(yticks=[], ylabel="", xlabel="")
    left = "" if view.alive is None else f"   {view.alive[step]:,} documents possible"
    cells.set_title(
      f"{title}\nafter {step} of {view.steps} passes{left}", loc="left", fontsize=9, color=INK, parse_math=False
    )
    bars.bar(range(length), np.nan_to_num(entropy[step]), color=ENTROPY_INK, alpha=0.75, width=0.7)
    bars.set_ylim(0, highest)
    bars.set_ylabel("entropy (nats)", fontsize=8, color=INK)
    bars.tick_params(length=0, labelsize=7.5, labelcolor=FAINT)
    for side in bars.spines.values():
      side.set_visible(False)
    return []

  film = FuncAnimation(figure, frame, frames=view.steps + 1, interval=1000 / fps, blit=False)
  return film.to_jshtml(fps=fps, default_mode="once")


def _line(view: RowView, step: int) -> RowView:
  """One line of a view as a view of its own."""
  cut = {
    name: getattr(view, name)[step : step + 1] for name in ("canvas", "masked", "new", "back", "confidence", "entropy")
  }
  return dataclasses.replace(view, **cut)
