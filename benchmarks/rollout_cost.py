"""What a step of RL is made of: writing rollouts, scoring them, learning from them; by each estimator.

    python -m benchmarks.rollout_cost --config=configs/rerank/rl.py:block=8,start=colabs/models/student --workdir=W

A round of `config.batch_size` rollouts is written with the start's weights, --rounds times behind one that compiles;
medians, estimators in turn inside each round. Of an autoregressive start there is one estimator:
the causal pass. `blocks` are noisy blocks a rollout, of which `in use` are those of its own passes: the others pad it
to the longest one's.
"""

from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
import statistics
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import config_flags
import numpy as np
import optax

from diffgr_jax import cli
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import shard_batch
from diffgr_jax.stages import rl
from diffgr_jax.stages.replay import ESTIMATORS
from diffgr_jax.training.jobs import check_config, make_job
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.rerank_rollouts import RolloutJob
from diffgr_jax.training.rollouts import Figures, Rows
from diffgr_jax.training.state import TrainState, create_state, state_shardings, train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/rerank/rl.py:start=WORKDIR,...")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/rollout_cost", "takes what the run builds")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds that are timed", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "the file of results to write")


def main(_) -> None:
  config = _CONFIG.value
  check_config(config)
  mesh = make_mesh(config.mesh.to_dict())
  job = make_job(config, Path(_WORKDIR.value))
  if not isinstance(job, RolloutJob) or not isinstance(job.stage, rl.RlStage):
    raise ValueError(f"--config is of stage {config.stage!r}, not of rl")
  optimizer, _ = optimizer_of(config)
  shardings = state_shardings(job.model, optimizer, mesh, config.rules)
  state = create_state(job.model, optimizer, shardings, config.seed)
  state = dataclasses.replace(state, params=job.starting(state.params, shardings.params))

  with jax.set_mesh(mesh):
    rows, figures, _ = _round(job, optimizer, state, mesh)
    times = [_round(job, optimizer, state, mesh)[2] for _ in range(_ROUNDS.value)]

  medians = {what: statistics.median(one[what] for one in times) for what in times[0]}
  metrics = {name: _costs(name, stage, rows, medians) for name, stage in _stages(job).items()}
  written = {"write s": medians["write"], **{name: figures[name] for name in figures if name.startswith("rollouts ")}}
  print(json.dumps(written))
  print(format_table([{"estimator": name} | found for name, found in metrics.items()]))
  if _OUT.value:
    record = results_record(
      command=typed_command(),
      status="measured",
      seeds={"data": config.seed},
      metrics={"rollouts": {"written": written} | metrics},
      settings={"rounds": _ROUNDS.value, "batch_size": config.batch_size, "tokens a row": rows["tokens"].shape[1]},
    )
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _round(
  job: RolloutJob, optimizer: optax.GradientTransformation, state: TrainState, mesh: Mesh
) -> tuple[Rows, Figures, dict[str, float]]:
  """Rollouts, what to know of them, and the seconds of everything: always the same ones, so shapes are the same."""
  job.rounds.clear()  # a round that is there would not be written
  (rows, figures), seconds = _timed(job.roll_out, state.params, 1, mesh)
  times, batch = {"write": seconds}, shard_batch(rows, mesh)
  for name, stage in _stages(job).items():
    _, times[f"score, {name}"] = _timed(rl.score, state.params, batch, policy=stage.policy, banned=stage.banned)
    how = dict(stage=stage, optimizer=optimizer, microbatches=job.config.microbatches)
    copy = jax.tree.map(jnp.copy, state)  # its memory is the step's
    _, times[f"update, {name}"] = _timed(train_step, copy, batch, {}, jnp.int32(job.config.seed), **how)
  return rows, figures, times


def _stages(job: RolloutJob) -> dict[str, rl.RlStage]:
  """The job's stage with each estimator that its model has."""
  stage = job.stage
  assert isinstance(stage, rl.RlStage)
  if not stage.policy.in_blocks:
    return {"causal": stage}
  of = lambda estimator: dataclasses.replace(stage.policy, estimator=estimator)
  return {name: dataclasses.replace(stage, policy=of(name)) for name in ESTIMATORS}


def _costs(name: str, stage: rl.RlStage, rows: Rows, medians: dict[str, float]) -> dict[str, float]:
  found = {what: medians[f"{what}, {name}"] for what in ("score", "update")}
  costs = {f"{what} s": took for what, took in found.items()}
  costs |= {f"{what} / write": took / medians["write"] for what, took in found.items()}
  if stage.policy.in_blocks:
    there = np.asarray(stage.policy.copies({key: jnp.asarray(x) for key, x in rows.items()}).block) >= 0
    costs |= {"blocks": float(there.shape[1]), "in use": float(there.mean())}
  return costs


def _timed(work: Callable, *arguments: Any, **how: Any) -> tuple[Any, float]:
  began = time.monotonic()
  done = jax.block_until_ready(work(*arguments, **how))
  return done, time.monotonic() - began


if __name__ == "__main__":
  cli.run(main)
