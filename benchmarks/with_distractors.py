"""A corpus and its distractors as one corpus, for an index in which both stand.

    python -m benchmarks.with_distractors --data=../shared/data/gqwiki --out=workdir/all/corpus.jsonl

Rows of corpus.jsonl as they are; those of distractors.jsonl, which have no names, are called X00000, X00001 ...
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli

_DATA = flags.DEFINE_string("data", None, "the folder of corpus.jsonl and distractors.jsonl", required=True)
_OUT = flags.DEFINE_string("out", None, "the file to write", required=True)


def main(_) -> None:
  data, out = Path(_DATA.value), Path(_OUT.value)
  # Lines end with a newline alone: texts may hold other separators.
  rows, more = (
    (data / name).read_text(encoding="utf-8").rstrip("\n").split("\n") for name in ("corpus.jsonl", "distractors.jsonl")
  )
  named = [json.dumps({"doc_id": f"X{at:05d}"} | json.loads(row)) for at, row in enumerate(more)]
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text("".join(f"{row}\n" for row in [*rows, *named]), encoding="utf-8")
  print(f"{out}: {len(rows)} documents and {len(named)} distractors")


if __name__ == "__main__":
  cli.run(main)
