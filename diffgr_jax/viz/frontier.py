"""Draws a re-ranker's frontier: tokens a second against quality, a line of thresholds for each block size."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_SHOWN = ("R@1", "NDCG@3", "valid")


def draw_frontier(figures: Mapping[int, Mapping[str, Mapping[str, float]]], path: Path, *, title: str) -> Path:
  """Draws a column for each batch size and a row for each of R@1, NDCG@3 and validity.

  Args:
    figures: rows of a batch -> label (`AR`, or `block SIZE, POLICY TAU`) -> figures.
    path: of the PNG.
    title: above the panels.
  """
  batches = sorted(figures)
  figure, panels = plt.subplots(
    len(_SHOWN), len(batches), figsize=(4.8 * len(batches) + 1.2, 7.6), squeeze=False, sharex="col", sharey="row"
  )
  for column, rows in enumerate(batches):
    for row, measure in enumerate(_SHOWN):
      panel = panels[row][column]
      _panel(panel, figures[rows], measure)
      panel.grid(alpha=0.3)
      if column == 0:
        panel.set_ylabel("share of valid answers" if measure == "valid" else measure)
    panels[0][column].set_title(f"batch {rows}")
    panels[-1][column].set_xlabel("accepted tokens per second")
    panels[0][column].margins(y=0.16)  # room for the thresholds above the points
  panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
  figure.suptitle(title)
  figure.tight_layout()
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return path


def _panel(panel, figures: Mapping[str, Mapping[str, float]], measure: str) -> None:
  blocks: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
  for label, own in figures.items():
    if label == "AR":
      panel.scatter(own["tokens/s"], own[measure], marker="*", s=160, color="black", zorder=3, label="AR teacher")
    else:
      name, _, threshold = label.rpartition(" ")
      blocks.setdefault(name, []).append((threshold, own))
  for name, points in blocks.items():
    points.sort(key=lambda point: point[1]["tokens/s"])
    line = panel.plot([own["tokens/s"] for _, own in points], [own[measure] for _, own in points], "o-", label=name)
    if measure == _SHOWN[0]:
      for threshold, own in points:
        panel.annotate(
          threshold, (own["tokens/s"], own[measure]), xytext=(0, 5), textcoords="offset points", fontsize=7,
          color=line[0].get_color(), ha="center",
        )  # fmt: skip
