"""Evaluates a checkpoint: `python -m diffgr_jax.evaluate --workdir=DIR [--queries=F] [--corpus=F] [--out=F]`.

Without --queries it asks the splits of the run's own data; --corpus indexes other documents: by their titles, with the
run's vocabulary, or by codes, --docid_index (python -m diffgr_jax.index build --quantizer). Queries and corpus have the
rows of the folder format (docs/data.md). --set field=value changes how it decodes: decode_steps, policy, threshold,
remask, eval_batch_size, eval_splits.
"""

import json
from pathlib import Path

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.report import evaluate_run, print_report
from diffgr_jax.training.averaging import answering_params
from diffgr_jax.training.options import CODES, check_config
from diffgr_jax.training.run import open_run

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained run", required=True)
_STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: the newest")
_QUERIES = flags.DEFINE_string("queries", None, "JSONL of {query_id, query, doc_ids}")
_CORPUS = flags.DEFINE_string("corpus", None, "JSONL of {doc_id, title, text}")
_CODES = flags.DEFINE_string("docid_index", None, "with --corpus, of a run on codes: the documents' index of codes")
_OUT = flags.DEFINE_string("out", None, "where the record goes; default: WORKDIR/results.json")
_SET = flags.DEFINE_multi_string("set", [], "field=value: a decoding field of the config")
_JSON = flags.DEFINE_bool("json", False, "print the record as JSON instead of tables")


def main(_) -> None:
  workdir = Path(_WORKDIR.value)
  run = open_run(workdir)
  run.set_decoding(_SET.value)
  check_config(run.config)
  params, step = answering_params(run, _STEP.value)
  out = Path(_OUT.value) if _OUT.value else workdir / "results.json"
  if _CODES.value and not (_CORPUS.value and run.config.docid == CODES):
    raise ValueError("--docid_index goes with --corpus, for a run with config.docid codes")
  record = evaluate_run(
    run,
    params,
    step=step,
    out=out,
    queries_file=_QUERIES.value,
    corpus_file=_CORPUS.value,
    codes_file=_CODES.value,
  )
  if _JSON.value:
    print(json.dumps(record))
  else:
    print_report(record, out)


if __name__ == "__main__":
  cli.run(main)
