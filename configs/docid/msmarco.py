"""MS MARCO, 300k documents: `--config=configs/docid/msmarco.py:path=DIR[,part=passages][,limit=N][,steps=N][,size=S]`.

DIR holds the files as their publisher offers them (docs/data.md); `path=public` downloads those of the documents.
Documents are chosen by judgements first, then in the order of the collection; limit=0 takes them all.
"""

import ml_collections

from configs.docid import base

ARGUMENTS = ("path", "part", "limit", "steps", "size", "seed")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = base.parse_arguments(arg, ARGUMENTS)
  if "path" not in given:
    raise ValueError("--config=configs/docid/msmarco.py:path=DIR: name the folder of the files, or path=public")
  part, limit = given.pop("part", "documents"), given.pop("limit", "300000")
  if not limit.isdecimal():
    raise ValueError(f"--config=...:limit={limit}: limit is a number of documents; 0: all")
  given = {"size": "base", "steps": "100000"} | given
  config = base.get_config(",".join(f"{key}={value}" for key, value in given.items()) + ",dataset=msmarco")
  with config.unlocked():
    config.dataset_part = part  # documents | passages
    config.dataset_limit = int(limit)
    config.on_bad_row = "skip"  # one row of 20 GB does not end the build; the build prints what it left out
    # Titles of web pages are long and often alike, and passages have none: their first words stand in.
    config.canvas_length = 16
    config.vocab_size = 32_000
    config.split_case = False
    config.batch_size = 256
    config.learning_rate = 1e-3
    config.mixture = ml_collections.ConfigDict({"indexing": 0.2, "queries": 0.5, "pseudo": 0.3})
    config.eval_every = 5000
    config.checkpoint_every = 5000
    config.eval_splits = ()  # every split but train
  return config
