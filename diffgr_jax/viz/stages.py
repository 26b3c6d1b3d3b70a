"""A picture of a re-ranking study: what each stage changed, against what is the best possible.

R@1       a row for each run, between the retriever's order and the best order (a ceiling that the made-up shop
          knows); its bar is the paired 95% interval of the difference to the run that all are compared with
valid     the same rows, share of valid answers
small     marks at the least and the most of several seeds, where the record pools them (benchmarks/pool_seeds.py)
"""

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

  figure = Figure(figsize=(9.5, 1.2 + 0.36 * len(own)), layout="constrained")
  FigureCanvasAgg(figure)
  quality, valid = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
  teacher = runs[against][own_system(runs[against])]
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
  quality.set_yticks(range(len(own)), list(own))
  quality.invert_yaxis()
  figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
  figure.savefig(path, dpi=130)
  return Path(path)


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
