"""The train step of a config alone, on made-up batches: milliseconds, tokens/s and MFU on the devices at hand.

    python -m benchmarks.train_step --config=configs/docid/base.py [--config.mesh.fsdp=2] [--steps=20] [--documents=N]

No data is read: rows of the vocabulary and the canvas come from the config (as in a preflight), and every sequence is
full. Prints one line of JSON. MFU is by the rule of models/flops.py, against what a square matrix product of 2048
reaches here in the compute dtype, times the devices; compile time is apart.
"""

import dataclasses
import json
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.evaluation.machine import arithmetic
from diffgr_jax.models.flops import train_step_flops
from diffgr_jax.models.transformer import count_params
from diffgr_jax.parallel.mesh import batch_shards, make_mesh
from diffgr_jax.parallel.rules import replicated, shard_batch
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.options import check_batch, check_mesh
from diffgr_jax.training.preflight import plan, planned_stage
from diffgr_jax.training.state import create_state, state_shardings, train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "whose step is measured")
flags.mark_flag_as_required("config")
_STEPS = flags.DEFINE_integer("steps", 20, "steps that are timed", lower_bound=1)
_DOCUMENTS = flags.DEFINE_integer("documents", 1000, "documents of the DocID index", lower_bound=1)


def main(_) -> None:
  config = _CONFIG.value
  mesh = make_mesh(config.mesh.to_dict())
  job = plan(config, _DOCUMENTS.value, "train")
  # A plan has the attention of a TPU; what runs here is chosen by where it runs.
  job = dataclasses.replace(job, model=dataclasses.replace(job.model, attention=config.attention))
  model, length = job.model, job.canvas_length
  check_batch(config, batch_shards(mesh), jax.process_count())
  check_mesh(config, model, length, mesh)
  stage, (optimizer, _) = planned_stage(config, job), optimizer_of(config)
  state = create_state(model, optimizer, state_shardings(model, optimizer, mesh, config.rules), config.seed)

  rng = np.random.default_rng(config.seed)
  tokens = lambda *shape: rng.integers(5, model.vocab_size, shape).astype(np.int32)
  codes, rows = tokens(job.documents, length), config.batch_size
  which = rng.integers(0, job.documents, rows).astype(np.int32)
  batch = {
    "prompt": tokens(rows, config.prompt_length),
    "docid": codes[which],
    "doc_index": which,
    "asked": np.ones(rows, bool),
  }
  batch = shard_batch(batch, mesh)
  index = {
    "codes": codes,
    "scored": np.ones(codes.shape, bool),
    "asked": np.ones(len(codes), bool),
    "share": np.full(len(codes), 1 / len(codes), np.float32),
    "log_frequency": np.zeros((length, model.vocab_size), np.float32),
  }
  index = jax.device_put(index, replicated(mesh)) if config.document_weight else {}
  seed, how = jnp.int32(config.seed), dict(stage=stage, optimizer=optimizer, microbatches=config.microbatches)
  seconds = []
  with jax.set_mesh(mesh):
    for _ in range(_STEPS.value + 2):  # the first compiles, the second warms up
      began = time.perf_counter()
      state, metrics = train_step(state, batch, index, seed, **how)
      jax.block_until_ready(metrics)
      seconds.append(time.perf_counter() - began)
  step = statistics.median(seconds[2:])
  whole = config.prompt_length + length
  operations = train_step_flops(model, rows, whole, "bidirectional", logits_positions=length)
  reachable = arithmetic(model.compute_dtype) * mesh.size
  record = {
    "status": "measured",
    "device": jax.devices()[0].device_kind,
    "devices": mesh.size,
    "parameters": count_params(model),
    "batch": rows,
    "length": whole,
    "step_ms": round(1e3 * step, 2),
    "tokens_per_s": round(rows * whole / step),
    "flops": operations,
    "reachable_flops_per_s": round(reachable),
    "mfu": round(operations / step / reachable, 4),
    "compile_s": round(seconds[0], 1),
  }
  print(json.dumps(record))


if __name__ == "__main__":
  cli.run(main)
