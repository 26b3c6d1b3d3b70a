"""Prints a record's figures as the Markdown table that a document quotes.

`python -m benchmarks.markdown_table --results=results/pydocs.json --split=test [--columns=Hit@1,Hit@10]`
The comment above the table is what tests/docs_test.py checks it by.
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import differences
from diffgr_jax.evaluation.retrieval import format_table

_RESULTS = flags.DEFINE_string("results", None, "a results.json", required=True)
_SPLIT = flags.DEFINE_string("split", None, "which split", required=True)
_COLUMNS = flags.DEFINE_list("columns", ["Hit@1", "Hit@10", "Hit@100", "MRR@10", "MRR@100", "invalid"], "which figures")


def main(_) -> None:
  splits = json.loads(Path(_RESULTS.value).read_text(encoding="utf-8"))["metrics"]
  if _SPLIT.value not in splits:
    raise ValueError(f"{_RESULTS.value} has the splits {', '.join(splits)}, not {_SPLIT.value!r}")
  rows = []
  for method, figures in splits[_SPLIT.value].items():
    row: dict[str, object] = {"method": method, **{column: figures.get(column) for column in _COLUMNS.value}}
    rows.append(row | differences(figures))
  print(f"<!-- results: {_RESULTS.value} split={_SPLIT.value} -->")
  print(format_table(rows))


if __name__ == "__main__":
  cli.run(main)
