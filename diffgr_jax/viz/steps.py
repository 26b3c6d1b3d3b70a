"""Pictures of how a DocID canvas was denoised: a terminal view, a PNG, and the ranking that came out of it.

The terminal view has one line a step. New commits stand in brackets, so that it reads as well in a log file as in
colour; a position that was taken back to MASK is marked, and what is still masked is a block:

    step  canvas                                   docs  entropy
       0  ░░   ░░   ░░   ░░   ░░                   2514      6.1
       1  ░░   ░░   [path] ░░   ░░                   41      2.3
       2  [os] [.]  path  [.]  ~░░                    1      0.4

The views take a `vocab_piece` function (token id to its display form) and know no vocabulary.
"""

from collections.abc import Callable, Sequence
import dataclasses
from pathlib import Path
import unicodedata

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from diffgr_jax.decoding.trace import Trace

WORD_BEGIN = "▁"  # sentencepiece writes a space as this
MASK_GLYPH = "░░"
REOPENED = "~"
# Light to dark blue: one hue that only darkens reads the same for every kind of colour vision, and in grey.
CONFIDENCE_COLOURS = LinearSegmentedColormap.from_list("confidence", ["#f1f6fb", "#9ec5e5", "#3d86c0", "#0b3f77"])
INK, FAINT, ACCENT, ENTROPY_INK = "#1c2430", "#8a94a3", "#d55e00", "#7a4b9a"
CONFIDENCE_STYLES = ((0.9, "bold green"), (0.5, "green"), (0.2, "yellow"), (0.0, "red"))


def display_piece(piece: str, width: int) -> str:
  """Makes a vocabulary piece fit `width` columns: no word-begin mark, no line breaks, an ellipsis where cut."""
  text = piece.replace(WORD_BEGIN, " ").strip() or "␣"
  text = "".join(c if c.isprintable() else "·" for c in text)
  if _columns(text) <= width:
    return text
  while _columns(text) > max(width - 1, 0):
    text = text[:-1]
  return text + "…" if width > 0 else ""


def render_trace(
  trace: Trace,
  row: int,
  vocab_piece: Callable[[int], str],
  *,
  title: str = "",
  width: int = 80,
  colour: bool = True,
) -> Group:
  """Draws one row of a trace for the terminal, one line a step (wrapped where the canvas is long).

  Args:
    trace: what `trace_decode` recorded.
    row: which row of the batch.
    vocab_piece: display form of a token id.
    title: a line above, for example the query.
    width: columns to fill at most.
    colour: whether to style; brackets and marks carry the same meaning without.

  Returns:
    A rich renderable.

  Raises:
    IndexError: the trace has no such row.
  """
  view = _row_view(trace, row)
  count_width = max(4, len(str(view.alive[0]))) if view.alive is not None else 0
  room = width - 6 - (count_width + 2) * (view.alive is not None) - 9
  lines = [Text(title, style="bold", overflow="ellipsis", no_wrap=True)] if title else []
  columns, cell = _layout(view, vocab_piece, room)
  head = f"{'step':>4}  {'canvas'.ljust(columns * (cell + 1))[:room].ljust(room)}"
  head += f"  {'docs':>{count_width}}" if view.alive is not None else ""
  lines.append(Text(head + f"  {'entropy':>7}", style="dim", no_wrap=True))
  for step in range(view.steps + 1):
    lines += _step_lines(view, step, vocab_piece, columns, cell, room, count_width)
  lines.append(Text(_legend(view), style="dim"))
  if not colour:
    lines = [Text(line.plain, no_wrap=True) for line in lines]
  return Group(*lines)


def render_ranking(
  scores: Sequence[float],
  doc_ids: Sequence[str],
  titles: Sequence[str],
  *,
  relevant: Sequence[str] = (),
  title: str = "",
) -> Table:
  """Draws a ranking, best first: rank, score, document id, title. Relevant documents carry a star.

  Args:
    scores: one score a document, in the order of the ranking.
    doc_ids: their ids.
    titles: their titles.
    relevant: ids of the documents that are known to answer the query.
    title: a line above, for example the query.

  Raises:
    ValueError: lists of different lengths.
  """
  if not len(scores) == len(doc_ids) == len(titles):
    raise ValueError(
      f"a ranking has {len(scores)} scores, {len(doc_ids)} doc_ids, {len(titles)} titles; equal numbers are needed"
    )
  table = Table(
    title=Text(title) if title else None, title_justify="left", title_style="bold", box=None, pad_edge=False
  )
  table.add_column("rank", justify="right")
  table.add_column("score", justify="right")
  table.add_column("doc_id", overflow="ellipsis", no_wrap=True, max_width=28)
  table.add_column("title", overflow="ellipsis", no_wrap=True)
  for rank, (score, doc_id, name) in enumerate(zip(scores, doc_ids, titles, strict=True), 1):
    hit = doc_id in relevant
    cells = (str(rank), f"{score:.2f}", doc_id, name + (" *" if hit else ""))
    table.add_row(*(Text(cell) for cell in cells), style="bold green" if hit else "")
  return table


def draw_trace(trace: Trace, row: int, vocab_piece: Callable[[int], str], title: str, path: str | Path) -> Path:
  """Draws one row of a trace as a PNG: steps downwards, canvas positions across, and what is left to decide.

  A cell holds the token, darker where it was committed with more confidence; a step's own commits are outlined, what
  it took back to MASK is crossed out. Beside the grid: documents still possible (log scale) and the mean entropy of
  the positions that were masked.

  Args:
    trace: what `trace_decode` recorded.
    row: which row of the batch.
    vocab_piece: display form of a token id.
    title: the query.
    path: where to write; folders are made.

  Returns:
    The path written.

  Raises:
    IndexError: the trace has no such row.
  """
  view = _row_view(trace, row)
  lines, length = view.steps + 1, view.canvas.shape[1]
  strips = 2 if view.alive is not None else 1
  figure = Figure(figsize=(10, 1.75 + 0.36 * max(lines, 4)), dpi=160, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  grid = figure.add_gridspec(1, 1 + strips, width_ratios=[8.2 - strips * 0.9] + [1.0] * strips)
  axes = figure.add_subplot(grid[0, 0])
  _draw_cells(
    axes, view, vocab_piece, font=float(np.clip(110 / length, 5.2, 9.5)), letters=int(np.clip(92 / length, 4, 14))
  )
  axes.set_title(_two_lines(title, 92), loc="left", fontsize=11, color=INK, pad=26)
  if view.alive is not None:
    _draw_documents(figure.add_subplot(grid[0, 1], sharey=axes), view)
  _draw_entropy(figure.add_subplot(grid[0, strips], sharey=axes), view)
  bar = figure.colorbar(
    ScalarMappable(Normalize(0, 1), CONFIDENCE_COLOURS), ax=axes, location="bottom", fraction=0.05, aspect=45, pad=0.04
  )
  bar.set_label("probability of the token when it was committed", fontsize=8, color=INK)
  bar.ax.tick_params(labelsize=7, color=FAINT)
  bar.outline.set_visible(False)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path


@dataclasses.dataclass(frozen=True)
class _RowView:
  """One row of a trace, cut to the steps that the row took. Line t shows the canvas after t steps."""

  canvas: np.ndarray  # [steps + 1, L]
  masked: np.ndarray
  new: np.ndarray  # committed by the step that led to this line
  back: np.ndarray  # taken back to MASK by it
  confidence: np.ndarray
  entropy: np.ndarray  # [steps + 1]: mean over masked positions of what the model said; the last has none: nan
  alive: np.ndarray | None
  steps: int


def _row_view(trace: Trace, row: int) -> _RowView:
  if not 0 <= row < trace.canvas.shape[1]:
    raise IndexError(f"row {row} is not in the trace; it has rows 0..{trace.canvas.shape[1] - 1}")
  steps = trace.steps_of(row)
  none = np.zeros((1, trace.canvas.shape[2]), bool)
  masked = trace.masked[: steps + 1, row]
  entropy = np.full(steps + 1, np.nan)
  for t in range(steps):
    entropy[t] = trace.entropy[t, row][masked[t]].mean()
  return _RowView(
    canvas=trace.canvas[: steps + 1, row],
    masked=masked,
    new=np.concatenate([none, trace.committed[:steps, row]]),
    back=np.concatenate([none, trace.reopened[:steps, row]]),
    confidence=trace.commit_confidence[: steps + 1, row],
    entropy=entropy,
    alive=None if trace.alive is None else trace.alive[: steps + 1, row],
    steps=steps,
  )


def _columns(text: str) -> int:
  """Counts terminal columns: wide characters take two, combining ones none."""
  wide = lambda c: 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
  return sum(wide(c) for c in text)


def _layout(view: _RowView, vocab_piece: Callable[[int], str], room: int) -> tuple[int, int]:
  """Chooses how many positions stand on a line and how wide a cell is: as wide as needed, if two lines suffice."""
  length = view.canvas.shape[1]
  shown = {int(token) for token in view.canvas[~view.masked]}
  needed = max([_columns(display_piece(vocab_piece(token), 14)) for token in shown], default=2) + 2  # brackets
  needed = max(needed, len(MASK_GLYPH) + 2)
  lines = 1 if length * (needed + 1) - 1 <= room or length <= 8 else 2
  columns = -(-length // lines)
  while columns > 1 and (room + 1) // columns - 1 < 6:  # narrower cells would hold nothing readable
    columns -= 1
  columns = -(-length // -(-length // columns))  # even lines
  return columns, min(needed, (room + 1) // columns - 1)


def _step_lines(view, step, vocab_piece, columns, cell, room, count_width) -> list[Text]:
  """Draws one step: its canvas, wrapped into lines of `columns` cells, with the numbers on the first."""
  lines = []
  for start in range(0, view.canvas.shape[1], columns):
    line = Text(f"{step:>4}  " if start == 0 else " " * 6, style="", no_wrap=True)
    body = Text()
    for place in range(start, min(start + columns, view.canvas.shape[1])):
      body.append_text(_terminal_cell(view, step, place, vocab_piece, cell))
      body.append(" ")
    body.rstrip()
    body.append(" " * (room - _columns(body.plain)))
    line.append_text(body)
    if start == 0:
      if view.alive is not None:
        line.append(f"  {view.alive[step]:>{count_width}}")
      entropy = view.entropy[step]
      line.append(f"  {'-' if np.isnan(entropy) else f'{entropy:.2f}':>7}", style="dim")
    else:
      line.rstrip()
    lines.append(line)
  return lines


def _terminal_cell(view, step, place, vocab_piece, cell) -> Text:
  """Draws one position in exactly `cell` columns."""
  if view.masked[step, place]:
    mark = REOPENED if view.back[step, place] else " "
    text, style = mark + MASK_GLYPH, "magenta" if view.back[step, place] else "dim"
  else:
    piece = display_piece(vocab_piece(int(view.canvas[step, place])), cell - 2)
    if view.new[step, place]:
      confidence = view.confidence[step, place]
      text = f"[{piece}]"
      style = next(style for least, style in CONFIDENCE_STYLES if confidence >= least)
    else:
      text, style = f" {piece} ", ""
  return Text(text + " " * (cell - _columns(text)), style=style)


def _legend(view: _RowView) -> str:
  legend = f"{MASK_GLYPH} masked   [x] committed at this step"
  return legend + (f"   {REOPENED}{MASK_GLYPH} taken back to MASK" if view.back.any() else "")


def _draw_cells(axes, view: _RowView, vocab_piece, *, font: float, letters: int) -> None:
  """Draws the grid of tokens."""
  lines, length = view.canvas.shape
  for t in range(lines):
    for i in range(length):
      masked, confidence = view.masked[t, i], view.confidence[t, i]
      face = "#e4e7ec" if masked else CONFIDENCE_COLOURS(confidence)
      axes.add_patch(Rectangle((i - 0.46, t - 0.42), 0.92, 0.84, facecolor=face, edgecolor="none"))
      if view.new[t, i]:
        axes.add_patch(
          Rectangle((i - 0.46, t - 0.42), 0.92, 0.84, facecolor="none", edgecolor=ACCENT, linewidth=1.8, zorder=3)
        )
      if view.back[t, i]:
        axes.plot([i - 0.4, i + 0.4], [t - 0.34, t + 0.34], color=ACCENT, linewidth=1.2, zorder=3)
        axes.plot([i - 0.4, i + 0.4], [t + 0.34, t - 0.34], color=ACCENT, linewidth=1.2, zorder=3)
      elif not masked:
        text = display_piece(vocab_piece(int(view.canvas[t, i])), letters)
        ink = "white" if confidence > 0.6 else INK
        axes.text(i, t, text, ha="center", va="center", fontsize=font, color=ink, parse_math=False, zorder=4)
  axes.set(xlim=(-0.5, length - 0.5), ylim=(lines - 0.45, -0.55), xticks=range(length), yticks=range(lines))
  axes.xaxis.tick_top()
  axes.xaxis.set_label_position("top")
  axes.set_xlabel("canvas position", fontsize=8, color=FAINT)
  axes.set_ylabel("step", fontsize=9, color=INK)
  _quiet(axes)


def _draw_documents(axes, view: _RowView) -> None:
  """Draws how many documents the canvas could still become after each step."""
  steps = np.arange(view.steps + 1)
  alive = np.maximum(view.alive, 0.8)  # a log scale has no 0
  axes.plot(alive, steps, color=INK, linewidth=1.2, marker="o", markersize=3.5)
  axes.set_xscale("log")
  axes.set_xlim(0.5, alive.max() * 12)
  for t, count in enumerate(view.alive):
    axes.annotate(
      f"{count:,}", (alive[t], t), xytext=(5, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK
    )
  axes.set_title("documents\npossible", fontsize=8, color=INK)
  _quiet(axes, ylabels=False)


def _draw_entropy(axes, view: _RowView) -> None:
  """Draws the mean entropy over what was masked, as the model saw it before each step."""
  known = ~np.isnan(view.entropy)
  steps = np.arange(view.steps + 1)[known]
  axes.barh(steps, view.entropy[known], height=0.5, color=ENTROPY_INK, alpha=0.75)
  axes.set_xlim(0, max(float(np.max(view.entropy[known], initial=0.0)) * 1.7, 0.1))
  for t in steps:
    axes.annotate(
      f"{view.entropy[t]:.2f}",
      (view.entropy[t], t),
      xytext=(3, 0),
      textcoords="offset points",
      va="center",
      fontsize=6.5,
      color=INK,
    )
  axes.set_title("mean entropy\n(nats)", fontsize=8, color=INK)
  _quiet(axes, ylabels=False)


def _quiet(axes, ylabels: bool = True) -> None:
  """Takes away what carries no data."""
  axes.tick_params(length=0, labelsize=7.5, labelcolor=FAINT, labelleft=ylabels)
  if not ylabels:
    axes.tick_params(which="both", labelbottom=False, length=0)
  for side in axes.spines.values():
    side.set_visible(False)


def _two_lines(text: str, width: int) -> str:
  """Breaks a title at a space into at most two lines."""
  text = " ".join(text.split())
  if len(text) <= width:
    return text
  cut = text.rfind(" ", 0, width)
  cut = cut if cut > 0 else width
  rest = text[cut:].strip()
  return text[:cut] + "\n" + (rest if len(rest) <= width else rest[: width - 1] + "…")
