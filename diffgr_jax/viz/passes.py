"""Draws what decoders wrote on an axis of forward passes: how many tokens stand after each, and where each one came."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

from diffgr_jax.viz.steps import FAINT, INK

# Okabe and Ito's colours, told apart by all eyes; markers differ too.
_LOOKS = (("#000000", "o"), ("#d55e00", "s"), ("#0072b2", "^"), ("#009e73", "D"), ("#cc79a7", "v"))


def tokens_after(passes: Sequence[int] | Int[np.ndarray, "G"]) -> Int[np.ndarray, "T"]:
  """How many tokens are committed after the first, second, ... pass; `passes` holds the pass (from 0) of each token."""
  own = np.asarray(passes)
  own = own[own >= 0]
  return np.cumsum(np.bincount(own)) if len(own) else np.zeros(0, np.int64)


def draw_passes(
  passes: Mapping[str, Sequence[int]],
  path: str | Path,
  *,
  title: str = "",
  answer_from: Mapping[str, int] | None = None,
) -> Path:
  """Draws decoders that answered the same prompt beside each other.

  Above: tokens written against forward passes, a line a decoder. Below: a panel a decoder, in which every token stands
  at the pass that committed it (across) and at its place in the text (downwards).

  Args:
    passes: label -> the pass that committed each token of the answer, in the order of the text.
    path: of the PNG; folders are made.
    title: above all.
    answer_from: label -> the place at which the reasoning ends and the ranking begins, where it is to be marked.
  """
  longest = max(max(own, default=0) for own in passes.values()) + 1
  figure = Figure(figsize=(9, 3.2 + 1.9 * len(passes)), dpi=130, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  if title:
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
  panels = figure.subplots(1 + len(passes), 1, sharex=True, height_ratios=[1.7, *[1.0] * len(passes)])
  for (label, own), panel, (colour, marker) in zip(passes.items(), panels[1:], _LOOKS * len(passes), strict=False):
    after = tokens_after(own)
    steps = np.arange(len(after) + 1)
    rate = f"{len(own) / max(len(after), 1):.2f} tokens a pass"
    panels[0].step(steps, [0, *after], where="post", color=colour, linewidth=1.6, label=f"{label}: {rate}")
    panels[0].annotate(
      f"{len(after)}", (len(after), after[-1] if len(after) else 0), xytext=(4, 0), textcoords="offset points",
      fontsize=8, color=colour, va="center",
    )  # fmt: skip
    panel.plot(np.asarray(own) + 1, np.arange(len(own)), marker, color=colour, markersize=2.6)
    cut = (answer_from or {}).get(label)
    if cut is not None:
      panel.axhline(cut - 0.5, color=FAINT, linewidth=0.8, linestyle="--")
      panel.annotate(
        "ranking", (1, cut), xycoords=("axes fraction", "data"), xytext=(-4, -3), textcoords="offset points",
        fontsize=7.5, color=INK, ha="right", va="top",
      )  # fmt: skip
    panel.set_ylim(len(own) + 1, -2)
    panel.set_ylabel(f"{label}\nplace", fontsize=8, color=INK)
  panels[0].set_ylabel("tokens written", fontsize=9, color=INK)
  panels[0].legend(fontsize=8, frameon=False, loc="upper left")
  panels[0].set_xlim(0, longest * 1.06)
  panels[-1].set_xlabel("forward passes", fontsize=9, color=INK)
  for panel in panels:
    panel.tick_params(labelsize=8, labelcolor=INK, color=FAINT)
    panel.grid(alpha=0.25)
    for side in ("top", "right"):
      panel.spines[side].set_visible(False)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path
