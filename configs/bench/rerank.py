"""A re-ranker's frontier, speed against quality: `--config=configs/bench/rerank.py:teacher=W/sft,student=W/cft`.

The autoregressive teacher and its block-parallel students on the same lists, at thresholds and batch sizes; several
students, `student=W/cft8+W/cft32`, show several block sizes.
"""

import ml_collections

from configs.docid.base import parse_arguments


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = parse_arguments(arg, ("teacher", "student"))
  for needed in ("teacher", "student"):
    if needed not in given:
      raise ValueError(f"--config=...:{needed}=WORKDIR: a frontier needs a teacher and a student")
  config = ml_collections.ConfigDict()
  config.task = "rerank"
  config.teacher = given["teacher"]  # workdir of an autoregressive run
  config.students = tuple(given["student"].split("+"))  # workdirs of converted runs, each with its own block size
  config.split = "test"  # whose lists are decoded; thresholds are chosen on valid
  config.lists = 128  # so many of them; 0: all
  config.batch_sizes = (1, 8)
  config.policies = ("prefix", "threshold")  # those with a threshold (docs/decoding.md)
  config.thresholds = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
  config.block_sizes = ()  # decoded with other blocks than trained with, too; (): the student's own
  config.rounds = 3  # of all cases in turn
  config.most_seconds = 1200.0  # no new round is begun later than this
  return config.lock()
