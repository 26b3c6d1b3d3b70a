"""The rival, from MiniLM: DocIDs left to right, beam search over those that exist.

`--config=configs/docid/autoregressive.py:path=DIR[,index=FILE.npz][,steps=N]`; with an index on its learned DocIDs,
else on titles. The same backbone, data and mixture as the diffusion retriever's; the query is read in both directions,
as an encoder-decoder would, and only the DocID is causal. The recipe is what arXiv 2610.08716 found best for this
paradigm (weight decay 0.01, linear decay, label smoothing 0.1); the rates on codes, what the code head starts with and
how beams are scored were chosen on gqwiki's validation questions (docs/experiments.md, docs/docid_study.md).
"""

import ml_collections

from configs.docid import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.pretrained_config(arg, steps=800, own=("index",))
  index = given.get("index", "")
  config.paradigm = "autoregressive"
  config.process = "clean"
  config.docid = "codes" if index else "title"
  config.docid_index = index
  config.all_masked_fraction = 0.0
  config.document_weight = 0.0
  config.prior_weight = 0.0
  config.prompt_length = 24
  # On codes the head starts as retrieval by quantised vectors. Its centroids stay near them; its rows learn, at the
  # whole rate, what the codes before say. Each level has a softmax of its own, which a scale of 20 leaves nearly flat.
  config.code_head = bool(index)
  config.code_scale = 40.0
  config.head_rate = 0.01
  config.start_share = 0.45 if index else 0.0
  config.mixture = ml_collections.ConfigDict({"indexing": 0.2, "queries": 0.4, "pseudo": 0.4})
  config.learning_rate = 1e-3 if index else 3e-4
  config.lr_decay = "linear"
  config.warmup_steps = min(50, config.steps // 10)
  config.weight_decay = 0.01
  config.label_smoothing = 0.1
  config.batch_size = 32
  config.beam_widths = (0, 1, 10, 100)
  # Two or three codes tell documents apart, and renormalised the others would say nothing (docs/docid_study.md).
  config.beam_scores = ("plain",) if index else ("renormalised",)
  config.eval_every = 0
  config.checkpoint_every = 200
  config.log_every = 20
  config.show_queries = 0
  return config.lock()
