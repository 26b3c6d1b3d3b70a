"""How much of a step's gradient is signal, where a model learns from what it writes: runs of the stages opd and rl.

    python -m benchmarks.gradient_noise --runs=W/teacher,W/opd,W/rl

Takes runs as they began: --rounds rounds are written with the weights of each one's start, all of other lists, and each
gives a gradient (diffgr_jax/training/gradient_noise.py says what is measured). `--set=FIELD=VALUE` changes a field of
every run.
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.training.fields import set_fields
from diffgr_jax.training.gradient_noise import FIELDS, gradients, signal_share
from diffgr_jax.training.jobs import check_config, make_job
from diffgr_jax.training.rerank_rollouts import RolloutJob
from diffgr_jax.training.rerank_run import open_rerank

_RUNS = flags.DEFINE_list("runs", None, "workdirs of runs of stage opd or rl, one of each name", required=True)
_SET = flags.DEFINE_multi_string("set", [], "field=value: a field of every run's config")
_ROUNDS = flags.DEFINE_integer("rounds", 16, "gradients of each run", lower_bound=3)
_WORKDIR = flags.DEFINE_string("workdir", "workdir/gradient_noise", "takes what is built beside the runs")
_OUT = flags.DEFINE_string("out", None, "the file of results to write")


def main(_) -> None:
  configs = {Path(run).name: open_rerank(Path(run)).config for run in _RUNS.value}
  if len(configs) < len(_RUNS.value):
    raise ValueError(f"--runs={','.join(_RUNS.value)}: two have the same name, by which rows are told apart")
  metrics = {}
  for name, config in configs.items():
    set_fields(config, _SET.value, FIELDS)
    check_config(config)
    mesh = make_mesh(config.mesh.to_dict())
    job = make_job(config, Path(_WORKDIR.value) / name)
    if not isinstance(job, RolloutJob):
      raise ValueError(f"--runs: {name} is of stage {config.stage}, not of opd or rl")
    metrics[name] = signal_share(gradients(job, mesh, _ROUNDS.value), config.batch_size)
  print(format_table([{"run": name} | found for name, found in metrics.items()]))
  if _OUT.value:
    record = results_record(
      command=typed_command(),
      status="measured",
      seeds={name: config.seed for name, config in configs.items()},
      metrics={"gradients": metrics},
      settings={name: {one: config[one] for one in ("stage", *FIELDS)} for name, config in configs.items()},
    )
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  cli.run(main)
