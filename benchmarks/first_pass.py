"""What one pass that reads the prompt alone saves: a run's train step and one pass, with the canvas read and without.

    python -m benchmarks.first_pass --workdir=workdir/gqwiki_words

Both are timed in turn in one process, fresh weights, on batches of the run's own data; the first of each is compilation
and is left out. Prints one line of JSON: median seconds, and how many times faster.
"""

import dataclasses
import json
from pathlib import Path
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp

from diffgr_jax import cli
from diffgr_jax.decoding.scoring import one_pass_retrieve
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.training.docid_job import DocIdJob
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.run import load_data, open_run
from diffgr_jax.training.state import create_state, state_shardings, train_step

_WORKDIR = flags.DEFINE_string("workdir", None, "a run on learned DocIDs with a code head")
_TIMES = flags.DEFINE_integer("times", 3, "that each is timed", lower_bound=1)
flags.mark_flag_as_required("workdir")

_WAYS = ("canvas", "prompt")


def main(_) -> None:
  run, mesh = open_run(Path(_WORKDIR.value or ".")), make_mesh({"data": 1})
  if not run.config.code_head:
    raise ValueError(f"--workdir={_WORKDIR.value}: only a code head can leave the canvas unread (config.code_head)")
  job = DocIdJob(run, load_data(run.config, run.workdir))
  batches, shared, index = job.batches(mesh), job.shared(mesh), run.device_index()
  optimizer, _ = optimizer_of(run.config)
  runs = {way: dataclasses.replace(run, model=dataclasses.replace(run.model, first_pass=way)) for way in _WAYS}
  states = {
    way: create_state(own.model, optimizer, state_shardings(own.model, optimizer, mesh, run.config.rules), 0)
    for way, own in runs.items()
  }
  steps, passes = ({way: [] for way in _WAYS} for _ in range(2))
  for _ in range(1 + _TIMES.value):
    batch = {name: jnp.asarray(values) for name, values in next(batches).items()}
    for way, own in runs.items():
      began = time.perf_counter()
      states[way], metrics = train_step(states[way], batch, shared, jnp.int32(0), stage=own.stage, optimizer=optimizer)
      jax.block_until_ready(metrics)
      steps[way].append(time.perf_counter() - began)
      began = time.perf_counter()
      how = dict(denoise=own.denoiser, mask_id=run.mask_id, k=min(100, len(index["codes"])))
      asked = (states[way].params, batch["prompt"], index["codes"], index["scored"], run.banned)
      jax.block_until_ready(one_pass_retrieve(*asked, **how))
      passes[way].append(time.perf_counter() - began)
  figures = {"rows": run.config.batch_size, "prompt": run.config.prompt_length, "canvas": run.index.canvas_length}
  for name, seconds in (("step", steps), ("one pass", passes)):
    median = {way: statistics.median(own[1:]) for way, own in seconds.items()}
    figures[name] = {way: round(value, 3) for way, value in median.items()}
    figures[f"{name}, times faster"] = round(median["canvas"] / median["prompt"], 2)
  print(json.dumps(figures))


if __name__ == "__main__":
  cli.run(main)
