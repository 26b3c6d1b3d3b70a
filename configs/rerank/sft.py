"""The autoregressive teacher: `--config=configs/rerank/sft.py:shop=amazon_beauty,path=DIR[,pool=50][,start=WORKDIR]`.

Messages are traces written from the evidence, kept where they end on the target (or those of `traces=FILE.jsonl`).
`start=WORKDIR` begins with a mid-trained model.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("start", "traces"))
  config.traces = given.get("traces", "template")
  if "start" in given:
    config.start, config.start_from = "run", given["start"]
  return config.lock()
