"""The bench command's work: a config in, a record, a table and a picture out."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffgr_jax.evaluation import machine, throughput
from diffgr_jax.evaluation.machine import Costs
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.evaluation.throughput import Case, Workload
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import count_params, init_params
from diffgr_jax.training.pretrained import load_checkpoint
from diffgr_jax.viz.throughput import draw_throughput

Figures = dict[str, float]
_AR_COLUMNS = ("tok/s", "low", "high", "ms/sequence", "ms to first", "overhead", "GFLOP/s", "GB/s", "compile s")
_BLOCK_COLUMNS = (
  "tok/s", "low", "high", "ms/sequence", "ms to first", "forwards", "speed-up", "ceiling", "share",
  "share, attention too", "GFLOP/s", "GB/s",
)  # fmt: skip


def run_bench(config: Any, out: Path) -> dict[str, Any]:
  """Measures what `configs/bench/decode.py` describes; returns the record that results.json holds.

  Raises:
    ValueError: a field of the config that cannot be measured, by name.
  """
  check_bench(config)
  work = make_workload(config)
  names = ("batch_sizes", "new_tokens", "block_sizes", "tokens_per_forward", "thresholds")
  cases = throughput.make_cases(work, **{name: config[name] for name in names})
  bar = tqdm(total=len(cases) * (config.rounds + 1), desc="decoding", unit="run")
  how: dict[str, Any] = dict(rounds=config.rounds, most_seconds=config.most_seconds, mask_id=work.mask_id)
  costs = Costs(work.config, work.params)
  for case in throughput.measure(cases, costs, **how):
    bar.set_postfix_str(f"{case.label}, batch {case.rows}")
    bar.update()
  bar.close()
  figures = {length: _figures(cases, length, costs) for length in config.new_tokens}
  record = _record(config, work, costs, figures)
  out.mkdir(parents=True, exist_ok=True)
  (out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
  table = "\n\n".join(render(length, of_length) for length, of_length in figures.items())
  (out / "table.md").write_text(render_machine(record) + "\n\n" + table + "\n", encoding="utf-8")
  draw_throughput(figures, out / "throughput.png", title=_title(config, work.config))
  print(render_machine(record) + "\n\n" + table + f"\n\nwritten: {out}/results.json, table.md, throughput.png")
  return record


def check_bench(config: Any) -> None:
  """Fails before anything is built. Raises ValueError with the field, its value and what it may be."""
  for name in ("batch_sizes", "new_tokens", "block_sizes", "tokens_per_forward"):
    if not config[name] or min(config[name]) < 1:
      raise ValueError(f"config.{name} holds numbers of at least 1, at least one of them, not {config[name]}")
  for tau in config.thresholds:
    if not 0.0 < tau <= 1.0:
      raise ValueError(f"config.thresholds holds probabilities in (0, 1], not {tau}")
  if min(config.new_tokens) < 2:
    raise ValueError(f"config.new_tokens holds lengths of at least 2, not {config.new_tokens}")
  for name in ("rounds", "prompt_length"):
    if config[name] < 1:
      raise ValueError(f"config.{name} is at least 1, not {config[name]}")
  if config.dtype not in ("float32", "bfloat16"):
    raise ValueError(f"config.dtype is float32 or bfloat16, not {config.dtype!r}")


def make_workload(config: Any) -> Workload:
  """The model and its prompts: random tokens."""
  if config.checkpoint:
    spec, params = load_checkpoint(config.checkpoint)
    model, size = spec.config, spec.vocab_size
    mask_id = config.mask_id if config.mask_id >= 0 else spec.mask_id
    if mask_id is None:
      raise ValueError("config.mask_id must name the MASK token: the checkpoint does not")
  else:
    shape = {name: config[name] for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")}
    model = TransformerConfig(
      **shape, head_dim=config.head_dim, qk_norm=True, rope_theta=1e6, pattern="causal", alignment="shifted",
      param_dtype=config.dtype, compute_dtype=config.dtype,
    )  # fmt: skip
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(config.seed))
    size, mask_id = config.vocab_size, config.vocab_size - 1
  if not 0 <= mask_id < model.vocab_size:
    raise ValueError(f"config.mask_id is {mask_id}; the vocabulary has {model.vocab_size} rows")
  rng = np.random.default_rng(config.seed)
  prompts = rng.integers(0, size - 1, (max(config.batch_sizes), config.prompt_length)).astype(np.int32)
  banned = np.arange(model.vocab_size) >= size
  banned[mask_id] = True
  laid_out = jax.jit(decoding_params, static_argnums=0)(model, params)
  return Workload(model, laid_out, prompts, banned, mask_id)


def _figures(cases: list[Case], length: int, costs: Costs) -> dict[int, dict[str, Figures]]:
  """rows -> label -> figures, of one number of new tokens."""
  found: dict[int, dict[str, Figures]] = {}
  baseline = {case.rows: case for case in cases if case.new_tokens == length and not case.block}
  for case in cases:
    if case.new_tokens == length:
      figures = throughput.case_figures(case, baseline[case.rows], costs)
      found.setdefault(case.rows, {})[case.label] = figures
  return found


def _record(config: Any, work: Workload, costs: Costs, figures: dict[int, dict[int, dict[str, Figures]]]):
  device = jax.devices()[0]
  metrics = {
    f"{length} new tokens, batch {rows}": of_rows
    for length, by_rows in figures.items()
    for rows, of_rows in by_rows.items()
  }
  can = {"GB/s": machine.bandwidth() / 1e9, "GFLOP/s": machine.arithmetic(work.config.compute_dtype) / 1e9}
  positions = sorted({size for kind, size in costs.runs if kind == "body"})
  curve = {
    str(m): {
      "body ms": 1e3 * costs.body(m),
      "head ms": 1e3 * costs.head(m),
      "cost": costs.autoregressive_step(m) / costs.autoregressive_step(1),
    }
    for m in positions
  }
  settings = {
    "config": json.loads(config.to_json()), "parameters": count_params(work.config), "device": device.device_kind,
    "count": "accepted tokens; compile time apart; random weights: tokens a pass set by schedule",
  }  # fmt: skip
  record = results_record(
    command=typed_command(), status="measured", seeds={"weights, prompts": config.seed}, settings=settings,
    metrics={**metrics, "machine": {"reading and multiplying": can}, "matrix products at m positions": curve},
  )  # fmt: skip
  crossing = {length: throughput.crossovers(by_rows) for length, by_rows in figures.items()}
  best = {
    f"{length} new tokens, batch {rows}": max(of_rows, key=lambda label: of_rows[label]["tok/s"])
    for length, by_rows in figures.items()
    for rows, of_rows in by_rows.items()
  }  # fmt: skip
  return {**record, "AR wins from batch": crossing, "fastest": best}


def render_machine(record: dict[str, Any]) -> str:
  can, curve = (
    record["metrics"]["machine"]["reading and multiplying"],
    record["metrics"]["matrix products at m positions"],
  )
  costs = ", ".join(f"{m}: {point['cost']:.2f}" for m, point in curve.items())
  fastest = "; ".join(f"{case}: {label}" for case, label in record["fastest"].items())
  return (
    f"This machine reads {can['GB/s']:.1f} GB/s and multiplies at {can['GFLOP/s']:.0f} GFLOP/s. Matrix products alone, "
    f"m positions against one: {costs}. Fastest: {fastest}. AR wins from batch: {record['AR wins from batch']}."
  )


def render(length: int, figures: dict[int, dict[str, Figures]]) -> str:
  """Two Markdown tables: autoregressive decoding, and blocks."""
  rename = {"tok/s low": "low", "tok/s high": "high"}
  rows: dict[bool, list[dict[str, object]]] = {True: [], False: []}
  for batch, of_rows in figures.items():
    for label, values in of_rows.items():
      shown = {rename.get(name, name): value for name, value in values.items()}
      columns = _AR_COLUMNS if label == "AR" else _BLOCK_COLUMNS
      line = {column: _rounded(column, shown[column]) for column in columns}
      rows[label == "AR"].append({"batch": batch, "decoder": label, **line})
  return f"{length} new tokens:\n\n{format_table(rows[True])}\n\n{format_table(rows[False])}"


def _rounded(column: str, value: float) -> object:
  if column == "overhead" or column.startswith("share"):
    return f"{100 * value:.0f}%"
  return f"{value:.2f}" if column in ("speed-up", "ceiling") else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _title(config: Any, model: TransformerConfig) -> str:
  what = config.checkpoint or "random weights"
  return f"{what}, {count_params(model) / 1e6:.0f}M parameters, {model.compute_dtype}, prompt {config.prompt_length}"
