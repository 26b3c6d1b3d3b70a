"""Samples reasoning traces from a re-ranking teacher: `python -m diffgr_jax.traces --workdir=W/sft --out=DIR`.

Each training list of the run is answered at a temperature, up to --tries times; answers that name every candidate once
and put the target first are kept (GR2's rejection sampling; the model never sees the target). Stopped and started
again, it goes on; --shard=I --shards=N parts the lists over N machines. DIR/traces-*.jsonl are then what a next stage
learns from: --config=configs/rerank/cft.py:start=W/sft,traces=DIR/traces-00000-of-00001.jsonl (several: joined by +).
A run can sample them itself, in one process: cft.py:start=W/sft,traces=sampled.

A pretrained chat model is asked the same way, once a run holds it: python -m diffgr_jax.main
--config=configs/rerank/sft.py:steps=0 --config.start=pretrained --config.pretrained=DIR --config.prompt=full
--workdir=W/teacher
"""

from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.rerank.reasoning import count_outcomes
from diffgr_jax.training.rerank_run import open_rerank
from diffgr_jax.training.sampled_traces import teacher_traces

_WORKDIR = flags.DEFINE_string("workdir", None, "of an autoregressive re-ranking run", required=True)
_STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: the newest")
_OUT = flags.DEFINE_string("out", None, "folder of the files", required=True)
_TRIES = flags.DEFINE_integer("tries", 4, "answers to a list, at most", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.7, "of the draws", lower_bound=0.0)
_LISTS = flags.DEFINE_integer("lists", 0, "training lists that are asked; 0: all", lower_bound=0)
_BATCH = flags.DEFINE_integer("batch", 32, "lists decoded together", lower_bound=1)
_SHARD = flags.DEFINE_integer("shard", 0, "which part of the lists", lower_bound=0)
_SHARDS = flags.DEFINE_integer("shards", 1, "how many parts there are", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the draws")


def main(_) -> None:
  run = open_rerank(Path(_WORKDIR.value))
  tasks = run.lists("train").tasks[: _LISTS.value or None]
  source = teacher_traces(
    run,
    tasks,
    Path(_OUT.value),
    temperature=_TEMPERATURE.value,
    step=_STEP.value,
    tries=_TRIES.value,
    batch_size=_BATCH.value,
    seed=_SEED.value,
    shard=_SHARD.value,
    shards=_SHARDS.value,
  )
  mine = len(tasks[_SHARD.value :: _SHARDS.value])
  counts = ", ".join(f"{count} {what}" for what, count in count_outcomes(source.traces(tasks)).most_common())
  print(f"traces of {mine} lists: {counts}\nwritten: {source.file}")


if __name__ == "__main__":
  cli.run(main)
