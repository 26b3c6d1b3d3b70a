"""Evaluates a checkpoint: `python -m diffgr_jax.evaluate --workdir=DIR [--out=F] [--set=field=value]`.

python -m diffgr_jax.evaluate --workdir=workdir/quickstart --set=decodings=one_pass,topk --json
python -m diffgr_jax.evaluate --workdir=workdir/from_nothing --queries=my.jsonl --corpus=my_corpus.jsonl --out=mine.json
python -m diffgr_jax.evaluate --workdir=W/cft --against=W/sft

Of a DocID run: without --queries it asks the splits of the run's own data; --corpus indexes other documents: by their
titles, with the run's vocabulary, or by codes, --docid_index (python -m diffgr_jax.index build --quantizer). Queries
and corpus have the rows of the folder format (docs/data.md). --set changes how it decodes, such as
--set=decodings=one_pass,topk,match,chain or --set=decode_steps=8; an unknown field is answered with all that there are.

Of a re-ranking run: the lists of the run's users, of some of them (--users), or of other users of the same items
(--interactions), with the run's candidates or others (--pool); --against=DIR compares with another run list by list,
--permutations=optimal adds a row of rankings that cannot be invalid (docs/reranking.md).
"""

import json
from pathlib import Path
from typing import Any

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import evaluate_run, print_report
from diffgr_jax.evaluation.rerank_permutations import PERMUTATIONS
from diffgr_jax.evaluation.rerank_report import evaluate_rerank, print_rerank
from diffgr_jax.training.averaging import answering_params
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.jobs import check_config
from diffgr_jax.training.options import CODES
from diffgr_jax.training.rerank_run import open_rerank, task_of, with_pool
from diffgr_jax.training.run import open_run

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained run", required=True)
_STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: the newest")
_OUT = flags.DEFINE_string("out", None, "where the record goes; default: WORKDIR/results.json")
_SET = flags.DEFINE_multi_string("set", [], "field=value: a decoding field of the config")
_JSON = flags.DEFINE_bool("json", False, "print the record as JSON instead of tables")
_DOCID = [
  flags.DEFINE_string("queries", None, "DocID: JSONL of {query_id, query, doc_ids}"),
  flags.DEFINE_string("corpus", None, "DocID: JSONL of {doc_id, title, text}"),
  flags.DEFINE_string("docid_index", None, "DocID: with --corpus, of a run on codes: the documents' index of codes"),
]
_RERANK = [
  flags.DEFINE_string("users", None, "re-ranking: a file of users, one a line"),
  flags.DEFINE_string("interactions", None, "re-ranking: a folder of other users' interactions with the same items"),
  flags.DEFINE_string("against", None, "re-ranking: a folder of another run's rankings, for paired differences"),
  flags.DEFINE_enum("permutations", None, PERMUTATIONS, "re-ranking: a row of rankings that cannot be invalid"),
  flags.DEFINE_integer("pool", None, "re-ranking: lists from the retriever's first so many, in place of the run's own"),
  flags.DEFINE_bool("trees", True, "re-ranking: measure boosted trees on the same evidence too"),
]


def main(_) -> None:
  workdir = Path(_WORKDIR.value)
  out = Path(_OUT.value) if _OUT.value else workdir / "results.json"
  task = task_of(workdir)
  for flag in _RERANK if task == "docid" else _DOCID:
    if flag.present:
      raise ValueError(f"--{flag.name} is not for a run of the task {task!r}")
  with cli.piped(_JSON.value):
    record, show = (_docid if task == "docid" else _rerank)(workdir, out)
  if _JSON.value:
    print(json.dumps(record))
  else:
    show(record, out)


def _docid(workdir: Path, out: Path):
  queries, corpus, codes = (flag.value for flag in _DOCID)
  run = open_run(workdir)
  run.set_decoding(_SET.value)
  check_config(run.config)
  if codes and not (corpus and run.config.docid == CODES):
    raise ValueError("--docid_index goes with --corpus, for a run with config.docid codes")
  params, step = answering_params(run, _STEP.value)
  how: dict[str, Any] = dict(queries_file=queries, corpus_file=corpus, codes_file=codes)
  return evaluate_run(run, params, step=step, out=out, **how), print_report


def _rerank(workdir: Path, out: Path):
  users, interactions, against, permutations, pool, trees = (flag.value for flag in _RERANK)
  run = open_rerank(workdir)
  run = run if pool is None else with_pool(run, pool)
  run.set_decoding(_SET.value)
  check_config(run.config)
  params, step = restore_params(run.workdir, run.model, _STEP.value)
  how: dict[str, Any] = dict(
    users=users, interactions=interactions, against=against, trees=trees, permutations=permutations or ""
  )
  return evaluate_rerank(run, params, step=step, out=out, **how), print_rerank


if __name__ == "__main__":
  cli.run(main)
