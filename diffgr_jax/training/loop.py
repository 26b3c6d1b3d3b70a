"""The training loop: one for every stage."""

import contextlib
import dataclasses
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax.data.pipeline import examples_taken, skip_to
from diffgr_jax.parallel.distributed import compile_together
from diffgr_jax.parallel.mesh import batch_shards, make_mesh
from diffgr_jax.parallel.preemption import Preempted, notice_of_preemption
from diffgr_jax.parallel.rules import shard_batch
from diffgr_jax.training.checkpoint import Checkpoints, Position, abstract_state
from diffgr_jax.training.fields import Config
from diffgr_jax.training.host_log import LOGGER
from diffgr_jax.training.job import Job, RollsOut
from diffgr_jax.training.jobs import check_config, make_job
from diffgr_jax.training.metrics import MetricWriter, ProgressBar, check_finite, recorded_seconds
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.options import check_batch
from diffgr_jax.training.speed import LostTime, StepProfile, Work, figures
from diffgr_jax.training.state import TrainState, create_state, state_shardings, train_step


def train_and_evaluate(
  config: Config, workdir: str | Path, *, profile_steps: tuple[int, int] | None = None
) -> tuple[Job, TrainState]:
  """Trains the config's model in `workdir`, from its last checkpoint where there is one, and watches validation.

  Args:
    config: see configs/docid/base.py and configs/rerank/base.py for every field.
    workdir: takes the data, vocabulary, identifiers, checkpoints, metrics.
    profile_steps: the first and the last step of an xprof trace.

  Returns:
    The job and its final state.

  Raises:
    ValueError: a config, data or a mesh that cannot work; one line that names the field.
    NonFiniteLoss: the loss or its gradient is NaN or infinite; names the step and the last good checkpoint.
    Collapse: rollouts have become worse than the config allows.
    Preempted: the process (any process of the job) was told to end by SIGTERM or Ctrl-C, and has saved.
  """
  workdir = Path(workdir)
  check_config(config)
  mesh = make_mesh(config.mesh.to_dict())
  check_batch(config, batch_shards(mesh), jax.process_count())

  # --- data, vocabulary, identifiers ---
  job = make_job(config, workdir)
  job.check_mesh(mesh)

  # --- model, optimizer, state ---
  optimizer, schedule = optimizer_of(config)
  shardings = state_shardings(job.model, optimizer, mesh, config.rules)
  state = create_state(job.model, optimizer, shardings, config.seed)

  # --- resume, or start ---
  checkpoints = Checkpoints(
    workdir,
    job.model,
    keep=config.keep_checkpoints,
    keep_every=config.keep_every,
    keep_best=config.keep_best,
    best_metric=config.best_metric,
  )
  position = Position.of(0, config.batch_size, config.seed)
  last_saved = checkpoints.latest()
  if last_saved is None:
    state = dataclasses.replace(state, params=job.starting(state.params, shardings.params))
    checkpoints.keep_base(state.params)
  else:
    state, position = checkpoints.restore(last_saved, abstract_state(state, shardings), position)
  if not config.steps:  # nothing is trained: the start itself is what is kept
    if last_saved is None:
      checkpoints.save(0, state, position)
    checkpoints.wait()
    checkpoints.close()
    return job, state
  iterator, shared = job.batches(mesh), job.shared(mesh)
  if last_saved is not None:
    skip_to(iterator, position.examples, config.batch_size)
    LOGGER.info("goes on from checkpoint %d, example %d", last_saved, position.examples)

  # --- train ---
  start = int(state.step)
  writer = MetricWriter(workdir)
  progress = ProgressBar(start=start, total=config.steps, batch_size=config.batch_size)
  profile = StepProfile(profile_steps, workdir)
  seed, pending = jnp.int32(config.seed), None
  fixed: dict[str, Any] = dict(stage=job.stage, optimizer=optimizer, microbatches=config.microbatches)
  began = time.monotonic() - recorded_seconds(workdir, start)  # a resumed run goes on counting
  lost = LostTime(repeated=recorded_seconds(workdir) - recorded_seconds(workdir, start))
  lost.begin_training()
  interval = _Interval(Work(), time.monotonic(), lost.between_steps)

  def report(step: int, device_metrics, work: Work) -> None:
    nonlocal interval
    metrics = {name: float(value) for name, value in jax.device_get(device_metrics).items()}
    check_finite(step, metrics, last_saved, checkpoints.directory)
    progress.update(metrics["loss"])
    interval = dataclasses.replace(interval, work=interval.work + work)
    if step % config.log_every == 0 or step == config.steps:
      metrics |= {"learning_rate": float(np.asarray(schedule(step - 1))), "seconds": time.monotonic() - began}
      seconds = time.monotonic() - interval.began - (lost.between_steps - interval.between_steps)
      metrics |= figures(interval.work, seconds, mesh.size, jax.devices()[0].device_kind)
      writer.write(step, metrics | {"goodput": lost.goodput()})
      interval = _Interval(Work(), time.monotonic(), lost.between_steps)

  try:
    with notice_of_preemption() as notice:
      for step in range(start + 1, config.steps + 1):
        rows, rolled = _next_batch(iterator, lost, pending), {}
        if isinstance(job, RollsOut):
          if pending is not None:
            report(*pending)  # nothing is written by weights that have not been seen to be finite
            pending = None
          rows, rolled = job.roll_out(state.params, step, mesh)
        profile.before(step)
        batch = shard_batch(rows, mesh)
        with jax.set_mesh(mesh), lost.to("compile") if step == start + 1 else contextlib.nullcontext():
          if step == start + 1:
            compile_together(train_step, state, batch, shared, seed, **fixed)
          state, metrics = train_step(state, batch, shared, seed, **fixed)
        work = job.work(rows)
        if pending is not None:
          report(*pending)  # one step late: the device is already at work on this one
        pending = (step, metrics | rolled, work)
        profile.after(step, metrics)
        told_to_leave = notice.reached(step) and step < config.steps
        at_save = step % config.checkpoint_every == 0 or step == config.steps or told_to_leave
        at_eval = config.eval_every and step % config.eval_every == 0 and not told_to_leave
        if at_save or at_eval:
          report(*pending)  # nothing is kept or measured that has not been seen to be finite
          pending = None
        watched = {}
        if at_eval:
          with lost.to("evaluation"):
            watched = job.watch(state.params)
        if watched:
          writer.write(step, watched)
        if at_save:
          if isinstance(job, RollsOut):
            job.settle(mesh)
          examples = examples_taken(iterator, config.batch_size)
          with lost.to("checkpoint"):
            checkpoints.save(step, state, dataclasses.replace(position, examples=examples), watched)
          last_saved = step
          LOGGER.info("saving step %d, example %d", step, examples)
        if told_to_leave:
          checkpoints.wait()
          raise Preempted(f"stopped at step {step}, which is saved: start again with the same --workdir to go on")
    with lost.to("checkpoint"):
      checkpoints.wait()
    LOGGER.info(lost.summary())
    if jax.process_index() == 0 and start < config.steps:
      progress.close()
      print(lost.summary(), flush=True)
  finally:
    profile.close()
    progress.close()
    writer.close()
    checkpoints.wait()
    checkpoints.close()
  return job, state


@dataclasses.dataclass(frozen=True)
class _Interval:
  """What was done since the last line of metrics, and since when."""

  work: Work
  began: float
  between_steps: float  # seconds lost to other things by then


def _next_batch(iterator, lost: LostTime, pending) -> dict[str, np.ndarray]:
  """This process's rows of the next batch; time that a device waited for them is lost."""
  began = time.monotonic()
  rows = next(iterator)
  # A round of rollouts has figures of the host's own beside the devices'.
  leaves = [] if pending is None else jax.tree.leaves(pending[1])
  if all(leaf.is_ready() for leaf in leaves if hasattr(leaf, "is_ready")):  # the devices ran dry
    lost.lost["data"] += time.monotonic() - began
  return rows
