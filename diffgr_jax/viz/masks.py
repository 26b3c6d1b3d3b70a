"""Attention patterns as pictures, a panel each, queries downwards, keys across: by the rule that models go by."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import Bool
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
import numpy as np

from diffgr_jax.models.attention import Layout, attention_mask, padded_layout, two_stream_layout
from diffgr_jax.models.config import PATTERNS
from diffgr_jax.viz.steps import FAINT, INK

_SEEN = ListedColormap(["#eef1f5", "#3d86c0"])


def pattern_mask(pattern: str, *, length: int = 8, prompt: int = 4, block_size: int = 4) -> Bool[np.ndarray, "Q K"]:
  """The mask of a pattern over one short sequence.

  Args:
    pattern: one of models.config.PATTERNS.
    length: tokens; of a two-stream sequence, of each stream.
    prompt: of them, clean tokens before the canvas (prefix patterns).
    block_size: of the block patterns.

  Raises:
    ValueError: an unknown pattern.
  """
  layout = padded_layout(jnp.ones((1, length), bool))
  if pattern == "two_stream":
    layout = two_stream_layout(layout)
  elif pattern.startswith("prefix"):
    layout = Layout(layout.position, layout.segment, (layout.position >= prompt).astype(jnp.int32))
  return np.asarray(attention_mask(pattern, layout, layout, block_size))[0]


def draw_patterns(path: str | Path, *, length: int = 8, prompt: int = 4, block_size: int = 4) -> Path:
  """Draws all six patterns side by side; see `pattern_mask` for the arguments, of which the titles speak."""
  masks = {name: pattern_mask(name, length=length, prompt=prompt, block_size=block_size) for name in PATTERNS}
  return draw_masks(masks, path, block_size=block_size, prompt=prompt)


def draw_masks(
  masks: Mapping[str, Bool[np.ndarray, "Q K"]], path: str | Path, *, block_size: int = 4, prompt: int = 4
) -> Path:
  """Draws masks by their patterns' names, three a line. Lines part blocks, streams, and a prompt from its canvas."""
  columns = min(3, len(masks))
  lines = -(-len(masks) // columns)
  figure = Figure(figsize=(3.0 * columns, 3.3 * lines), dpi=130, facecolor="white", layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(lines, columns, squeeze=False).ravel()
  for panel in panels[len(masks) :]:
    panel.set_visible(False)
  for panel, (name, mask) in zip(panels, masks.items(), strict=False):
    size = len(mask)
    edges = np.arange(size + 1) - 0.5
    panel.pcolormesh(edges, edges, mask, cmap=_SEEN, vmin=0, vmax=1, edgecolors="white", linewidth=1.0)
    panel.set(aspect="equal", ylim=(size - 0.5, -0.5))
    parts = {"two_stream": [size // 2], "prefix": [prompt], "prefix_causal": [prompt]}.get(name, [])
    for edge in range(block_size, size, block_size) if name in ("block_causal", "two_stream") else ():
      panel.axhline(edge - 0.5, color=FAINT, linewidth=0.8, linestyle=":")
      panel.axvline(edge - 0.5, color=FAINT, linewidth=0.8, linestyle=":")
    for edge in parts:
      panel.axhline(edge - 0.5, color=INK, linewidth=1.4)
      panel.axvline(edge - 0.5, color=INK, linewidth=1.4)
    _label(panel, name, size, prompt)
    panel.set_title(name, fontsize=10, color=INK)
    panel.tick_params(which="both", length=0, labelsize=8, labelcolor=INK)
    for side in panel.spines.values():
      side.set_visible(False)
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path)
  return path


def _label(panel, name: str, size: int, prompt: int) -> None:
  """Names the parts of a sequence, or counts its tokens."""
  if name == "two_stream":
    parts = {"$x_t$ (noisy)": (size // 2 - 1) / 2, "$x_0$ (clean)": size // 2 + (size // 2 - 1) / 2}
  elif name.startswith("prefix"):
    parts = {"prompt": (prompt - 1) / 2, "canvas": prompt + (size - prompt - 1) / 2}
  else:
    parts = {str(at): at for at in range(size)}
  panel.set_xticks(list(parts.values()), list(parts))
  panel.set_yticks(list(parts.values()), list(parts))
  if not name.startswith(("two", "prefix")):
    return
  for tick in panel.get_yticklabels():
    tick.set_rotation(90)
    tick.set_va("center")
