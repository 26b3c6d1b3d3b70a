"""Would this job fit this slice? `python -m diffgr_jax.preflight --config=FILE.py --topology=v5e:16x16`

Compiles the step of a config for a TPU slice on a machine without one. Prints, for each device: HBM by what takes it
(compiled), what is sent over which mesh axis (compiled), operations (counted) and a roofline (estimated). Exits with 1
where the job does not fit.
"""

import dataclasses
import json
import time
from typing import Any

from absl import flags
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.parallel import aot
from diffgr_jax.parallel.chips import GIB, chip_of

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to compile; FILE.py:key=value,...")
_TOPOLOGY = flags.DEFINE_string("topology", "", "a slice: v5e:16x16, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1, ...")
flags.mark_flag_as_required("config")
_SLICES = flags.DEFINE_integer("slices", 1, "equal slices, joined by the mesh axis replica", lower_bound=1)
_STEP = flags.DEFINE_enum("step", "train", ("train", "one_pass", "canvas", "cached"), "which step is compiled")
_DOCUMENTS = flags.DEFINE_integer("documents", 1_000_000, "documents of the DocID index", lower_bound=1)
_JSON = flags.DEFINE_bool("json", False, "print the record as JSON, and nothing else")


def main(_) -> int:
  chip = chip_of(_TOPOLOGY.value)
  aot.prepare_environment()
  with cli.waiting(f"compiling the step for {_TOPOLOGY.value}"):
    record = preflight(_CONFIG.value, chip)
  print(json.dumps(record, indent=1) if _JSON.value else _text(record))
  return 0 if record["fits"] else 1


def preflight(config: Any, chip: Any) -> dict[str, Any]:
  """Compiles the step and returns the record that is printed; all bytes are of one device."""
  # JAX reads the environment that was just set.
  from diffgr_jax.models.transformer import count_params
  from diffgr_jax.parallel.collectives import collectives
  from diffgr_jax.parallel.mesh import make_mesh
  from diffgr_jax.training import account
  from diffgr_jax.training.jobs import check_config
  from diffgr_jax.training.preflight import make_program, plan
  from diffgr_jax.training.rerank_preflight import make_rerank_program, plan_rerank

  step, reranks = _STEP.value, config.task == "rerank"
  check_config(config)
  job = plan_rerank(config, step) if reranks else plan(config, _DOCUMENTS.value, step)
  mesh = make_mesh(config.mesh.to_dict(), aot.slice_devices(_TOPOLOGY.value, _SLICES.value))
  program = (make_rerank_program if reranks else make_program)(step, config, job, mesh)
  began, sent = time.perf_counter(), None
  try:
    compiled = aot.compile_for(program.lower)
    memory, sent = account.memory_of(program, compiled, chip), collectives(compiled.text, mesh.shape)
  except aot.DoesNotFit as refused:
    memory = account.memory_without_analysis(program, job, config, mesh, refused, step)
  seconds = time.perf_counter() - began
  record = {
    "topology": _TOPOLOGY.value,
    "slices": _SLICES.value,
    "devices": mesh.size,
    "mesh": dict(mesh.shape),
    "step": step,
    "parameters": count_params(job.model),
    "batch": config.batch_size if step == "train" else config.eval_batch_size,
    "fits": memory.fits,
    "memory": dataclasses.asdict(memory),
    "collectives": None if sent is None else [dataclasses.asdict(one) for one in sent],
    "flops": program.flops,
    "compile_seconds": round(seconds, 1),
    "advice": account.advice(memory, job.model, config, mesh, step),
  }
  if sent is not None:
    found = account.roofline(program, job, mesh, chip, memory, sent, _SLICES.value)
    record["estimated"] = dataclasses.asdict(found) | {"step": found.step, "bound": found.bound}
  return record


def _text(record: dict[str, Any]) -> str:
  memory = record["memory"]
  mesh = " x ".join(f"{axis}={size}" for axis, size in record["mesh"].items() if size > 1) or "1"
  how = "compiled" if memory["compiled"] else "refused by the compiler; its own total, the rest reckoned"
  where = f"{record['slices']} x {record['topology']}, {record['devices']} devices, mesh {mesh}"
  lines = [
    f"{record['step']} step, {record['parameters'] / 1e9:.2f}B parameters, batch {record['batch']}, on {where}",
    f"HBM of a device, GiB ({how})",
    *(f"  {name:<28}{size / GIB:9.3f}" for name, size in memory["held"].items()),
    f"  {'activations and other':<28}{memory['temporaries'] / GIB:9.3f}",
    f"  {'peak':<28}{memory['peak'] / GIB:9.3f}  of {memory['capacity'] / GIB:.2f}",
  ]
  if record["collectives"] is not None:
    lines.append("Sent by a device in a step (compiled)")
    lines += [
      f"  {one['kind']:<20}{' x '.join(one['axes']):<20}{one['count']:>6} times{one['bytes'] / GIB:10.3f} GiB"
      for one in record["collectives"]
    ] or ["  nothing"]
  lines.append(
    f"Operations of a step (counted)  {record['flops']:.3e}, {record['flops'] / record['devices']:.3e} a device"
  )
  if "estimated" in record:
    times = record["estimated"]
    lines.append(
      f"Step time (estimated)  {times['step'] * 1e3:.1f} ms, bound by {times['bound']}: arithmetic"
      f" {times['arithmetic'] * 1e3:.1f}, HBM {times['hbm'] * 1e3:.1f}, network {times['network'] * 1e3:.1f};"
      f" MFU at most {times['mfu']:.1%}"
    )
  if record["fits"]:
    lines.append(f"fits, with {(memory['capacity'] - memory['peak']) / GIB:.2f} GiB to spare")
  else:
    lines.append(f"DOES NOT FIT, by {(memory['peak'] - memory['capacity']) / GIB:.2f} GiB. What helps:")
    lines += [f"  {line}" for line in record["advice"]]
  lines.append(f"compiled in {record['compile_seconds']:.0f} s")
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main)
