"""Any corpus in the folder format (docs/data.md): `--config=configs/docid/folder.py:path=DIR[,steps=N][,size=S]`.

The recipe of base.py on prose: titles are no identifiers of code, and the vocabulary is larger.
"""

import ml_collections

from configs.docid import base

ARGUMENTS = ("path", "steps", "size", "seed")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = base.parse_arguments(arg, ARGUMENTS)
  if "path" not in given:
    raise ValueError("--config=configs/docid/folder.py:path=DIR: name the folder with corpus.jsonl and the queries")
  given.setdefault("steps", "1600")
  config = base.get_config(",".join(f"{key}={value}" for key, value in given.items()) + ",dataset=folder")
  with config.unlocked():
    config.vocab_size = 8192
    config.split_case = False
    config.eval_splits = ()  # every split but train
  return config
