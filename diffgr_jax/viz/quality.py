"""Pictures of results.json files: what quality costs in speed, how it grows with scale, and what scale costs.

quality and speed     a point for each method of each record: queries a second (log) against the metric; those that no
                      other one beats in both are joined, and so are those that differ in their numbers only (a sweep)
quality and scale     a line for each method: documents, parameters or training examples (log) against the metric; where
                      records agree in the scale, a point for each, and the line goes through their mean
cost and scale        a line for each number of levels: documents (log) against what scoring them takes (log), and the
                      forward pass that it comes on top of (benchmarks/scoring_scale.py)

Every point is a figure that a record holds, on one split; nothing is fitted. Speeds compare on one machine only:
records of several machines in one picture are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffgr_jax.evaluation.retrieval import is_baseline
from diffgr_jax.viz.clusters import COLOURS, FAINT, INK

Record = Mapping[str, Any]
SCALES = {"documents": "documents in the index", "parameters": "parameters", "examples": "training examples"}
_MARKERS = "os^Dvp*XP<>hd8H"
_NUMBER = re.compile(r"\b\d+(?:\.\d+)?\b")


def read_records(files: Sequence[str | Path]) -> dict[str, Record]:
  """Reads results.json files; a record is called by its file's name, or by its folder's if that is results.json.

  Raises:
    FileNotFoundError, ValueError: no such file, one that is no record of retrieval, or two of one name.
  """
  records: dict[str, Record] = {}
  for file in map(Path, files):
    if not file.is_file():
      raise FileNotFoundError(f"{file}: no such file; `main` and `evaluate` write results.json")
    name = file.resolve().parent.name if file.stem == "results" else file.stem
    try:
      record = json.loads(file.read_text(encoding="utf-8"))
      right = all("queries" in figures for methods in record["metrics"].values() for figures in methods.values())
    except (ValueError, KeyError, TypeError, AttributeError):
      record, right = {}, False
    if not right:
      raise ValueError(f"{file} is no results.json of retrieval: metrics by split and method are expected")
    if name in records:
      raise ValueError(f"two records are called {name!r}; rename one of the files")
    records[name] = record
  return records


@dataclass(frozen=True)
class _Point:
  record: str  # "" for a baseline, which is the same in every record
  method: str
  speed: float
  quality: float
  canvases: float | None

  @property
  def kind(self) -> str:
    """The method without its numbers: what a sweep of steps or widths leaves the same."""
    return _NUMBER.sub("#", self.method)


def draw_speed(
  records: Mapping[str, Record], path: str | Path, *, split: str, metric: str = "Hit@1", only: Sequence[str] = ()
) -> Path:
  """Draws quality against speed, and writes the picture.

  A colour for each record (of a study: for each run), a marker for each way of decoding (of one record: a colour for
  each). Ways that differ in their numbers only, as steps and beams that are swept do, are joined by a thin line and
  bear their number.

  Args:
    records: by name (`read_records`).
    path: of the PNG.
    split: whose figures are drawn; records without it are left out.
    metric: on the vertical axis; methods without it are left out.
    only: names of records, or of a study's runs, that are drawn beside the baselines; (): all.

  Raises:
    ValueError: no record has that figure, a name is of none, or they are of several machines.
  """
  machines = {json.dumps(record["machine"], sort_keys=True) for record in records.values()}
  if len(machines) > 1:
    raise ValueError(f"the records are of {len(machines)} machines; queries a second compare on one machine only")
  points = _speed_points(records, split, metric)
  if not points:
    raise ValueError(_nothing(records, split, f"{metric} and queries/s"))
  if unknown := sorted(set(only) - {p.record for p in points}):
    raise ValueError(f"--only={unknown[0]}: there are {', '.join(dict.fromkeys(p.record for p in points if p.record))}")
  points = [p for p in points if not only or p.record in ("", *only)]
  axes, figure = _axes(f"{metric} against speed, {split}")
  names, kinds = ([*dict.fromkeys(of)] for of in ((p.record for p in points), (p.kind for p in points)))
  several = len(names) - ("" in names) > 1
  for name in names:
    for at, kind in enumerate(kinds):
      same = sorted((p for p in points if (p.record, p.kind) == (name, kind)), key=lambda p: _numbers(p.method))
      if not same:
        continue
      colour = INK if not name else _colour(names.index(name) if several else at)
      label = ": ".join(filter(None, (name if several else "", _described(same))))
      axes.scatter(
        [p.speed for p in same], [p.quality for p in same], s=60, marker=_MARKERS[at % len(_MARKERS)], color=colour,
        zorder=3, edgecolors="white", linewidths=0.6, clip_on=False, label=label,
      )  # fmt: skip
      if len(same) > 1:
        axes.plot([p.speed for p in same], [p.quality for p in same], color=colour, linewidth=0.8, zorder=2)
        for p, number in zip(same, _swept(same), strict=True):
          axes.annotate(number, (p.speed, p.quality), (4, 4), textcoords="offset points", fontsize=7, color=colour)
  best = _frontier([(p.speed, p.quality) for p in points])
  axes.plot(*zip(*best, strict=True), color=FAINT, linewidth=1.5, zorder=1)
  axes.set(xscale="log", xlabel="queries per second", ylabel=metric)
  figure.set_figheight(max(5.0, 0.21 * len(axes.collections)))  # room for the legend
  return _write(figure, axes, path)


def _speed_points(records: Mapping[str, Record], split: str, metric: str) -> list[_Point]:
  """Every method of every record that has both figures; a baseline once, as the first record has it."""
  points: dict[tuple[str, str], _Point] = {}
  for name, record in records.items():
    for method, figures in record["metrics"].get(split, {}).items():
      if metric in figures and "queries/s" in figures:
        run, _, own = method.rpartition(": ")  # of a study's record
        whose = "" if is_baseline(method) else run or name
        canvases = figures.get("canvases", figures.get("forwards"))
        points.setdefault((whose, own), _Point(whose, own, figures["queries/s"], figures[metric], canvases))
  return list(points.values())


def _numbers(method: str) -> list[float]:
  return [float(number) for number in _NUMBER.findall(method)]


def _swept(points: Sequence[_Point]) -> list[str]:
  """Of methods of one kind, the numbers in which they differ."""
  varying = [len(set(column)) > 1 for column in zip(*(_NUMBER.findall(p.method) for p in points), strict=True)]
  return [
    ", ".join(number for number, varies in zip(_NUMBER.findall(p.method), varying, strict=True) if varies)
    for p in points
  ]


def _described(points: Sequence[_Point]) -> str:
  """Methods of one kind in one entry: `top-k, 1 to 8 steps, beam 8, 1 to 57 canvases`."""
  show = lambda value: f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
  spread = lambda values: " to ".join(map(show, dict.fromkeys((min(values), max(values)))))
  columns = zip(*(_numbers(p.method) for p in points), strict=True)
  said = points[0].kind.replace("#", "{}").format(*map(spread, columns))
  canvases = [p.canvases for p in points if p.canvases is not None]
  return f"{said}, {spread(canvases)} canvas{'es' * (max(canvases) != 1)}" if canvases else said


def draw_scale(
  records: Mapping[str, Record], path: str | Path, *, split: str, metric: str = "Hit@1", scale: str = "documents"
) -> Path:
  """Draws quality against scale, a line for each method, and writes the picture.

  Args:
    records: by name; their settings hold the scale.
    path: of the PNG.
    split: whose figures are drawn.
    metric: on the vertical axis.
    scale: documents, parameters or examples.

  Raises:
    ValueError: another scale, no record with that figure and scale, or records of one size only.
  """
  if scale not in SCALES:
    raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
  lines: dict[str, list[tuple[float, float]]] = {}
  for record in records.values():
    for method, figures in record["metrics"].get(split, {}).items():
      if metric in figures and scale in record["settings"]:
        lines.setdefault(method, []).append((record["settings"][scale], figures[metric]))
  if not lines:
    raise ValueError(_nothing(records, split, f"{metric} and settings.{scale}"))
  ticks = sorted({size for points in lines.values() for size, _ in points})
  if len(ticks) == 1:
    raise ValueError(f"all records have {ticks[0]:,.0f} {scale}; quality against scale needs records of several")
  axes, figure = _axes(f"{metric} against {SCALES[scale]}, {split}")
  for i, (method, points) in enumerate(lines.items()):
    by_size: dict[float, list[float]] = {}
    for size, value in sorted(points):
      by_size.setdefault(size, []).append(value)
    look: dict[str, Any] = dict(color=_colour(i), clip_on=False)
    axes.plot(list(by_size), [sum(values) / len(values) for values in by_size.values()], **look)
    axes.scatter(*zip(*points, strict=True), marker=_MARKERS[i % len(_MARKERS)], label=method, zorder=3, **look)
  axes.set(xscale="log", xlabel=SCALES[scale], ylabel=metric)
  axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
  axes.minorticks_off()
  return _write(figure, axes, path)


def draw_cost(figures: Mapping[str, Mapping[str, Mapping[str, float]]], path: str | Path, *, batch: int) -> Path:
  """Draws what scoring a corpus takes by its size, and writes the picture.

  Args:
    figures: by "L levels", then by "N documents" (`scoring ms`, `picking ms`) and "forward pass" (`ms`).
    path: of the PNG.
    batch: questions of a pass, for the title.
  """
  axes, figure = _axes(f"scoring every document, batch {batch}")
  sizes: set[int] = set()
  for i, (levels, rows) in enumerate(figures.items()):
    costs = {
      int(name.removesuffix(" documents").replace(",", "")): row["scoring ms"] + row["picking ms"]
      for name, row in rows.items()
      if name.endswith(" documents")
    }
    sizes |= set(costs)
    look: dict[str, Any] = dict(color=_colour(i), clip_on=False)
    axes.plot(list(costs), list(costs.values()), marker=_MARKERS[i % len(_MARKERS)], label=levels, **look)
    axes.axhline(rows["forward pass"]["ms"], linestyle=":", label=f"a forward pass, {levels}", **look)
  axes.set(xscale="log", yscale="log", xlabel=SCALES["documents"], ylabel="milliseconds")
  axes.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)])
  axes.minorticks_off()
  return _write(figure, axes, path, bottom=None)


def _frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
  """The points that no other one beats in speed and quality, fastest last."""
  best: list[tuple[float, float]] = []
  for speed, quality in sorted(points, reverse=True):
    if not best or quality > best[-1][1]:
      best.append((speed, quality))
  return best[::-1]


def _axes(title: str) -> tuple[Axes, Figure]:
  figure = Figure(figsize=(10, 5), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  axes.set_title(title, color=INK, fontsize=12)
  axes.spines[["top", "right"]].set_visible(False)
  axes.grid(alpha=0.25)
  return axes, figure


def _colour(i: int) -> str:
  return COLOURS[i % len(COLOURS)]


def _write(figure: Figure, axes: Axes, path: str | Path, bottom: float | None = 0) -> Path:
  axes.set_ylim(bottom=bottom)
  axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  return path


def _nothing(records: Mapping[str, Record], split: str, what: str) -> str:
  splits = sorted({name for record in records.values() for name in record["metrics"]})
  return f"no record has {what} on the split {split!r}; there are the splits {', '.join(splits) or 'none'}"
