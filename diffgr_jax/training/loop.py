"""The training loop: one for every stage."""

import contextlib
import dataclasses
from pathlib import Path
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax.data.pipeline import asked_documents, examples_taken, make_train_iterator, skip_to
from diffgr_jax.data.pseudo_queries import read_generated
from diffgr_jax.data.records import Collection
from diffgr_jax.evaluation.generative import quick_metrics
from diffgr_jax.parallel.distributed import compile_together, process_rows
from diffgr_jax.parallel.mesh import batch_shards, make_mesh
from diffgr_jax.parallel.preemption import Preempted, notice_of_preemption
from diffgr_jax.parallel.rules import replicated, shard_batch
from diffgr_jax.training.checkpoint import Checkpoints, Position, abstract_state
from diffgr_jax.training.host_log import LOGGER
from diffgr_jax.training.metrics import MetricWriter, ProgressBar, check_finite, recorded_seconds
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.options import Config, check_batch, check_config, check_mesh
from diffgr_jax.training.run import Run, prepare_run
from diffgr_jax.training.speed import LostTime, StepProfile, Work, figures, work_of_batch
from diffgr_jax.training.start import starting_params
from diffgr_jax.training.state import TrainState, create_state, state_shardings, train_step


def train_and_evaluate(
  config: Config, workdir: str | Path, *, profile_steps: tuple[int, int] | None = None
) -> tuple[Run, TrainState]:
  """Trains the config's model in `workdir`, from its last checkpoint where there is one, and watches validation.

  Args:
    config: see configs/quickstart.py for every field.
    workdir: takes the data, vocabulary, DocIDs, checkpoints, metrics.
    profile_steps: the first and the last step of an xprof trace.

  Returns:
    The run and its final state.

  Raises:
    ValueError: a config, a corpus or a mesh that cannot work; one line that names the field.
    NonFiniteLoss: the loss or its gradient is NaN or infinite; names the step and the last good checkpoint.
    Preempted: the process (any process of the job) was told to end by SIGTERM, and has saved.
  """
  workdir = Path(workdir)
  check_config(config)
  mesh = make_mesh(config.mesh.to_dict())
  check_batch(config, batch_shards(mesh), jax.process_count())

  # --- data, vocabulary, DocIDs ---
  run, collection = prepare_run(config, workdir)
  iterator = make_train_iterator(
    collection,
    run.vocab,
    run.index,
    batch_size=config.batch_size,
    prompt_length=config.prompt_length,
    mixture=_usable_mixture(config.mixture.to_dict(), collection),
    seed=config.seed,
    rows=process_rows(mesh, config.batch_size),
    generated=_generated_queries(config, run),
  )
  # Only the document-level term reads the index in a step.
  index = run.device_index() | {"asked": jnp.asarray(asked_documents(collection))} if config.document_weight else {}
  index = jax.device_put(index, replicated(mesh))
  check_mesh(config, run.model, run.index.canvas_length, mesh)

  # --- model, optimizer, state ---
  optimizer, schedule = optimizer_of(config)
  shardings = state_shardings(run.model, optimizer, mesh, config.rules)
  state = create_state(run.model, optimizer, shardings, config.seed)

  # --- resume, or start ---
  checkpoints = Checkpoints(
    workdir,
    keep=config.keep_checkpoints,
    keep_every=config.keep_every,
    keep_best=config.keep_best,
    best_metric=config.best_metric,
  )
  position = Position.of(0, config.batch_size, config.seed)
  last_saved = checkpoints.latest()
  if last_saved is None:
    params = starting_params(state.params, config, run.model, run.vocab, run.docid_tokens, collection, shardings.params)
    state = dataclasses.replace(state, params=params)
  else:
    state, position = checkpoints.restore(last_saved, abstract_state(state, shardings), position)
    skip_to(iterator, position.examples, config.batch_size)
    LOGGER.info("goes on from checkpoint %d, example %d", last_saved, position.examples)

  # --- train ---
  start = int(state.step)
  writer = MetricWriter(workdir)
  progress = ProgressBar(start=start, total=config.steps, batch_size=config.batch_size)
  profile = StepProfile(profile_steps, workdir)
  seed, pending = jnp.int32(config.seed), None
  fixed: dict[str, Any] = dict(stage=run.stage, optimizer=optimizer, microbatches=config.microbatches)
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
        rows = _next_batch(iterator, lost, pending)
        profile.before(step)
        batch = shard_batch(rows, mesh)
        with jax.set_mesh(mesh), lost.to("compile") if step == start + 1 else contextlib.nullcontext():
          if step == start + 1:
            compile_together(train_step, state, batch, index, seed, **fixed)
          state, metrics = train_step(state, batch, index, seed, **fixed)
        work = work_of_batch(
          rows["prompt"],
          canvas_length=run.index.canvas_length,
          pad_id=run.vocab.pad_id,
          batch_size=config.batch_size,
          model=run.model,
          pattern=run.pattern,
        )
        if pending is not None:
          report(*pending)  # one step late: the device is already at work on this one
        pending = (step, metrics, work)
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
            watched = quick_metrics(run, state.params, collection)
        if watched:
          writer.write(step, watched)
        if at_save:
          examples = examples_taken(iterator, config.batch_size)
          with lost.to("checkpoint"):
            checkpoints.save(step, state, dataclasses.replace(position, examples=examples), watched)
          last_saved = step
          LOGGER.info("saving step %d, example %d", step, examples)
        if told_to_leave:
          checkpoints.wait()
          raise Preempted(f"preempted at step {step}, which is saved: start again with the same --workdir to go on")
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
  return run, state


def _generated_queries(config: Config, run: Run) -> list[list[str]]:
  """What config.pseudo_queries names, by document; nothing where pseudo-queries are sentences and spans."""
  if config.pseudo_queries == "spans":
    return []
  queries, skipped = read_generated(config.pseudo_queries, run.index.doc_ids, config.on_bad_row)
  having = sum(map(bool, queries))
  left_out = "".join(f", {count} skipped ({kind})" for kind, count in sorted(skipped.items()))
  print(f"{config.pseudo_queries}: queries for {having} of {len(queries)} documents{left_out}", flush=True)
  return queries


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
  if pending is None or all(leaf.is_ready() for leaf in jax.tree.leaves(pending[1])):  # the devices ran dry
    lost.lost["data"] += time.monotonic() - began
  return rows


def _usable_mixture(mixture: dict[str, float], collection: Collection) -> dict[str, float]:
  """Leaves training queries out of the mixture where the data has none, and says so."""
  if mixture.get("queries") and not collection.queries.get("train"):
    print("the data has no training queries: their share of config.mixture goes to the other sources", flush=True)
    return mixture | {"queries": 0.0}
  return mixture
