"""Re-ranking on TPU slices: `--config=configs/pod/rerank.py:stage=cft,start=WORKDIR`.

Stages: mid_training, sft, cft, opd, rl.

Qwen3-8B's shape over its vocabulary and 4 x 256 semantic IDs; messages of up to 2,560 tokens (a prompt of about 2,200,
reasoning, ten IDs). `pretrained=DIR` begins mid_training or sft at a Hugging Face folder, `start=WORKDIR` at another
run; opd asks for `teacher=WORKDIR`, too. docs/pods.md says which slices these were compiled for, with
`python -m diffgr_jax.preflight`.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  own = ("stage", "start", "pretrained", "teacher")
  config, given = base.get_config(",".join(filter(None, ("size=8b", arg))), own=own)
  stage, start, pretrained = given.get("stage", "cft"), given.get("start", ""), given.get("pretrained", "")
  if stage in ("cft", "opd", "rl") and not start:
    raise ValueError(f"--config=...:stage={stage} needs start=WORKDIR, the run that it goes on with")
  config.stage = stage
  if start or pretrained:
    config.start = "run" if start else "pretrained"
    config.start_from, config.pretrained = start, "" if start else pretrained
  config.traces = "start" if stage == "cft" else "template"
  config.prompt = "full"
  config.vocab_size = 151_936
  config.item_codes = 256
  config.remat = "full"
  config.compute_dtype = "bfloat16"
  config.whole_stream = stage == "cft"  # Splash skips the tiles that its mask leaves empty
  config.ce_chunk = 16_384
  config.reasoning_weight, config.answer_weight = 0.5, 1.0
  config.row_length, config.target_length = 2560, 256
  config.batch_size = 256
  config.learning_rate = 1e-5
  config.warmup_steps = min(100, int(given.get("steps", 3000)) // 10)
  config.max_new_tokens = 256
  if stage in ("opd", "rl"):
    config.teacher = given.get("teacher", "")
    config.teacher_top_k = 64
    config.group, config.batch_size = (1, 512) if stage == "opd" else (8, 512)
    config.decode_steps = 8  # passes of a block, at most: a replay has as many canvases
    config.learning_rate, config.lr_decay = (1e-6 if stage == "opd" else 5e-7), "constant"
  config.mesh = ml_collections.ConfigDict({"replica": 1, "data": -1, "fsdp": 256, "tensor": 1, "sequence": 1})
  return config.lock()
