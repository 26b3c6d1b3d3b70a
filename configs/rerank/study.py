"""All stages of a re-ranker: `--config=configs/rerank/study.py[:shop=NAME,path=DIR,vectors=FILE.npy,seed=0]`

for `python -m diffgr_jax.sweep`. Mid-training, SFT (the autoregressive teacher), its RL, naive conversion, CFT (on the
messages of mid-training first, then on what the teacher writes), OPD, OPD then RL, RL without OPD, and CFT and OPD
decoded slower and faster; each with its figures, all compared with the teacher. `part=0.1` takes a tenth of all steps.
`candidates=5` is the quick one: lists of five, of the retriever's first twenty, in messages of half the length; fewer
rollouts, and 1,024 test lists.

`shop=amazon_beauty,path=DIR,vectors=DIR/items_minilm_f16.npy` takes Amazon's files (docs/data.md), `pool=10` the
retriever's natural lists. `models=colabs/models` begins with a teacher and a student that are there (folders of these
names), and runs the stages of rollouts alone. On 2 cores that takes hours: a step of OPD 20 to 30 seconds, an
evaluation minutes.
"""

import ml_collections

from configs.docid.base import parse_arguments

_ARGUMENTS = ("shop", "path", "vectors", "candidates", "pool", "size", "seed", "part", "models", "block")
_STEPS = {"mid": 2600, "sft": 4000, "teacher": 100, "lists": 400, "cft": 2700, "opd": 160, "rl": 60}
_QUICK = {"mid": 2600, "sft": 4000, "teacher": 100, "lists": 200, "cft": 2700, "opd": 240, "rl": 40}
_CELLS = ("mid", "sft", "teacher", "lists", "cft", "opd")  # that others begin with
_ENDS = {"learning_rate": 2e-3, "suffix_fraction": 0.5}  # half of the blocks are canvases of the policy `prefix`
# A student is to write as its teacher does: of right answers alone there are too few (docs/experiments.md).
_ALL_ANSWERS = {"trace_lists": 8000, "trace_right": False, "trace_agreeing": 1.0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = {"candidates": "10", "block": "8"} | parse_arguments(arg, _ARGUMENTS)
  quick = int(given["candidates"]) <= 5
  given.setdefault("pool", "20" if quick else "50")
  part, models, block = float(given.pop("part", "1")), given.pop("models", ""), given.pop("block")
  shop = {"data_dir": "{out}/data"} if "shop" in given else {}  # read once, not by every cell
  shop |= {"vectors": given.pop("vectors")} if "vectors" in given else {}
  common = ",".join(f"{name}={value}" for name, value in given.items())
  steps = {stage: max(2, round(part * count)) for stage, count in (_QUICK if quick else _STEPS).items()}
  config = ml_collections.ConfigDict()
  config.against = "teacher"
  # The rate falls: of few and noisy gradients, that keeps the last steps' mean. On a CPU parts of eight rollouts are
  # quicker than all of them at once (docs/reranking.md). A teacher that chooses surely writes the same ranking eight
  # times: what teaches nothing is replaced.
  rollouts = {"checkpoint_every": 10, "lr_decay": "linear", "batch_size": 32, "microbatches": 4, "refills": 3}
  # At a temperature of 1 half of a student's answers are invalid that are valid when it decodes greedily.
  cooler = rollouts | {"learning_rate": 2e-4, "rollout_temperature": 0.5}
  measured = {"eval_splits": ("test",), "eval_batch_size": 64} | ({"eval_limit": 1024} if quick else {})

  def cell(stage: str, count: str = "", fields: dict | None = None, **own: str) -> dict:
    """A run of a stage; of its `own` arguments, those that name a cell become that cell's folder."""
    given = {"block": block} if stage in ("convert", "cft", "opd", "rl") else {}
    given |= {name: f"{{out}}/{value}" if value in _CELLS else value for name, value in own.items()}
    given |= {"steps": steps[count]} if count else {}
    arguments = ",".join(f"{name}={value}" for name, value in given.items())
    return {"config": f"configs/rerank/{stage}.py:{common},{arguments}", "fields": shop | measured | (fields or {})}

  trained = {
    "mid": cell("mid_training", "mid", {"eval_limit": 8}),
    "sft": cell("sft", "sft", start="mid"),
    "teacher": cell("rl", "teacher", rollouts, start="sft"),
    "naive": cell("convert", start="teacher"),
    "lists": cell("cft", "lists", _ENDS | {"eval_limit": 8}, start="teacher", lists="mid"),
    "cft": cell("cft", "cft", _ENDS | _ALL_ANSWERS, start="lists", traces="sampled", writer="teacher"),
  }
  there = {
    "sft": cell("convert", start=f"{models}/teacher", block="1"),  # blocks of one token: it decodes as it stands
    "teacher": cell("rl", "teacher", rollouts, start=f"{models}/teacher"),
    "naive": cell("convert", start="teacher"),
    "cft": cell("convert", start=f"{models}/student"),
  }
  cells = (there if models else trained) | {
    "opd": cell("opd", "opd", rollouts | {"refills": 0}, start="cft", teacher="teacher"),
    "both": cell("rl", "rl", cooler, start="opd"),
    "rl": cell("rl", "rl", cooler, start="cft"),
  }
  for name, threshold in {"slow": 1.0, "sure": 0.97, "fast": 0.6}.items():
    for start in ("cft", "opd"):
      cells[f"{start}_{name}"] = cell("convert", fields={"threshold": threshold}, start=start)
  config.cells = ml_collections.ConfigDict(cells)
  config.order = tuple(cells)
  return config.lock()
