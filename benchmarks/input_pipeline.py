"""The input pipeline of a config alone: batches/s and tokens/s, without a model.

    python -m benchmarks.input_pipeline --config=configs/docid/base.py [--workdir=workdir/input] [--batches=200]

Builds data, vocabulary and DocIDs in the workdir as training would, then draws batches as fast as they come. Prints
one line of JSON: the median second of five rounds, to be compared with the steps/s of benchmarks.train_step.
"""

import json
from pathlib import Path
import statistics
import time

from absl import flags
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.data.pipeline import make_train_iterator
from diffgr_jax.training.options import check_config
from diffgr_jax.training.run import prepare_run

_CONFIG = config_flags.DEFINE_config_file("config", None, "whose pipeline is measured")
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/input", "takes data, vocabulary and DocIDs")
_BATCHES = flags.DEFINE_integer("batches", 200, "batches of a round", lower_bound=1)
_ROUNDS = 5


def main(_) -> None:
  config = _CONFIG.value
  check_config(config)
  run, collection = prepare_run(config, Path(_WORKDIR.value))
  began = time.perf_counter()
  iterator = make_train_iterator(
    collection,
    run.vocab,
    run.index,
    batch_size=config.batch_size,
    prompt_length=config.prompt_length,
    mixture=config.mixture.to_dict(),
    seed=config.seed,
  )
  next(iterator)
  ready = time.perf_counter() - began
  seconds = []
  for _ in range(_ROUNDS):
    began = time.perf_counter()
    for _ in range(_BATCHES.value):
      next(iterator)
    seconds.append(time.perf_counter() - began)
  rate = _BATCHES.value / statistics.median(seconds)
  length = config.prompt_length + run.index.canvas_length
  record = {
    "status": "measured",
    "batch": config.batch_size,
    "length": length,
    "batches_per_s": round(rate, 2),
    "rows_per_s": round(rate * config.batch_size),
    "tokens_per_s": round(rate * config.batch_size * length),
    "first_batch_s": round(ready, 2),
  }
  print(json.dumps(record))


if __name__ == "__main__":
  cli.run(main)
