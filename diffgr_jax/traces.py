"""Samples reasoning traces from a re-ranking teacher: `python -m diffgr_jax.traces --workdir=W/sft --out=DIR`.

Each training list of the run is answered at a temperature, up to --tries times; answers that name every candidate once
and put the target first are kept (GR2's rejection sampling; the model never sees the target). Stopped and started
again, it goes on; --shard=I --shards=N parts the lists over N machines. DIR/traces-*.jsonl are then what a next stage
learns from: --config=configs/rerank/cft.py:start=W/sft,traces=DIR/traces-00000-of-00001.jsonl (several: joined by +).

A pretrained chat model is asked the same way, once a run holds it: python -m diffgr_jax.main
--config=configs/rerank/sft.py:steps=0 --config.start=pretrained --config.pretrained=DIR --config.prompt=full
--workdir=W/teacher
"""

from pathlib import Path

from absl import flags
from tqdm import tqdm

from diffgr_jax import cli
from diffgr_jax.evaluation.rerank_answers import make_sampler
from diffgr_jax.rerank.chat import count_tokens
from diffgr_jax.rerank.model_traces import ModelTraces
from diffgr_jax.rerank.reasoning import TraceRules, count_outcomes
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_run import open_rerank

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
  if run.converted:
    raise ValueError(f"--workdir={_WORKDIR.value} is a run of the stage {run.config.stage!r}: name its teacher")
  run.set_decoding([f"temperature={_TEMPERATURE.value}"])
  params, step = restore_params(run.workdir, run.model, _STEP.value)
  tasks = run.lists("train").tasks[: _LISTS.value or None]
  source = ModelTraces(
    run.shop,
    run.codes,
    run.vocab,
    run.prompts,
    TraceRules(lambda contents: count_tokens(contents, run.vocab), run.config.least_reasoning),
    make_sampler(run, params, tasks, _BATCH.value),
    f"{_WORKDIR.value} step {step}, temperature {_TEMPERATURE.value}",
    Path(_OUT.value),
    tries=_TRIES.value,
    batch_size=_BATCH.value,
    seed=_SEED.value,
    shard=_SHARD.value,
    shards=_SHARDS.value,
  )
  mine = len(tasks[_SHARD.value :: _SHARDS.value])
  outcomes = list(tqdm(source.traces(tasks), total=mine, desc="traces", unit="list"))
  counts = ", ".join(f"{count} {what}" for what, count in count_outcomes(outcomes).most_common())
  print(f"traces of {mine} lists: {counts}\nwritten: {source.file}")


if __name__ == "__main__":
  cli.run(main)
