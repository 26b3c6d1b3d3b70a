"""Conversion fine-tuning: `--config=configs/rerank/cft.py:start=WORKDIR[,block=32][,alignment=same_position]`.

Masked diffusion, block by block, on the messages that the teacher was trained on (`traces=FILE.jsonl`: on others;
`traces=sampled[,writer=WORKDIR]`: on what the start, or another teacher, writes itself). Weights start as the
teacher's. `lists=WORKDIR` takes the short messages of a mid-training run, in short rows: writing IDs down in any order
of positions is learned there first, in a fraction of the tokens. A run that starts from such a one names the teacher's
messages again: `start=W/lists,examples=W/sft`.
"""

import ml_collections

from configs.rerank import base


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  config, given = base.get_config(arg, own=("start", "block", "alignment", "traces", "writer", "lists", "examples"))
  if "start" not in given:
    raise ValueError("--config=...:start=WORKDIR names the run that is converted")
  config.stage = "cft"
  config.start, config.start_from = "run", given["start"]
  config.traces, config.trace_model = given.get("traces", "start"), given.get("writer", "")
  config.block_size = int(given.get("block", 32))
  config.alignment = given.get("alignment", "shifted")
  config.row_length += base.BLOCK  # messages begin at multiples of the block size
  config.target_length += base.BLOCK
  config.examples = given.get("lists", given.get("examples", ""))
  if "lists" in given:
    config.row_length, config.target_length, config.batch_size = 128, 128, 24
  config.learning_rate = 1e-3
  return config.lock()
