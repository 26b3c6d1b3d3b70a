"""NQ320K: `--config=configs/docid/nq320k.py:path=DIR[,steps=N][,size=S]`, or `path=public` to download.

DIR holds simplified-nq-train.jsonl.gz and nq-dev-all.jsonl.gz as their publisher offers them (docs/data.md). The first
build reads them once, in parts; `--config.data_dir=DIR` keeps it for other runs.
"""

import ml_collections

from configs.docid import base

ARGUMENTS = ("path", "steps", "size", "seed")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = base.parse_arguments(arg, ARGUMENTS)
  if "path" not in given:
    raise ValueError("--config=configs/docid/nq320k.py:path=DIR: name the folder of the files, or path=public")
  given = {"size": "base", "steps": "100000"} | given
  config = base.get_config(",".join(f"{key}={value}" for key, value in given.items()) + ",dataset=nq320k")
  with config.unlocked():
    config.on_bad_row = "skip"  # one row of 40 GB does not end the build; the build prints what it left out
    config.vocab_size = 32_000
    config.split_case = False
    config.canvas_length = 16
    config.batch_size = 256
    config.learning_rate = 1e-3
    config.mixture = ml_collections.ConfigDict({"indexing": 0.2, "queries": 0.5, "pseudo": 0.3})
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.eval_splits = ()  # every split but train
  return config
