"""What a step costs on a slice: memory and traffic as compiled, time as estimated from them, and what to change.

Memory and collectives are read off the compiled program. Time is a roofline, the slowest of three that run side by side
at best (arithmetic, HBM, the network between devices), so the MFU beside it is a bound, not a forecast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import count_params
from diffgr_jax.parallel.aot import Compiled, DoesNotFit, bytes_a_device
from diffgr_jax.parallel.chips import GIB, Chip
from diffgr_jax.parallel.collectives import Collective
from diffgr_jax.parallel.mesh import batch_shards
from diffgr_jax.training.fields import Config
from diffgr_jax.training.preflight import Plan, Program


@dataclass(frozen=True)
class Memory:
  """Bytes of one device."""

  held: dict[str, int]  # arguments: weights, optimizer, index, cache, batch
  temporaries: int  # activations, gradients, gathered weights; with `compiled` False an analytic account
  peak: int
  capacity: int
  compiled: bool

  @property
  def fits(self) -> bool:
    return self.peak <= self.capacity


@dataclass(frozen=True)
class Roofline:
  """Seconds of one step, if each were alone."""

  arithmetic: float
  hbm: float
  network: float
  mfu: float  # of `step`, by the counting rule

  @property
  def step(self) -> float:
    return max(self.arithmetic, self.hbm, self.network)

  @property
  def bound(self) -> str:
    times = {"arithmetic": self.arithmetic, "HBM": self.hbm, "the network": self.network}
    return max(times, key=times.__getitem__)


def memory_of(program: Program, compiled: Compiled, chip: Chip) -> Memory:
  held = {name: bytes_a_device(tree) for name, tree in program.held.items()}
  return Memory(held, compiled.temporaries, compiled.peak, int(chip.hbm_bytes), compiled=True)


def memory_without_analysis(
  program: Program, job: Plan, config: Config, mesh: Any, refused: DoesNotFit, step: str
) -> Memory:
  """The account where the compiler gives up: arguments exactly, temporaries by hand, the peak as the compiler says."""
  held = {name: bytes_a_device(tree) for name, tree in program.held.items()}
  temporaries = _temporaries(job, config, mesh, program.tokens, training=step == "train")
  peak = max(int(refused.needed), sum(held.values()))
  return Memory(held, temporaries, peak, int(refused.available), compiled=False)


def _temporaries(job: Plan, config: Config, mesh: Any, tokens: int, *, training: bool) -> int:
  """Activations that are kept for the backward pass, float32 gradients, two layers' gathered weights and the logits."""
  model, width = job.model, jnp.dtype(job.model.compute_dtype).itemsize
  tensor, shards = mesh.shape["tensor"], batch_shards(mesh)
  local = tokens / shards / mesh.shape["sequence"]
  wide = (3 if model.mlp == "swiglu" else 2) * model.d_ff + (2 * model.n_heads + 2 * model.n_kv_heads) * model.head_dim
  of_layer = local * (4 * model.d_model + wide / tensor) * width
  kept = {"full": local * model.d_model * width, "dots": of_layer, "none": 2 * of_layer}[model.remat]
  rows = tokens / shards / job.length
  logits = rows * job.canvas_length * (config.ce_chunk or model.vocab_size) / tensor * 4
  layer_weights = 2 * count_params(model) / model.n_layers / tensor * width
  if not training:
    return int(of_layer + logits)
  gradients = 4 * count_params(model) / (mesh.shape["fsdp"] * tensor)
  return int(model.n_layers * kept + 2 * of_layer + 3 * logits + layer_weights + gradients)


def roofline(
  program: Program, job: Plan, mesh: Any, chip: Chip, memory: Memory, sent: Sequence[Collective], slices: int
) -> Roofline:
  """The three times of a step; see the fields' units in parallel/chips.py."""
  recomputed = 4 / 3 if job.model.remat == "full" and "optimizer" in program.held else 1.0
  arithmetic = program.flops * recomputed / mesh.size / chip.bf16_flops
  width = jnp.dtype(job.model.compute_dtype).itemsize
  read = program.passes * count_params(job.model) / mesh.shape["tensor"] * width
  states = 2 * (memory.held.get("weights", 0) + memory.held.get("optimizer", 0)) if "optimizer" in program.held else 0
  hbm = (read + states + memory.held.get("cache", 0) + 2 * memory.temporaries) / chip.hbm_bandwidth
  between = lambda one: slices > 1 and "replica" in one.axes
  rate = lambda one: chip.dcn_bandwidth if between(one) else 2 * chip.link_bandwidth  # a ring sends both ways
  network = sum(one.bytes / rate(one) for one in sent)
  slowest = max(arithmetic, hbm, network)
  return Roofline(arithmetic, hbm, network, program.flops / (slowest * mesh.size * chip.bf16_flops))


def advice(memory: Memory, model: TransformerConfig, config: Config, mesh: Any, step: str) -> list[str]:
  """What makes a job smaller that does not fit, the cheapest change first; nothing where it fits."""
  if memory.fits:
    return []
  over = memory.peak - memory.capacity
  lines = []
  states = memory.held.get("weights", 0) + memory.held.get("optimizer", 0)
  spread = mesh.shape["fsdp"] * mesh.shape["tensor"]
  if states > 0.8 * memory.capacity:
    need = -(-states * spread // int(0.6 * memory.capacity))
    axis = "fsdp" if step == "train" else "tensor"
    lines.append(
      f"weights and optimizer alone take {states / GIB:.2f} GiB over fsdp x tensor = {spread}: make that {need} or more"
      f" (config.mesh.{axis})"
    )
  if step == "train":
    if model.remat != "full":
      lines.append(f"config.remat='full' keeps one input a layer (now {model.remat!r})")
    per_device = config.batch_size // config.microbatches // batch_shards(mesh)
    if per_device > 1:
      lines.append(
        f"config.microbatches={config.microbatches * 2} halves the {per_device} rows a device holds at a time"
      )
    if not config.ce_chunk and not config.get("document_weight", 0.0):
      lines.append("config.ce_chunk=8192 holds the logits of that many vocabulary rows, not of all")
    if model.compute_dtype == "float32":
      lines.append("config.compute_dtype='bfloat16' halves activations and gathered weights")
  else:
    if model.param_dtype == "float32":
      lines.append("config.param_dtype='bfloat16' halves the weights")
    lines.append(f"config.eval_batch_size={max(config.eval_batch_size // 2, 1)} halves activations and cache")
  lines.append(f"or a slice with more HBM a device: {over / GIB:.2f} GiB are missing")
  return lines
