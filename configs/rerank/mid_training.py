"""Mid-training before SFT: items by their IDs. `--config=configs/rerank/mid_training.py:shop=amazon_beauty,path=DIR`.

Next item from a history, captions (title and categories of an ID), and general text where `text=FILE+FILE` gives it.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("text",))
  config.stage = "mid_training"
  if "text" in given:
    config.text_files = tuple(given["text"].split("+"))
    config.mixture = ml_collections.ConfigDict({"next_item": 0.5, "caption": 0.3, "text": 0.2})
  return config.lock()
