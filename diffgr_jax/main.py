"""Trains and evaluates what a config describes: `python -m diffgr_jax.main --config=FILE.py --workdir=DIR`.

Started again on the same workdir, it goes on from the last checkpoint.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import evaluate_run, print_report
from diffgr_jax.training.loop import train_and_evaluate
from diffgr_jax.viz.worked import show_worked_queries

_CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py", "what to train; FILE.py:key=value,...")
_WORKDIR = flags.DEFINE_string("workdir", "workdir", "where data, checkpoints, metrics and results go")


def main(_) -> None:
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  run, state = train_and_evaluate(config, workdir)
  record = evaluate_run(run, state.params, step=int(state.step), out=workdir / "results.json")
  print_report(record)
  show_worked_queries(run, state.params, png=workdir / "denoising.png")


if __name__ == "__main__":
  cli.run(main)
