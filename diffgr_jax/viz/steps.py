"""Pictures of how a canvas, or any decoder's answer, came about: a terminal view, a PNG, and the ranking it led to.

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
from matplotlib.textpath import TextPath
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
_MOST_COLUMNS = 32  # of a picture; a longer canvas takes further lines
CONFIDENCE_STYLES = ((0.9, "bright_blue"), (0.5, "cyan"), (0.2, "yellow"), (0.0, "red"))  # told apart by all eyes


def display_piece(piece: str, width: int) -> str:
  """Makes a vocabulary piece fit `width` columns: no word-begin mark, `[EOS]` as EOS, an ellipsis where cut."""
  text = piece.replace(WORD_BEGIN, " ").strip() or "␣"
  if len(text) > 2 and text[0] == "[" and text[-1] == "]":  # brackets mark new commits
    text = text[1:-1]
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
    trace: what `trace_decode` or another recorder of decoding/trace.py made.
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
  view = row_view(trace, row)
  count_width = max(4, len(str(view.alive[0]))) if view.alive is not None else 0
  room = width - 6 - 9 - (count_width + 2) * (view.alive is not None)  # left for the canvas
  lines = [Text(title, style="bold", overflow="ellipsis", no_wrap=True)] if title else []
  layout = _layout(view, vocab_piece, room)
  room = max(sum(cell for _, cell in cells) for cells in layout)  # the numbers stand close to the canvas
  head = f"{'step':>4}  {' canvas'.ljust(room)}"
  head += f"  {'docs':>{count_width}}" if view.alive is not None else ""
  lines.append(Text(head + f"  {'entropy':>7}", style="dim", no_wrap=True))
  for step in range(view.steps + 1):
    lines += _step_lines(view, step, vocab_piece, layout, room, count_width)
  lines.append(_legend(view, colour))
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
  width: int = 80,
) -> Table:
  """Draws a ranking, best first: rank, score, document id, title. Documents known to be relevant carry a star.

  Args:
    scores: one score a document, in the order of the ranking.
    doc_ids: their ids.
    titles: their titles.
    relevant: ids of the documents that are known to answer the query.
    title: a line above, for example the query.
    width: columns to fill at most; long ids and titles are shortened.

  Raises:
    ValueError: lists of different lengths.
  """
  if not len(scores) == len(doc_ids) == len(titles):
    raise ValueError(
      f"a ranking has {len(scores)} scores, {len(doc_ids)} doc_ids, {len(titles)} titles; equal numbers are needed"
    )
  numbers = [f"{score:.2f}" for score in scores]
  number_width, id_width = max([5, *map(len, numbers)]), min(max([6, *map(_columns, doc_ids)]), width // 3)
  title_width = max(8, width - id_width - number_width - 4 - 3 - 4 * 2)  # without rank, hit and the gaps
  table = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=None, pad_edge=False)
  table.add_column("rank", justify="right")
  table.add_column("score", justify="right")
  for heading in ("hit", "doc_id", "title"):
    table.add_column(heading)
  for rank, (number, doc_id, name) in enumerate(zip(numbers, doc_ids, titles, strict=True), 1):
    hit = doc_id in relevant
    cells = (str(rank), number, "*" if hit else "", display_piece(doc_id, id_width), display_piece(name, title_width))
    table.add_row(*map(Text, cells), style="bold" if hit else "")
  return table


def draw_trace(trace: Trace, row: int, vocab_piece: Callable[[int], str], title: str, path: str | Path) -> Path:
  """Draws one row of a trace as a PNG: steps downwards, canvas positions across, and what is left to decide.

  A cell holds the token, darker where it was committed with more confidence; a step's own commits are outlined, what
  it took back to MASK is crossed out. A long canvas goes on in further lines of the same step. Beside the grid:
  documents still possible (log scale) and the mean entropy of the positions that were masked.

  Args:
    trace: what `trace_decode` or another recorder of decoding/trace.py made.
    row: which row of the batch.
    vocab_piece: display form of a token id.
    title: the query.
    path: where to write; folders are made.

  Returns:
    The path written.

  Raises:
    IndexError: the trace has no such row.
  """
  view = row_view(trace, row)
  columns = min(view.canvas.shape[1], _MOST_COLUMNS)
  lines = (view.steps + 1) * -(-view.canvas.shape[1] // columns)
  strips = 2 if view.alive is not None else 1
  width = max(10, 0.4 * columns)  # inches
  figure = Figure(
    figsize=(width, 2.0 + 0.36 * min(max(lines, 2), 120)),
    dpi=160,
    facecolor="white",
    layout="constrained",
  )
  FigureCanvasAgg(figure)
  grid = figure.add_gridspec(1, 1 + strips, width_ratios=[8.2 - strips * 0.9] + [1.0] * strips)
  axes = figure.add_subplot(grid[0, 0])
  draw_cells(axes, view, vocab_piece, cell_points=(width - 1.1 - strips * 0.95) * 72 / columns, columns=columns)
  axes.set_title(_two_lines(title, 92), loc="left", fontsize=11, color=INK, pad=26, parse_math=False)
  if view.alive is not None:
    _draw_documents(figure.add_subplot(grid[0, 1], sharey=axes), view.alive)
  _draw_entropy(figure.add_subplot(grid[0, strips], sharey=axes), view)
  bar = figure.colorbar(
    ScalarMappable(Normalize(0, 1), CONFIDENCE_COLOURS), ax=axes, location="bottom", fraction=0.05, aspect=45, pad=0.04
  )
  marks = "orange frame: committed at this step" + ("; cross: taken back to MASK" if view.back.any() else "")
  bar.set_label(f"probability of the token when it was committed  (grey: MASK; {marks})", fontsize=8, color=INK)
  bar.ax.tick_params(labelsize=7, color=FAINT)
  bar.outline.set_visible(False)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path


@dataclasses.dataclass(frozen=True)
class RowView:
  """One row of a trace, cut to the steps that the row took. Line t shows the canvas after t steps."""

  canvas: np.ndarray  # [steps + 1, L]
  masked: np.ndarray
  new: np.ndarray  # committed by the step that led to this line
  back: np.ndarray  # taken back to MASK by it
  confidence: np.ndarray
  entropy: np.ndarray  # [steps + 1]: mean over masked positions of what the model said; the last has none: nan
  alive: np.ndarray | None
  steps: int


def row_view(trace: Trace, row: int) -> RowView:
  if not 0 <= row < trace.canvas.shape[1]:
    raise IndexError(f"row {row} is not in the trace; it has rows 0..{trace.canvas.shape[1] - 1}")
  taken = trace.steps_taken(row)
  lines = np.concatenate([[0], taken + 1])  # before the first step, then after each that the row took
  none = np.zeros((1, trace.canvas.shape[2]), bool)
  entropy = np.full(len(lines), np.nan)
  for line, step in enumerate(taken):
    known = trace.entropy[step, row][trace.masked[step, row]]
    known = known[np.isfinite(known)]  # outside the block, nothing was computed
    entropy[line] = known.mean() if len(known) else np.nan
  return RowView(
    canvas=trace.canvas[lines, row],
    masked=trace.masked[lines, row],
    new=np.concatenate([none, trace.committed[taken, row]]),
    back=np.concatenate([none, trace.reopened[taken, row]]),
    confidence=trace.commit_confidence[lines, row],
    entropy=entropy,
    alive=None if trace.alive is None else trace.alive[lines, row],
    steps=len(taken),
  )


def _columns(text: str) -> int:
  """Counts terminal columns: wide characters take two, combining ones none."""
  wide = lambda c: 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
  return sum(wide(c) for c in text)


def _layout(view: RowView, vocab_piece: Callable[[int], str], room: int) -> list[list[tuple[int, int]]]:
  """Breaks the canvas into lines of (position, cell width) that fit `room` columns.

  A cell is as wide as the longest piece that ever stands in it. Where that needs more than three lines, pieces are
  shortened until three suffice, but not below five columns.
  """
  length = view.canvas.shape[1]
  pieces = [
    {display_piece(vocab_piece(int(token)), room - 2) for token in view.canvas[~view.masked[:, i], i]}
    for i in range(length)
  ]
  longest = [max((_columns(piece) for piece in seen), default=0) for seen in pieces]
  lines: list[list[tuple[int, int]]] = []
  for limit in range(max([5, *longest]), 4, -1):
    lines, used = [[]], 0
    for place in range(length):
      cell = max(min(longest[place], limit), len(MASK_GLYPH)) + 2  # brackets
      if lines[-1] and used + cell > room:
        lines.append([])
        used = 0
      lines[-1].append((place, cell))
      used += cell
    if len(lines) <= 3:
      break
  return lines


def _step_lines(view, step, vocab_piece, layout, room, count_width) -> list[Text]:
  """Draws one step: its canvas on the lines of the layout, with the numbers on the first."""
  lines = []
  for index, cells in enumerate(layout):
    line = Text(f"{step:>4}  " if index == 0 else " " * 6, no_wrap=True)
    for place, cell in cells:
      line.append_text(_terminal_cell(view, step, place, vocab_piece, cell))
    if index == 0:
      line.append(" " * (room + 6 - _columns(line.plain)))
      if view.alive is not None:
        line.append(f"  {view.alive[step]:>{count_width}}")
      entropy = view.entropy[step]
      line.append(f"  {'-' if np.isnan(entropy) else f'{entropy:.2f}':>7}", style="dim")
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
    text, style = f" {piece} ", _confidence_style(float(view.confidence[step, place]))
    if view.new[step, place]:
      text, style = f"[{piece}]", f"{style} bold reverse"
  return Text(text + " " * (cell - _columns(text)), style=style)


def _confidence_style(confidence: float) -> str:
  return next((style for least, style in CONFIDENCE_STYLES if confidence >= least), CONFIDENCE_STYLES[-1][1])


def _legend(view: RowView, colour: bool) -> Text:
  legend = Text(f"{MASK_GLYPH} masked   [x] committed at this step", style="dim")
  if view.back.any():
    legend.append(f"   {REOPENED}{MASK_GLYPH} taken back")
  if colour:
    legend.append("   p ")
    for least, style in reversed(CONFIDENCE_STYLES):
      legend.append(f">{least:g} " if least else "low ", style=f"not dim {style}")
  return legend


def draw_cells(axes, view: RowView, vocab_piece, *, cell_points: float, columns: int | None = None) -> None:
  """Draws the grid of tokens, all in the font size at which the longest fits its cell.

  A step is one unit high; with fewer `columns` than the canvas is long, its lines share it:

      0 1 2 3
      4 5 6       after t steps
  """
  texts, font = _fit_pieces({int(token) for token in view.canvas[~view.masked]}, vocab_piece, 0.76 * cell_points)
  steps, length = view.canvas.shape
  across = columns or int(length)
  lines = -(-length // across)
  for t in range(steps):
    for i in range(length):
      masked, confidence = view.masked[t, i], view.confidence[t, i]
      face = "#e4e7ec" if masked else CONFIDENCE_COLOURS(confidence)
      x, y = i % across, t + 0.9 * ((i // across + 0.5) / lines - 0.5)  # the middle of the cell
      half = 0.42 / lines
      axes.add_patch(Rectangle((x - 0.46, y - half), 0.92, 2 * half, facecolor=face, edgecolor="none"))
      if view.new[t, i]:
        inner = 0.4 / lines
        axes.add_patch(
          Rectangle((x - 0.43, y - inner), 0.86, 2 * inner, facecolor="none", edgecolor=ACCENT, linewidth=1.8, zorder=3)
        )
      if view.back[t, i]:
        reach = 0.34 / lines
        axes.plot([x - 0.4, x + 0.4], [y - reach, y + reach], color=ACCENT, linewidth=1.2, zorder=3)
        axes.plot([x - 0.4, x + 0.4], [y + reach, y - reach], color=ACCENT, linewidth=1.2, zorder=3)
      elif not masked:
        ink = "white" if confidence > 0.6 else INK
        axes.text(
          x,
          y,
          texts[int(view.canvas[t, i])],
          ha="center",
          va="center",
          fontsize=font,
          color=ink,
          parse_math=False,
          zorder=4,
        )
  axes.set(xlim=(-0.5, across - 0.5), ylim=(steps - 0.45, -0.55), xticks=range(across), yticks=range(steps))
  axes.xaxis.tick_top()
  axes.xaxis.set_label_position("top")
  more = f", and {across} more a line" if lines > 1 else ""
  axes.set_xlabel(f"canvas position{more}", fontsize=8, color=FAINT)
  axes.set_ylabel("forward passes", fontsize=9, color=INK)
  _quiet(axes)


def _fit_pieces(tokens: set[int], vocab_piece: Callable[[int], str], room: float) -> tuple[dict[int, str], float]:
  """Shortens pieces to `room` points at the smallest legible font; returns them and the largest font that fits all."""
  smallest, largest = 5.5, 9.5
  width = lambda text: TextPath((0, 0), text, size=1.0).get_extents().width  # in font sizes
  texts = {}
  for token in tokens:
    piece = vocab_piece(token)
    fitting = (display_piece(piece, columns) for columns in range(len(piece), 1, -1))
    texts[token] = next((text for text in fitting if width(text) * smallest <= room), display_piece(piece, 2))
  longest = max((width(text) for text in texts.values()), default=0.0)
  return texts, float(np.clip(room / max(longest, 1.0), smallest, largest))


def _draw_documents(axes, counts: np.ndarray) -> None:
  """Draws how many documents the canvas could still become after each step."""
  steps = np.arange(len(counts))
  alive = np.maximum(counts, 0.8)  # a log scale has no 0
  axes.plot(alive, steps, color=INK, linewidth=1.2, marker="o", markersize=3.5)
  axes.set_xscale("log")
  axes.set_xlim(0.5, alive.max() * 12)
  for t, count in enumerate(counts):
    axes.annotate(
      f"{count:,}", (alive[t], t), xytext=(5, 0), textcoords="offset points", va="center", fontsize=6.5, color=INK
    )
  axes.set_title("documents\npossible", fontsize=8, color=INK)
  _quiet(axes, ylabels=False)


def _draw_entropy(axes, view: RowView) -> None:
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
