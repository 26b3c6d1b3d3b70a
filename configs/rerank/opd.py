"""On-policy distillation: `--config=configs/rerank/opd.py:start=WORKDIR,teacher=WORKDIR[,threshold=0.6][,slow=1]`.

The converted `start` writes answers in its own blocks; the frozen autoregressive `teacher` says what it would have
written there. `slow=1` in place of a teacher: the start teaches itself, one token a pass, to write several.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("start", "teacher", "slow", "threshold", "block", "steps"))
  if "start" not in given:
    raise ValueError("--config=...:start=WORKDIR names the converted run that is taught")
  config.stage = "opd"
  config.start, config.start_from = "run", given["start"]
  config.teacher, config.teacher_slow = given.get("teacher", ""), bool(int(given.get("slow", "0")))
  config.block_size = int(given.get("block", 32))
  config.row_length += base.BLOCK
  config.batch_size = 32
  # Nearly as answers are decoded: at 1, a student's rollouts are so often wrong that a teacher has nothing to say to
  # them (docs/experiments.md). Rollouts of one list are alike then, and one is enough.
  config.rollout_temperature = 0.2
  config.group = 1
  config.checkpoint_every = 20
  config.log_every = 5
  config.rollout_threshold = float(given.get("threshold", 0.9))
  config.learning_rate, config.lr_decay = 3e-4, "constant"
  if config.optimizer == "muon":  # but at 8B
    # Written fast, where a small student errs: what it learns there holds at .9, too. First it learns care, and only
    # then what to write. At a temperature of 1 a teacher mostly says how unsure it is between candidates
    # (docs/experiments.md).
    config.steps = int(given.get("steps", 240))
    config.rollout_threshold = float(given.get("threshold", 0.6))
    config.teacher_temperature = 0.2
    config.learning_rate, config.lr_decay = 2e-3, "linear"
  return config.lock()
