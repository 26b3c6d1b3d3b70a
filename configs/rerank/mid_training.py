"""Mid-training before SFT: items by their IDs. `--config=configs/rerank/mid_training.py:shop=amazon_beauty,path=DIR`.

Next item from a history, captions (title and categories of an ID), lists to be written down in a given order, and
general text where `text=FILE+FILE` gives it.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("text",))
  config.stage = "mid_training"
  if "text" in given:
    config.text_files = tuple(given["text"].split("+"))
    config.mixture = ml_collections.ConfigDict({"next_item": 0.25, "caption": 0.15, "lists": 0.4, "text": 0.2})
  else:
    config.row_length, config.batch_size = 128, 16  # messages without texts are short: longer rows only cost attention
  config.target_length = config.row_length  # mostly targets
  return config.lock()
