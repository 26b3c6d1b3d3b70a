"""Draws what each stage of a re-ranking study changed, against the best order that there is.

    python -m benchmarks.stages_picture --study=W/study.json --out=docs/study.png [--only=sft,teacher,cft,opd]

The bars are paired intervals of the difference to --against.
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.viz.stages import draw_stages

_STUDY = flags.DEFINE_string("study", None, "study.json, or a record of pooled seeds", required=True)
_SPLIT = flags.DEFINE_string("split", "test", "whose figures are drawn")
_AGAINST = flags.DEFINE_string("against", "teacher", "the run that all others are compared with")
_ONLY = flags.DEFINE_list("only", [], "runs, in their order; default: all")
_OUT = flags.DEFINE_string("out", "stages.png", "the picture")


def main(_) -> None:
  record = json.loads(Path(_STUDY.value).read_text(encoding="utf-8"))
  print(draw_stages(record, _OUT.value, split=_SPLIT.value, against=_AGAINST.value, only=_ONLY.value))


if __name__ == "__main__":
  cli.run(main)
