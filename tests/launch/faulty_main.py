"""The training command with a fault built in, and a record of what it trained on: the pod of pod_test.py runs it.

FAULT=kill:1:7    process 1 kills itself (SIGKILL) in step 7, behind the others' backs: they wait in a collective
FAULT=term:0:5    process 0 has the launcher told (SIGTERM) in step 5; steps are slow from there on
SEEN=DIR          process I appends to DIR/seen_I.jsonl: step, row of the global batch, checksum of the row
"""

import json
import os
from pathlib import Path
import signal
import time
import zlib

import jax
import numpy as np

from diffgr_jax import cli, main
from diffgr_jax.training import loop


def record(step, batch):
  with Path(os.environ["SEEN"], f"seen_{jax.process_index()}.jsonl").open("a", encoding="utf-8") as file:
    for shard in batch["prompt"].addressable_shards:
      first = shard.index[0].start or 0
      for row, tokens in enumerate(np.asarray(shard.data)):
        file.write(json.dumps([step, first + row, zlib.crc32(tokens.tobytes())]) + "\n")


def with_fault(train_step):
  kind, process, fault_step = (os.environ.get("FAULT") or "none:0:0").split(":")

  def faulty(state, batch, *args, **kwargs):
    step = int(state.step) + 1
    record(step, batch)
    result = train_step(state, batch, *args, **kwargs)
    if int(process) == jax.process_index() and step == int(fault_step):
      if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
      if kind == "term":
        os.kill(os.getppid(), signal.SIGTERM)
    if kind == "term" and step >= int(fault_step):
      time.sleep(0.5)  # the notice is looked for once a second
    return result

  faulty.lower = train_step.lower
  return faulty


if __name__ == "__main__":
  loop.train_step = with_fault(loop.train_step)
  cli.run(main.main)
