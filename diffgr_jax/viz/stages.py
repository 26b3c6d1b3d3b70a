"""A picture of a re-ranking study: what each stage changed, against what is the best possible.

R@1       a row for each run, between the retriever's order and the best order (a ceiling that the made-up shop
          knows); its bar is the paired 95% interval of the difference to the run that all are compared with
valid     the same rows, share of valid answers
frontier  valid over tokens a pass, a line for each student that was decoded at several thresholds (`cft`, `cft_slow`,
          ...): a student may be valid because it is careful, and only a line above another's is better
small     marks at the least and the most of several seeds, where the record pools them (benchmarks/pool_seeds.py)
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffgr_jax.evaluation.rerank_report import BEST, RETRIEVER, TREES
from diffgr_jax.evaluation.rerank_study import by_run, own_system
from diffgr_jax.viz.clusters import COLOURS, FAINT, INK

_LINES = {RETRIEVER: (FAINT, ":"), TREES: (INK, ":"), BEST: (INK, "-")}
_METRICS = ("R@1", "valid")
_LEAST_VALID = 0.8  # naive conversion and what has not learned yet would hide all else


def draw_stages(
  record: Mapping[str, Any],
  path: str | Path,
  *,
  split: str = "test",
  against: str = "teacher",
  only: Sequence[str] = (),
) -> Path:
  """Draws a study's runs, and writes the picture.

  Args:
    record: a study's, or that of several seeds.
    path: of the PNG.
    split: whose figures are drawn.
    against: the run that the intervals are differences to.
    only: the runs that are drawn, in their order; (): all.

  Raises:
    ValueError: the record has no such split, or no such run.
  """
  systems = record["metrics"].get(split)
  if not systems:
    raise ValueError(f"the record has no figures of split {split!r}: {', '.join(record['metrics'])}")
  runs = by_run(systems)
  if unknown := sorted({against, *only} - set(runs)):
    raise ValueError(f"the record has no run {unknown[0]!r}: there are {', '.join(runs)}")
  own = {run: runs[run][own_system(runs[run])] for run in only or runs}

  teacher, lines = runs[against][own_system(runs[against])], _thresholds(own)
  widths = (3, 2, 3) if lines else (3, 2)
  figure = Figure(figsize=(1.9 * sum(widths), 1.2 + 0.36 * len(own)), layout="constrained")
  FigureCanvasAgg(figure)
  grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
  quality = figure.add_subplot(grid[0])
  valid = figure.add_subplot(grid[1], sharey=quality)
  valid.tick_params(labelleft=False)
  for axes, metric in zip((quality, valid), _METRICS, strict=True):
    for row, (run, figures) in enumerate(own.items()):
      _row(axes, row, figures, metric, teacher, against, COLOURS[0] if run == against else COLOURS[1])
    axes.axvline(teacher[metric], color=COLOURS[0], linewidth=0.8, zorder=1)
    axes.set(xlabel=metric)
    axes.spines[["top", "right"]].set_visible(False)
  for system, (colour, style) in _LINES.items():
    if system in runs[against]:
      quality.axvline(
        runs[against][system]["R@1"], color=colour, linestyle=style, linewidth=1.2, label=system, zorder=1
      )
  valid.set_xlim(_LEAST_VALID, 1.0)
  valid.set_xticks((0.8, 0.85, 0.9, 0.95, 1.0))
  quality.set_yticks(range(len(own)), list(own))
  quality.invert_yaxis()
  if lines:
    _frontier(figure.add_subplot(grid[2]), lines, teacher["valid"])
  figure.legend(*quality.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
  figure.savefig(path, dpi=130)
  return Path(path)


def _thresholds(own: Mapping[str, Mapping[str, float]]) -> dict[str, list[Mapping[str, float]]]:
  """The runs whose names begin alike (`cft`, `cft_slow`), from the slowest on, where there are several."""
  found = defaultdict(list)
  for run, figures in own.items():
    found[run.partition("_")[0]].append(figures)
  return {
    name: sorted(several, key=lambda figures: figures["tokens a forward"])
    for name, several in found.items()
    if len(several) > 1 and all("tokens a forward" in figures for figures in several)
  }


def _frontier(axes: Axes, lines: Mapping[str, Sequence[Mapping[str, float]]], teacher: float) -> None:
  """Valid over tokens a pass, a line for each student; the teacher's level."""
  axes.axhline(teacher, color=COLOURS[0], linewidth=0.8, zorder=1)
  for at, (name, several) in enumerate(lines.items()):
    colour, shade = (INK, FAINT) if not at else (COLOURS[at], COLOURS[at])
    x, y = ([figures[metric] for figures in several] for metric in ("tokens a forward", "valid"))
    axes.plot(x, y, color=shade, linewidth=1.2, zorder=2)
    axes.scatter(x, y, s=36, color=colour, edgecolors="white", linewidths=0.6, label=name, zorder=3)
  axes.set(xlabel="tokens a pass", ylabel="valid")
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8, loc="lower left")


def _row(
  axes: Axes,
  row: int,
  figures: Mapping[str, float],
  metric: str,
  teacher: Mapping[str, float],
  against: str,
  colour: str,
) -> None:
  """A run's point, the interval of its difference, and the least and the most of its seeds."""
  value, difference = figures[metric], f"{metric} - {against}"
  if metric == "valid" and value < _LEAST_VALID:
    axes.annotate(f"{value:.1%}", (_LEAST_VALID, row), (3, 0), textcoords="offset points", fontsize=8, va="center")
    return
  if difference in figures:
    ends = [teacher[metric] + figures[f"{difference} {end}"] for end in ("low", "high")]
    axes.plot(ends, [row, row], color=colour, linewidth=2.0, alpha=0.45, solid_capstyle="butt", zorder=2)
  if f"{metric} least" in figures:
    seeds = [figures[f"{metric} least"], figures[f"{metric} most"]]
    axes.scatter(seeds, [row, row], s=30, marker="|", color=colour, zorder=3)
  axes.scatter([value], [row], s=42, color=colour, edgecolors="white", linewidths=0.6, zorder=4)
