"""DiffuGR's objective, the masked-diffusion bound alone: `--config=configs/docid/bound.py:path=DIR[,index=FILE.npz]`.

From MiniLM. With an index on its learned DocIDs (residual k-means of MiniLM vectors), else on titles; no document-level
softmax, no row that is masked whole more often than the bound has it. What an answer is decoded in: one pass, T steps
that commit tokens, and ours over documents, all of one checkpoint. On codes start_share, on titles topk_root was chosen
on gqwiki's validation questions, the rate on codes by the training loss (docs/docid.md, docs/experiments.md).
Arguments: path, index, steps, seed, pretrained.
"""

import ml_collections

from configs.docid import base, codes, minilm


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = base.parse_arguments(arg, ("path", "index", "steps", "seed", "pretrained"))
  learned = "index" in given
  given = {"steps": "1000" if learned else "500"} | given
  make = codes.get_config if learned else minilm.get_config
  config = make(",".join(f"{key}={value}" for key, value in given.items())).unlock()
  config.document_weight = 0.0
  config.all_masked_fraction = 0.0
  config.decodings = ("one_pass", "topk", "constrained", "free")
  config.eval_every = 0
  config.topk_policy = "sequential"
  if learned:
    config.batch_size = 64
    config.learning_rate = 3e-4
    config.first_pass = "canvas"
    # Every level has a softmax of its own, which a scale of 20 leaves nearly flat; rows learn what the other codes say.
    config.code_scale = 40.0
    config.row_rate = 1.0
  else:
    config.batch_size = 128
    config.topk_weigh = ("documents", "tokens")  # ranked by tokens and one pass, four steps beat one pass
    config.topk_root = (0.0, 0.4)
  return config.lock()
