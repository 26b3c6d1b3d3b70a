"""Trains and evaluates what a config describes: `python -m diffgr_jax.main --config=FILE.py --workdir=DIR`.

python -m diffgr_jax.main --config=configs/docid/base.py --workdir=workdir/quickstart
python -m diffgr_jax.main --config=configs/docid/folder.py:path=DIR,steps=800 --workdir=workdir/mine
python -m diffgr_jax.main --config=configs/docid/minilm.py:path=DIR --workdir=workdir/minilm --config.batch_size=16
python -m diffgr_jax.main --config=configs/rerank/mid_training.py:pool=50,steps=2600 --workdir=W/mid

Started again on the same workdir, it goes on from the last checkpoint. On several hosts the same command is started on
each (launch/): see --pod. Exit codes: 0 done, 1 a mistake or a failure, 75 told to leave by SIGTERM or Ctrl-C,
and saved.
"""

import os
from pathlib import Path
import sys

from absl import flags
import jax
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import evaluate_run, print_report
from diffgr_jax.evaluation.rerank_report import evaluate_rerank, print_rerank
from diffgr_jax.parallel.distributed import initialize, no_waiting_after_failure, pod_settings
from diffgr_jax.parallel.preemption import EXIT_CODE, Preempted
from diffgr_jax.training.averaging import average_with_start
from diffgr_jax.training.docid_job import DocIdJob
from diffgr_jax.training.host_log import host_log
from diffgr_jax.training.job import Job
from diffgr_jax.training.loop import train_and_evaluate
from diffgr_jax.training.rerank_job import RerankJob
from diffgr_jax.training.run import Run, load_data
from diffgr_jax.training.speed import parse_steps
from diffgr_jax.training.state import TrainState
from diffgr_jax.viz.worked import show_worked_queries

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to train; FILE.py:key=value,...")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", "workdir", "where data, checkpoints, metrics and results go")
_PROFILE = flags.DEFINE_string("profile_steps", "", "FIRST:LAST, steps of an xprof trace in WORKDIR/profile")
_POD = flags.DEFINE_bool("pod", False, "one of several hosts, which JAX finds (Cloud TPU, GKE, Slurm)")
_COORDINATOR = flags.DEFINE_string("coordinator_address", "", "HOST:PORT of process 0, where JAX cannot find it")
_PROCESSES = flags.DEFINE_string("num_processes", "", "of the job; with --pod: as many as there must be")
_PROCESS = flags.DEFINE_string("process_id", "", "which of them this is, from 0")


def main(_) -> int | None:
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  settings = pod_settings(
    pod=_POD.value,
    coordinator_address=_COORDINATOR.value,
    num_processes=_PROCESSES.value,
    process_id=_PROCESS.value,
    environ=os.environ,
  )
  profile_steps = parse_steps(_PROFILE.value)
  initialize(settings)
  try:
    with no_waiting_after_failure(), host_log(workdir):
      job, state = train_and_evaluate(config, workdir, profile_steps=profile_steps)
  except Preempted as told:
    print(told, file=sys.stderr)
    return EXIT_CODE
  if jax.process_count() > 1:  # evaluation is a program of one process
    if jax.process_index() == 0:
      print(f"trained to step {int(state.step)}; evaluate with python -m diffgr_jax.evaluate --workdir={workdir}")
    return None
  _evaluate(job, state, workdir / "results.json")
  return None


def _evaluate(job: Job, state: TrainState, out: Path) -> None:
  """Measures the trained model, and prints what it reached."""
  if isinstance(job, RerankJob):
    print_rerank(evaluate_rerank(job.run, state.params, step=int(state.step), out=out), out)
    return
  assert isinstance(job, DocIdJob)
  run, params = job.run, average_with_start(job.run, state.params)
  print_report(evaluate_run(run, params, step=int(state.step), out=out), out)
  if drawn := show_worked_queries(run, params, _worked_queries(run), out.parent / "denoising.png"):
    print(f"\npicture: {drawn}")


def _worked_queries(run: Run) -> list[tuple[str, tuple[str, ...]]]:
  """The first queries of the last split that is evaluated, with their documents."""
  splits = load_data(run.config, run.workdir).queries
  names = list(run.config.eval_splits) or [name for name in splits if name != "train"]
  queries = splits[names[-1]][: run.config.show_queries] if names else []
  return [(query.query, query.doc_ids) for query in queries]


if __name__ == "__main__":
  cli.run(main)
