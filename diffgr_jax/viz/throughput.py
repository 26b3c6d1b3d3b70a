"""Draws tokens a second against the batch size: where autoregressive decoding overtakes block decoding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter


def draw_throughput(
  figures: Mapping[int, Mapping[int, Mapping[str, Mapping[str, float]]]], path: Path, *, title: str
) -> Path:
  """Draws one panel for each number of new tokens, and writes the picture.

  Args:
    figures: new tokens -> rows -> label -> figures, of which "tok/s" with its "low" and "high" is drawn.
    path: of the PNG.
    title: above the panels.
  """
  figure, panels = plt.subplots(1, len(figures), figsize=(5.6 * len(figures) + 1.8, 5.2), squeeze=False, sharey=True)
  for panel, (length, by_rows) in zip(panels[0], figures.items(), strict=True):
    batches = sorted(by_rows)
    labels = list(dict.fromkeys(label for rows in batches for label in by_rows[rows]))
    colours = plt.get_cmap("viridis")
    for i, label in enumerate(labels):
      there = [rows for rows in batches if label in by_rows[rows]]
      middle = [by_rows[rows][label]["tok/s"] for rows in there]
      spread = [
        [abs(by_rows[rows][label][f"tok/s {end}"] - y) for rows, y in zip(there, middle, strict=True)]
        for end in ("low", "high")
      ]
      style: dict[str, Any] = (
        dict(color="black", linewidth=2.5, zorder=3) if label == "AR" else dict(color=colours(i / len(labels)))
      )
      panel.errorbar(there, middle, yerr=spread, label=label, marker="o", capsize=3, **style)
    panel.set(xscale="log", yscale="log", xlabel="batch (sequences decoded together)", title=f"{length} new tokens")
    panel.set_xticks(batches, [str(rows) for rows in batches])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)
  panels[0][0].set_ylabel("accepted tokens per second")
  panels[0][-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
  figure.suptitle(title)
  figure.tight_layout()
  figure.savefig(path, dpi=130)
  plt.close(figure)
  return path
