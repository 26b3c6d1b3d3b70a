"""`make quickstart`: ask for a Python function in words. MiniLM learns to name Python's docstrings by learned codes.

`--config=configs/quickstart.py[:index=FILE.npz][,steps=N][,seed=N]`; the Makefile builds the index first:

    python -m diffgr_jax.index build --corpus=pydocs --vectors=minilm --title_weight=.3 --method=product --levels=64 \\
      --word_levels=32 --out=workdir/quickstart.npz

The recipe of docid/codes.py, at a size for minutes on two cores. A small model from nothing that spells titles is
docid/base.py (`make from-nothing`).
"""

import ml_collections

from configs.docid import base, codes


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = {"index": "workdir/quickstart.npz", "steps": "240"} | base.parse_arguments(arg, ("index", "steps", "seed"))
  config = codes.get_config(",".join(f"{key}={value}" for key, value in given.items())).unlock()
  config.mixture = ml_collections.ConfigDict({"indexing": 0.35, "queries": 0.15, "pseudo": 0.5})
  config.batch_size = 32
  config.start_share = 0.0
  config.eval_every = 0
  config.eval_splits = ("valid", "test")
  config.decodings = ("one_pass", "constrained")
  config.nelbo_queries = 0
  config.show_queries = 3
  return config.lock()
