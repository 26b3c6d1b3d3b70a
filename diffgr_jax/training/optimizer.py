"""AdamW or Muon with warm-up, a decay, and clipping by the global norm (optax)."""

import functools
from typing import Any

import jax
import optax

DECAYS = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")

# Muon's updates are scaled to the root mean square that AdamW's usually have, so that one rate serves the matrices and
# what AdamW goes on updating (Liu et al. 2025, Muon is Scalable for LLM Training, arXiv 2502.16982, eq. 4).
_MUON_RMS = 0.2


def learning_rate_schedule(
  peak: float, *, warmup_steps: int, steps: int, decay: str = "cosine", final_fraction: float = 0.0
) -> optax.Schedule:
  """Linear warm-up from 0 to `peak`, then the decay down to `final_fraction * peak` at `steps`.

  Raises:
    ValueError: an unknown decay, or a warm-up as long as the run.
  """
  if decay not in DECAYS:
    raise ValueError(f"lr_decay is one of {', '.join(DECAYS)}, not {decay!r}")
  if not 0 <= warmup_steps < steps:
    raise ValueError(f"warmup_steps is at least 0 and below steps ({steps}), not {warmup_steps}")
  rest = steps - warmup_steps
  after = {
    "cosine": optax.cosine_decay_schedule(peak, rest, final_fraction),
    "linear": optax.linear_schedule(peak, final_fraction * peak, rest),
    "constant": optax.constant_schedule(peak),
  }[decay]
  return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup_steps, 1)), after], [warmup_steps])


def make_optimizer(
  schedule: optax.Schedule,
  *,
  b1: float,
  b2: float,
  weight_decay: float,
  clip_norm: float,
  embedding_rate: float = 1.0,
  head_rate: float = 1.0,
  row_rate: float = 1.0,
  name: str = "adamw",
) -> optax.GradientTransformation:
  """Clips the gradient's global norm, then AdamW; matrices and tables decay, norms and biases do not.

  `muon` updates the matrices inside the layers by their orthogonalised momentum (Jordan et al. 2024), and everything
  else - tables, heads, norms, biases, LoRA's factors - by AdamW.

  `embedding_rate` is the share of the learning rate that the token embeddings get. Every row of a tied table has a
  gradient at every step, if a tiny one (its share of the softmax), and Adam's step does not know how tiny: at the full
  rate the rows of words that no DocID holds, which queries are read by, drift as fast as those that are learned.
  `head_rate` is that of a code head's centroids (models/code_head.py), for the same reason and one more: a centroid of
  64 parts of a vector of 384 numbers has numbers of about .006, and few steps of 1e-4 are much of that
  (docs/experiments.md). `row_rate` is that of its rows, which start at zero: where they are slow, the canvas says
  nothing for as long.

  Raises:
    ValueError: an unknown name.
  """
  if name not in OPTIMIZERS:
    raise ValueError(f"optimizer is one of {', '.join(OPTIMIZERS)}, not {name!r}")

  def decays(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)

  adamw = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=decays)
  steps = [optax.clip_by_global_norm(clip_norm), adamw]
  if name == "muon":
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)  # layers are stacked before them
    muon = optax.contrib.muon(
      schedule,
      weight_decay=weight_decay,
      muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
      consistent_rms=_MUON_RMS,
    )
    steps[1] = optax.partition({"muon": muon, "adamw": adamw}, _muon_or_adamw)
  if embedding_rate != 1.0:
    steps.append(optax.masked(optax.scale(embedding_rate), _is_token_table))
  tables = {"centroids": head_rate, "rows": row_rate}
  for rate in sorted({*tables.values()} - {1.0}):  # one rate for both is one step, as in the states of older runs
    have = [table for table in tables if tables[table] == rate]
    steps.append(optax.masked(optax.scale(rate), functools.partial(_is_code, tables=have)))
  return optax.chain(*steps)


def optimizer_of(config: Any) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimizer that a config describes, and its learning rate."""
  schedule = learning_rate_schedule(
    config.learning_rate,
    warmup_steps=config.warmup_steps,
    steps=max(config.steps, 1),  # 0: nothing is trained
    decay=config.lr_decay,
    final_fraction=config.final_lr_fraction,
  )
  optimizer = make_optimizer(
    schedule,
    b1=config.b1,
    b2=config.b2,
    weight_decay=config.weight_decay,
    clip_norm=config.clip_norm,
    embedding_rate=config.embedding_rate,
    head_rate=config.get("head_rate", 1.0),  # re-rankers have no such head
    row_rate=config.get("row_rate", config.get("head_rate", 1.0)),  # older runs have one rate for both
    name=config.optimizer,
  )
  return optimizer, schedule


def _is_token_table(params):
  return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "embed", params)


def _is_code(params, tables):
  of_code = lambda path: path[0].key == "code_head" and path[-1].key in tables
  return jax.tree_util.tree_map_with_path(lambda path, _: of_code(path), params)


def _muon_or_adamw(params):
  in_layers = lambda path: path[0].key == "blocks" and path[-1].key == "kernel"
  return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if in_layers(path) else "adamw", params)
