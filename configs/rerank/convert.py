"""Naive conversion: `--config=configs/rerank/convert.py:start=W[,block=32]`, the weights, block-causal, untrained.

With `block=1` it decodes exactly as its teacher; with 32 it shows what conversion costs before CFT.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("start", "block"))
  if "start" not in given:
    raise ValueError("--config=...:start=WORKDIR names the run that is converted")
  config.stage = "convert"
  config.start, config.start_from = "run", given["start"]
  config.block_size = int(given.get("block", 32))
  config.traces = "start"
  config.steps = 0
  config.warmup_steps = 0
  return config.lock()
