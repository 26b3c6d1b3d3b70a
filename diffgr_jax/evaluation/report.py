"""The evaluation of a run as one record: every decoding, BM25 and LSA on the same queries, saved as results.json."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import itertools
import json
from pathlib import Path
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from diffgr_jax.data.folder.reader import read_corpus, read_queries
from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.data.records import Document, Query
from diffgr_jax.diffusion.corruption import ExactCount
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.evaluation.answers import ONE_PASS, methods_of
from diffgr_jax.evaluation.baselines import Ranking, bm25, dense, hybrid, lsa
from diffgr_jax.evaluation.exposure import exposure_figures, exposures, training_questions
from diffgr_jax.evaluation.generative import Judged, Metrics, evaluate_method, judge
from diffgr_jax.evaluation.likelihood import estimate_nll
from diffgr_jax.evaluation.retrieval import (
  format_table,
  means,
  paired_bootstrap,
  place_in_ranking,
  results_record,
  retrieval_metrics,
  typed_command,
)
from diffgr_jax.training.metrics import recorded_seconds
from diffgr_jax.training.run import Run, load_data, make_docids
from diffgr_jax.training.start import pretrained_folder

_NLL_SAMPLES = 16
_BASELINE_PASSES = {"BM25": 0.0, "LSA": 0.0}  # of a dense encoder: 1, the query's vector
_COMPARED = ("Hit@1", "MRR@10", "nDCG@10")  # with the rivals, question by question
_RIVALS = ("BM25", "dense", *ONE_PASS)
_PerQuery = dict[str, dict[str, np.ndarray]]  # method -> metric -> a value for each question


def evaluate_run(
  run: Run,
  params: Any,
  *,
  step: int,
  out: Path,
  queries_file: str | None = None,
  corpus_file: str | None = None,
  codes_file: str | None = None,
) -> dict[str, Any]:
  """Measures a checkpoint and writes the record.

  Args:
    run: what the weights were trained with.
    params: the weights.
    step: of the checkpoint.
    out: where the record goes, as JSON.
    queries_file: queries of the folder format to ask instead of the config's splits.
    corpus_file: documents of the folder format to index instead of the run's own.
    codes_file: their codes, where the run is one on codes.

  Raises:
    ValueError, BadRow: bad rows, or a query whose document the index does not have.
  """
  collection = None if queries_file and corpus_file else load_data(run.config, run.workdir)
  if corpus_file:
    documents: Sequence[Document] = list(read_corpus(corpus_file, run.config.on_bad_row)[0])
    codes = CodeIndex.load(codes_file) if codes_file else None
    index = make_docids(run.config, documents, run.vocab, codes, run.index.canvas_length)
    missing = run.index.canvas_length - index.canvas_length  # the model was trained on canvases of one length
    codes = np.pad(index.codes, ((0, 0), (0, missing)), constant_values=index.pad_id)
    index = dataclasses.replace(index, codes=codes)
  else:
    assert collection is not None
    documents, index = collection.documents, run.index
  if queries_file:
    asked, skipped = read_queries(queries_file, run.config.on_bad_row, frozenset(index.doc_ids))
    splits: Mapping[str, Sequence[Query]] = {Path(queries_file).stem: list(asked)}
    left_out = ", ".join(f"{count} skipped ({kind})" for kind, count in sorted(skipped.items()))
    if not splits[Path(queries_file).stem]:
      raise ValueError(f"{queries_file} holds no query that the index answers" + (f": {left_out}" if left_out else ""))
    if left_out:
      print(f"{queries_file}: {left_out}", file=sys.stderr)
  else:
    assert collection is not None
    splits = {name: collection.queries[name] for name in _split_names(run, list(collection.queries))}

  limit = run.config.eval_limit or None
  judged = {name: judge(queries[:limit], index) for name, queries in splits.items() if len(queries)}
  baselines = _rank_baselines(documents, judged, run.config.dense)
  metrics, by_exposure = {}, {}
  asked_for = training_questions(collection.queries.get("train", ()) if collection else (), index.doc_ids)
  for name in judged:
    metrics[name], per_query = _evaluate_split(run, params, judged[name], index, name, baselines[name])
    if name != "train" and collection:
      by_exposure[name] = exposure_figures(per_query, exposures(judged[name].relevant, asked_for))
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={"training": run.config.seed, "bootstrap": 0},
    metrics=metrics,
    exposure=by_exposure,
    settings={
      "dataset": run.config.dataset,
      "documents": len(documents),
      "collection": collection.fingerprint if collection else None,
      "canvas_length": index.canvas_length,
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
      "step": step,
      "examples": step * run.config.batch_size,
      "training_minutes": recorded_seconds(run.workdir, step) / 60,
      "batch_size": run.config.eval_batch_size,
      "eval_limit": run.config.eval_limit,
      "relevant_grade": run.config.relevant_grade,
    },
  )
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(record, indent=1), encoding="utf-8")
  return record


def print_report(record: Mapping[str, Any], out: Path) -> None:
  """Prints the record as one table per split."""
  settings = record["settings"]
  minutes = settings["training_minutes"]
  print(
    f"\n{settings['dataset']}: {settings['documents']} documents, {settings['parameters'] / 1e6:.1f}M parameters,"
    f" step {settings['step']} ({settings['examples']} examples"
    f", {minutes:.1f} minutes of training)"
  )
  for split, methods in record["metrics"].items():
    queries = next(iter(methods.values()))["queries"]
    print(f"\n{split} ({queries} queries)\n{format_table([_shown(*item) for item in methods.items()], markdown=False)}")
    groups = record["exposure"].get(split, {})
    if len(groups) > 2:  # "0" and "unseen" are one group, and so say nothing by themselves
      rows = [_by_exposure(method, groups) for method in methods]
      print(f"\n{split}, Hit@1 by training questions of the document\n{format_table(rows, markdown=False)}")
  print(f"\nresults: {out}")


def _shown(name: str, figures: Metrics) -> dict[str, object]:
  """A row of the printed table: the figures people compare, and the intervals of the differences to the rivals."""
  columns = ("Hit@1", "Hit@10", "Hit@100", "MRR@10", "MRR@100", "nDCG@10", "invalid", "forwards", "canvases")
  row: dict[str, object] = {"method": name, **{column: figures[column] for column in columns if column in figures}}
  row["queries/s"] = round(figures["queries/s"])
  return row | differences(figures)


def differences(figures: Metrics) -> dict[str, object]:
  """The intervals of a method's paired differences in Hit@1, as columns of a table."""
  row: dict[str, object] = {}
  for short in _RIVALS:
    low, high = (figures.get(f"Hit@1 - {short} {end}") for end in ("low", "high"))
    known = low is not None and high is not None
    if known or short == "BM25":  # which has its column in every table
      row[f"Hit@1 - {short} (95%)"] = f"{low:+.3f} to {high:+.3f}" if known else None
  return row


def _by_exposure(name: str, groups: Mapping[str, Mapping[str, Metrics]]) -> dict[str, object]:
  """A row of the printed table by exposure."""
  row: dict[str, object] = {"method": name}
  row |= {f"{group} ({methods[name]['queries']})": methods[name]["Hit@1"] for group, methods in groups.items()}
  return row


def _split_names(run: Run, present: list[str]) -> list[str]:
  """The splits of the config, or every split but the training queries."""
  wanted = list(run.config.eval_splits) or [name for name in present if name != "train"]
  if missing := [name for name in wanted if name not in present]:
    raise ValueError(f"config.eval_splits names {missing[0]!r}; the data has {', '.join(present) or 'no queries'}")
  return wanted


def _rank_baselines(
  documents: Sequence[Document], judged: Mapping[str, Judged], encoder: str
) -> dict[str, dict[str, Ranking]]:
  """The rankings of BM25, LSA and (if the config names one) a dense encoder, alone and with BM25."""
  titles, texts = [document.title for document in documents], [document.text for document in documents]
  queries = [text for split in judged.values() for text in split.texts]
  baselines = {"BM25": bm25, "LSA": lsa}
  if encoder:
    baselines[f"{encoder}, dense"] = functools.partial(dense, folder=pretrained_folder(encoder))
  if not queries:
    return {}
  rankings = {}
  for label, baseline in tqdm(baselines.items(), desc="ranking with the baselines", leave=False, delay=5):
    rankings[label] = baseline(titles, texts, queries)
  if encoder:
    rankings[f"{encoder} and BM25"] = hybrid(rankings[f"{encoder}, dense"], rankings["BM25"])
  parts, start = {}, 0
  for name, split in judged.items():
    rows, start = slice(start, start + len(split.texts)), start + len(split.texts)
    parts[name] = {
      label: dataclasses.replace(
        ranking,
        indices=ranking.indices[rows],
        scores=ranking.scores[rows],
        query_seconds=ranking.query_seconds * len(split.texts) / len(queries),
      )
      for label, ranking in rankings.items()
    }
  return parts


def _evaluate_split(
  run: Run, params: Any, judged: Judged, index: DocIdIndex, name: str, baselines: Mapping[str, Ranking]
) -> tuple[dict[str, Metrics], _PerQuery]:
  """Every method's figures on one split, with the intervals of its paired differences to the rivals; and all values."""
  rows: dict[str, Metrics] = {}
  per_query: _PerQuery = {}
  for label, ranking in baselines.items():
    placements = place_in_ranking(ranking.indices, ranking.scores, judged.relevant, judged.grades)
    per_query[label] = retrieval_metrics(placements, relevant_grade=run.config.relevant_grade)
    passes = _BASELINE_PASSES.get(label, 1.0)
    rows[label] = means(per_query[label]) | {
      "forwards": passes,
      "canvases": passes,
      "queries/s": len(judged.texts) / ranking.query_seconds,
      "queries": len(judged.texts),
    }
  methods = methods_of(run)
  for method in tqdm(methods, desc=f"evaluating {name}", leave=False, delay=5):
    rows[method.name], per_query[method.name] = evaluate_method(run, params, method, judged, index)
  rivals = {label.rpartition(", ")[2]: label for label in baselines if label == "BM25" or label.endswith(", dense")}
  own = [method.name for method in methods]  # which are compared with one pass of the same weights, too
  pairs = [*itertools.product(rows, rivals.items()), *((name, (rival, rival)) for name in own for rival in ONE_PASS)]
  for label, (short, rival) in pairs:
    for metric in _COMPARED if label != rival and rival in rows else ():
      if metric in per_query[label]:
        interval = paired_bootstrap(per_query[label][metric], per_query[rival][metric], seed=0)
        rows[label] |= {f"{metric} - {short} low": interval.low, f"{metric} - {short} high": interval.high}
  if run.config.nelbo_queries and not run.autoregressive:
    rows[methods[0].name]["NELBO"] = _nelbo(run, params, judged, index)
  return rows, per_query


def _nelbo(run: Run, params: Any, judged: Judged, index: DocIdIndex) -> float:
  """Mean bound on -log p(DocID | query) in nats per DocID, of the first queries and their first document."""
  asked = run.config.nelbo_queries
  texts, documents = judged.texts[:asked], [rows[0] for rows in judged.relevant[:asked]]
  docid = jnp.asarray(index.codes[documents])
  estimate = estimate_nll(
    params,
    jnp.asarray(encode_prompts(texts, run.vocab, run.config.prompt_length)),
    docid,
    jnp.ones(docid.shape, bool),
    jax.random.key(0),
    denoise=run.denoiser,
    process=ExactCount(),
    mask_id=run.mask_id,
    banned=run.banned,
    samples=_NLL_SAMPLES,
    chunk=4,
  )
  return float(np.mean(estimate.mean))
