"""Pools re-ranking studies that differ in their seeds: means, the least and the most, paired differences over lists.

    python -m benchmarks.pool_seeds --studies=W/seed0/study.json,W/seed1/study.json --out=results/made_up_study.json

Every list counts with its mean over the seeds, so an interval is of other lists, not of other seeds; these stand beside
it as the least and the most.
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.rerank_study import pool_seeds, rerank_tables
from diffgr_jax.evaluation.retrieval import results_record, typed_command

_STUDIES = flags.DEFINE_list("studies", None, "study.json of each seed", required=True)
_AGAINST = flags.DEFINE_string("against", "teacher", "the run that all others are compared with")
_OUT = flags.DEFINE_string("out", None, "the file of results to write")


def main(_) -> None:
  records = [json.loads(Path(file).read_text(encoding="utf-8")) for file in _STUDIES.value]
  metrics = pool_seeds(records, _AGAINST.value)
  print(rerank_tables(metrics, _AGAINST.value))
  if _OUT.value:
    record = results_record(
      command=typed_command(),
      status="measured",
      seeds={f"study {at}: {name}": seed for at, one in enumerate(records) for name, seed in one["seeds"].items()},
      metrics=metrics,
      settings={"studies": [{"command": one["command"], "machine": one["machine"]} for one in records]},
    )
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  cli.run(main)
