"""Reinforcement learning: `--config=configs/rerank/rl.py:start=WORKDIR[,threshold=0.9][,estimator=replay]`.

The start writes answers to training lists, and learns from their rewards; it may be the autoregressive teacher (GR2's
third stage) or a converted student.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("start", "threshold", "estimator", "block"))
  if "start" not in given:
    raise ValueError("--config=...:start=WORKDIR names the run that is rewarded")
  config.stage = "rl"
  config.start, config.start_from = "run", given["start"]
  config.block_size = int(given.get("block", 32))
  config.rollout_threshold = float(given.get("threshold", 0.9))
  config.estimator = given.get("estimator", "replay")
  config.row_length += base.BLOCK
  config.batch_size = 64
  config.group = 8
  config.learning_rate = 1e-4
  config.lr_decay = "constant"
  config.checkpoint_every = 20
  config.log_every = 5
  return config.lock()
