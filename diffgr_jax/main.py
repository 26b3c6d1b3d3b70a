"""Trains and evaluates what a config describes: `python -m diffgr_jax.main --config=FILE.py --workdir=DIR`.

Started again on the same workdir, it goes on from the last checkpoint.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import evaluate_run, print_report
from diffgr_jax.training.loop import train_and_evaluate
from diffgr_jax.training.run import Run, load_data
from diffgr_jax.viz.worked import show_worked_queries

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to train; FILE.py:key=value,...")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", "workdir", "where data, checkpoints, metrics and results go")


def main(_) -> None:
  config, workdir = _CONFIG.value, Path(_WORKDIR.value)
  run, state = train_and_evaluate(config, workdir)
  out = workdir / "results.json"
  print_report(evaluate_run(run, state.params, step=int(state.step), out=out), out)
  if drawn := show_worked_queries(run, state.params, _worked_queries(run), workdir / "denoising.png"):
    print(f"\npicture: {drawn}")


def _worked_queries(run: Run) -> list[tuple[str, tuple[str, ...]]]:
  """The first queries of the last split that is evaluated, with their documents."""
  splits = load_data(run.config, run.workdir).queries
  names = list(run.config.eval_splits) or [name for name in splits if name != "train"]
  queries = splits[names[-1]][: run.config.show_queries] if names else []
  return [(query.query, query.doc_ids) for query in queries]


if __name__ == "__main__":
  cli.run(main)
