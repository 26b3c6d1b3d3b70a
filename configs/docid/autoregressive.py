"""The rival, from MiniLM: DocIDs left to right, beam search over those that exist.

`--config=configs/docid/autoregressive.py:path=DIR[,index=FILE.npz][,steps=N]`; with an index on its learned DocIDs,
else on titles. The same backbone, data and mixture as the diffusion retriever's; the query is read in both directions,
as an encoder-decoder would, and only the DocID is causal. The recipe is what arXiv 2610.08716 found best for this
paradigm (weight decay 0.01, linear decay, label smoothing 0.1), but the rate, which a pretrained encoder needs lower.
"""

import ml_collections

from configs import quickstart

ARGUMENTS = ("index", "path", "steps", "seed", "pretrained")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = quickstart.parse_arguments(arg, ARGUMENTS)
  pretrained, index = given.pop("pretrained", "minilm"), given.pop("index", "")
  given.setdefault("steps", "800")
  if "path" in given:
    given["dataset"] = "folder"
  config = quickstart.get_config(",".join(f"{key}={value}" for key, value in given.items()))
  with config.unlocked():
    config.paradigm = "autoregressive"
    config.process = "clean"
    config.docid = "codes" if index else "title"
    config.docid_index = index
    config.start = "pretrained"
    config.pretrained = pretrained  # minilm | a Hugging Face folder with config.json, tokenizer.json and safetensors
    config.slot_embeddings = False
    config.all_masked_fraction = 0.0
    config.document_weight = 0.0
    config.prior_weight = 0.0
    config.prompt_length = 24
    config.mixture = ml_collections.ConfigDict({"indexing": 0.2, "queries": 0.4, "pseudo": 0.4})
    config.learning_rate = 3e-4
    config.lr_decay = "linear"
    config.warmup_steps = min(50, int(given["steps"]) // 10)
    config.weight_decay = 0.01
    config.label_smoothing = 0.1
    config.batch_size = 32
    config.beam_widths = (1, 10, 100)
    config.eval_every = 0
    config.checkpoint_every = 200
    config.log_every = 20
    config.eval_splits = ()  # every split but train
    config.show_queries = 0
  return config.lock()
