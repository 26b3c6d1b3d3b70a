"""Pictures of an index of codes: what its first level gathers, how evenly levels are used, what they tell apart.

clusters          the most common codes of level 1, on the plane that sets their centres farthest apart
use of codes      per level, documents of each code against an even share, most common code first
what is left      documents that still share their codes, and (with a quantiser) the error that is left, by level
"""

from pathlib import Path

from jaxtyping import Float, Int, Shaped
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from diffgr_jax.docid.code_report import level_uses
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.vectors import sample_rows

# Okabe and Ito's colours, told apart by all eyes, and one shade each so that ten clusters have ten.
COLOURS = (
  "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#b8a800", "#7a4b9a", "#5d5d5d", "#8c564b",
)  # fmt: skip
INK, FAINT = "#1c2430", "#c9d0d9"
_POINTS = 6000  # drawn at most
_TITLE_LETTERS = 34


def draw_index(index: CodeIndex, path: str | Path, vectors: Shaped[np.ndarray, "N D"] | None = None) -> Path:
  """Draws an index as a PNG (or what the path's ending says).

  Args:
    index: codes.
    path: to write.
    vectors: of the documents, in the index's order; without them the clusters are left out.
  """
  path = Path(path)
  figure = Figure(figsize=(15 if vectors is not None else 9, 4.6), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(1, 3 if vectors is not None else 2, squeeze=False)[0]
  if vectors is not None:
    _draw_clusters(axes[0], index, vectors)
  _draw_use(axes[-2], index)
  _draw_rest(axes[-1], index)
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  return path


def cluster_plane(vectors: Float[np.ndarray, "S D"], cluster: Int[np.ndarray, "S"]) -> Float[np.ndarray, "S 2"]:
  """Coordinates on the plane on which the clusters' means vary most."""
  names, counts = np.unique(cluster, return_counts=True)
  means = np.stack([vectors[cluster == name].mean(axis=0) for name in names])
  centre = np.average(means, axis=0, weights=counts)
  weighted = (means - centre) * np.sqrt(counts)[:, None]
  directions = np.linalg.svd(weighted, full_matrices=False)[2][:2]
  flat = (vectors - centre) @ directions.T
  return np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))  # vectors of width 1, or a single cluster of them


def _draw_clusters(axis: Axes, index: CodeIndex, vectors: Shaped[np.ndarray, "N D"]) -> None:
  first = index.codes[:, 0]
  common = np.argsort(-np.bincount(first, minlength=index.level_sizes[0]), kind="stable")[: len(COLOURS)]
  shown = np.flatnonzero(np.isin(first, common))
  rows = shown[sample_rows(np.arange(len(shown), dtype=np.float64)[:, None], _POINTS, 0)[:, 0].astype(int)]
  points = np.asarray(vectors[rows], np.float32)
  plane = cluster_plane(points, first[rows])
  for colour, code in zip(COLOURS, common, strict=False):
    own = first[rows] == code
    if not own.any():
      continue
    centre = points[own].mean(axis=0)
    middle = rows[own][np.argmin(np.square(points[own] - centre).sum(axis=1))]
    title = index.titles[middle] or index.doc_ids[middle]
    title = title if len(title) <= _TITLE_LETTERS else title[: _TITLE_LETTERS - 1] + "…"
    label = f"{code}: {(first == code).sum()}, {title}"
    axis.scatter(*plane[own].T, s=6, color=colour, alpha=0.6, linewidths=0, label=label.replace("$", r"\$"))
  axis.set_title(f"the {len(common)} most common codes of level 1", color=INK, fontsize=10)
  axis.set_xticks([])
  axis.set_yticks([])
  axis.legend(
    title="code: documents, the most central", fontsize=6.5, title_fontsize=7, markerscale=2, loc="upper center",
    bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False,
  )  # fmt: skip


def _draw_use(axis: Axes, index: CodeIndex) -> None:
  for level, size in enumerate(index.level_sizes):
    counts = np.sort(np.bincount(index.codes[:, level], minlength=size))[::-1]
    shade = level / max(1, index.levels - 1)
    colour = (0.04 + 0.55 * shade, 0.25 + 0.45 * shade, 0.5 + 0.3 * shade)  # dark: coarse, light: fine
    label = f"level {level + 1}" if index.levels <= 8 or level in (0, index.levels - 1) else None
    axis.plot((np.arange(size) + 0.5) / size, counts * size / counts.sum(), color=colour, label=label, linewidth=1.3)
  axis.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
  axis.set_xlabel("codes, most common first (share of the level's codes)")
  axis.set_ylabel("documents of a code / even share")
  axis.set_title("use of codes (dotted: even)", color=INK, fontsize=10)
  axis.set_ylim(bottom=0)
  axis.legend(fontsize=8, frameon=False)


def _draw_rest(axis: Axes, index: CodeIndex) -> None:
  levels = np.arange(1, index.levels + 1)
  shared = [use.in_collision / len(index.codes) for use in level_uses(index.codes, index.level_sizes)]
  axis.plot(levels, shared, color=COLOURS[0], marker="o", label="documents that share their codes so far")
  errors = index.settings.get("measured", {}).get("relative_error", [])
  if errors and "level_order" not in index.settings.get("build", {}):
    axis.plot(
      levels[: len(errors)], errors, color=COLOURS[3], marker="s", label="squared error left, share of the variance"
    )
  axis.set_xlabel("levels")
  axis.set_xticks(levels[:: max(1, len(levels) // 8)])
  axis.set_ylim(0, 1.03)
  axis.set_title("what the levels leave", color=INK, fontsize=10)
  axis.legend(fontsize=8, frameon=False)
  axis.grid(axis="y", color=FAINT, linewidth=0.6)
