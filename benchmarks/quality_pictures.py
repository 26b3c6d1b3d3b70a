"""Draws quality against speed and against scale from results.json files.

    python -m benchmarks.quality_pictures --split=valid --out=DIR RUN/results.json results/pydocs.json ...

A study's record is as good: --only=RUN,RUN names what of it is drawn, against speed alone.
--metric is Hit@1 unless it says otherwise; --scale is documents, parameters or examples.
"""

from pathlib import Path

from absl import app, flags

from diffgr_jax.viz.quality import draw_scale, draw_speed, read_records

_SPLIT = flags.DEFINE_string("split", None, "whose figures are drawn", required=True)
_METRIC = flags.DEFINE_string("metric", "Hit@1", "Hit@1, Hit@10, MRR@10, nDCG@10 ...")
_SCALE = flags.DEFINE_string("scale", "documents", "documents | parameters | examples")
_ONLY = flags.DEFINE_list("only", [], "records, or runs of a study's record, in the picture of speed; default: all")
_OUT = flags.DEFINE_string("out", ".", "folder of the two pictures")


def main(arguments: list[str]) -> None:
  try:
    records = read_records(arguments[1:])
    how = dict(split=_SPLIT.value, metric=_METRIC.value)
    print(draw_speed(records, Path(_OUT.value) / "quality_speed.png", **how, only=_ONLY.value))
    if not _ONLY.value:
      print(draw_scale(records, Path(_OUT.value) / "quality_scale.png", scale=_SCALE.value, **how))
  except (ValueError, FileNotFoundError) as error:
    raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
  app.run(main)
