"""All stages of a re-ranker, one after another: `--config=configs/rerank/study.py[:shop=NAME,path=DIR,seed=0]`

for `python -m diffgr_jax.sweep`. Mid-training, SFT (the autoregressive teacher), its RL, naive conversion, CFT (on the
messages of mid-training first), OPD, OPD then RL, RL without OPD, and OPD where decoding is slower and faster; each
with its figures, all compared with the teacher. `part=0.1` takes a tenth of all steps.
"""

import ml_collections

from configs.quickstart import parse_arguments

_ARGUMENTS = ("shop", "path", "pool", "size", "seed", "part")
_STEPS = {"mid": 2600, "sft": 4000, "teacher": 60, "lists": 1600, "cft": 1500, "opd": 100, "rl": 60}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = {"pool": "50"} | parse_arguments(arg, _ARGUMENTS)
  part = float(given.pop("part", "1"))
  common = ",".join(f"{name}={value}" for name, value in given.items())
  steps = {stage: max(2, round(part * count)) for stage, count in _STEPS.items()}
  config = ml_collections.ConfigDict()
  config.against = "teacher"
  rollouts = {"checkpoint_every": 10}

  def cell(stage: str, count: str = "", fields: dict | None = None, threshold: str = "", **runs: str) -> dict:
    """A run of a stage; `runs`: what it begins with, and its teacher, by the names of their cells."""
    own = [common, *(f"{name}={{out}}/{run}" for name, run in runs.items())]
    own += [f"threshold={threshold}"] if threshold else []
    own += [f"steps={steps[count]}"] if count else []
    return {"config": f"configs/rerank/{stage}.py:{','.join(own)}", "fields": fields or {}}

  cells = {
    "mid": cell("mid_training", "mid", {"eval_limit": 8}),
    "sft": cell("sft", "sft", start="mid"),
    "teacher": cell("rl", "teacher", rollouts, start="sft"),
    "naive": cell("convert", start="teacher"),
    "lists": cell("cft", "lists", {"eval_limit": 8}, start="teacher", lists="mid"),
    "cft": cell("cft", "cft", start="lists", examples="sft"),
    "opd": cell("opd", "opd", rollouts, start="cft", teacher="teacher"),
    "both": cell("rl", "rl", rollouts, start="opd"),
    "rl": cell("rl", "rl", rollouts, start="cft"),
    "opd_slow": cell("opd", "opd", rollouts | {"threshold": 1.0}, "1.0", start="cft", teacher="teacher"),
    "opd_fast": cell("opd", "opd", rollouts | {"threshold": 0.6}, "0.6", start="cft", teacher="teacher"),
  }
  config.cells = ml_collections.ConfigDict(cells)
  config.order = tuple(cells)
  return config.lock()
