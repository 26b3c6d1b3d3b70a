"""Retrieval with a trained denoiser: every query is ranked by each decoding, and the rankings become metrics.

    one_pass        one forward on the all-masked canvas; every document scored by a gather over the code matrix
    top-k           a beam over partly filled canvases; k documents that exist, with log-probabilities (topk.py)
    constrained     T-step denoising that never leaves the set of DocIDs that exist; one document a query
    beam            an autoregressive model's beam search in the trie of DocIDs that exist; width 1 is greedy
    free            T-step denoising without the constraint; the DocID may name no document (invalid)

A decoding that generates one DocID ranks one document: it has Hit@1, and its Hit@10 would say nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
import itertools
import time
from typing import Any

import jax.numpy as jnp
import numpy as np

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.data.records import Collection, Query
from diffgr_jax.decoding.beam import decode_beams
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas, forwards_per_row
from diffgr_jax.decoding.constraint import matching_documents
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.scoring import one_pass_scores
from diffgr_jax.decoding.topk import TopKOptions, decode_topk
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import build_trie
from diffgr_jax.evaluation.retrieval import (
  Placements,
  invalid_rate,
  join_placements,
  means,
  place_in_ranking,
  place_in_scores,
  retrieval_metrics,
  shared_identifiers,
)
from diffgr_jax.parallel.distributed import fetch
from diffgr_jax.parallel.rules import split_of
from diffgr_jax.training.options import AUTOREGRESSIVE
from diffgr_jax.training.run import Run

Metrics = dict[str, float]


@dataclass(frozen=True)
class BeamOptions:
  """A beam search, with probabilities renormalised over the DocIDs that exist."""

  width: int


@dataclass(frozen=True)
class Method:
  """One way of answering a query."""

  name: str
  steps: int = 1  # forward passes, at most
  options: DecodeOptions | TopKOptions | BeamOptions | None = None  # None: one-pass scoring
  constrained: bool = False
  prior_weight: float = 0.0  # one-pass and top-k: share of the prior correction (see decoding/scoring.py)

  @property
  def ranks(self) -> bool:
    """Whether it ranks many documents; otherwise it names one."""
    return not isinstance(self.options, DecodeOptions)


@dataclass(frozen=True)
class Judged:
  """Queries as document indices of one index."""

  texts: list[str]
  relevant: list[list[int]]
  grades: list[list[int]]


def methods_of(config: Any, mask_id: int) -> tuple[Method, ...]:
  """The decodings of a config: one-pass, plain and corrected, top-k, and T steps with and without the constraint.

  An autoregressive model has its beams.
  """
  if config.paradigm == AUTOREGRESSIVE:
    return tuple(
      Method(f"beam {width}", options=BeamOptions(int(width)), constrained=True) for width in config.beam_widths
    )
  policy = make_policy(config.policy, config.threshold)
  options = DecodeOptions(policy=policy, mask_id=mask_id, remask=config.remask)
  steps, name = config.decode_steps, f"{config.policy}, {config.decode_steps} steps"
  ranking = [Method("one-pass")]
  if config.prior_weight:
    ranking.append(Method("one-pass, prior-corrected", prior_weight=config.prior_weight))
  if config.topk_steps:
    topk = TopKOptions(
      make_policy(config.topk_policy, config.threshold),
      mask_id,
      config.topk_steps,
      config.topk_beam,
      config.topk_commit,
    )
    label = f"top-k, {topk.steps} steps, beam {topk.beam}"
    ranking.append(Method(label, topk.steps, topk, constrained=True, prior_weight=config.prior_weight))
  return (
    *ranking,
    Method(f"{name}, constrained", steps, options, constrained=True),
    Method(f"{name}, free", steps, options),
  )


def judge(queries: Sequence[Query], index: DocIdIndex) -> Judged:
  """Looks the relevant documents up.

  Raises:
    ValueError: a query whose document the index does not have.
  """
  place = {doc_id: i for i, doc_id in enumerate(index.doc_ids)}
  judged = Judged([], [], [])
  for query in queries:
    if missing := [doc_id for doc_id in query.doc_ids if doc_id not in place]:
      raise ValueError(f"query {query.query_id} names document {missing[0]}, which the index does not have")
    judged.texts.append(query.query)
    judged.relevant.append([place[doc_id] for doc_id in query.doc_ids])
    judged.grades.append(list(query.grades) or [1] * len(query.doc_ids))
  return judged


def evaluate_method(
  run: Run, params: Any, method: Method, judged: Judged, index: DocIdIndex
) -> tuple[Metrics, dict[str, np.ndarray]]:
  """Ranks and measures all queries with one decoding.

  Returns:
    Means, with forwards per query and queries/s (compilation apart), and the metrics of each query.
  """
  shards = split_of("batch", run.config.decode_rules)
  batch = -(-run.config.eval_batch_size // shards) * shards  # filled up where the mesh does not divide it
  prompts = encode_prompts(judged.texts, run.vocab, run.config.prompt_length)
  device_index = run.device_index(index)
  same_as = shared_identifiers(np.where(index.scored, index.codes, -1))
  if method.options is None:
    answer = functools.partial(_place_one_pass, run, params, device_index, method, same_as)
  elif isinstance(method.options, BeamOptions):
    answer = functools.partial(_place_beams, run, params, build_trie(index), method)
  elif isinstance(method.options, TopKOptions):
    answer = functools.partial(_place_topk, run, params, device_index, method, same_as)
  else:
    answer = functools.partial(_place_generated, run, params, device_index, method)

  parts: list[Placements] = []
  exists, forwards = [], []
  answer(_rows(prompts, 0, batch), judged, slice(0, 1))  # compiles
  began = time.perf_counter()
  for start in range(0, len(prompts), batch):
    part, valid, spent = answer(_rows(prompts, start, batch), judged, slice(start, min(start + batch, len(prompts))))
    parts.append(part)
    exists.append(valid)
    forwards.append(spent)
  seconds = time.perf_counter() - began

  per_query = retrieval_metrics(join_placements(parts), relevant_grade=run.config.relevant_grade)
  if not method.ranks:  # one document a query: only its first place means anything
    per_query = {name: values for name, values in per_query.items() if name == "Hit@1"}
  figures = means(per_query)
  if not method.ranks and not method.constrained:
    figures["invalid"] = invalid_rate(np.concatenate(exists))
  figures |= {
    "forwards": float(np.concatenate(forwards).mean()),
    "queries/s": len(prompts) / seconds,
    "queries": len(prompts),
  }
  return figures, per_query


def quick_metrics(run: Run, params: Any, collection: Collection, limit: int = 512) -> Metrics:
  """Hit@1 and MRR@100 of one pass (or the widest beam) on validation queries, to watch a run; nothing without any.

  They are the first `limit` queries of the splits whose names begin with "valid", taken in turn.
  """
  splits = [queries for name, queries in collection.queries.items() if name.startswith("valid")]
  queries = [query for rank in itertools.zip_longest(*splits) for query in rank if query is not None][:limit]
  if not queries:
    return {}
  method = Method("one-pass", prior_weight=run.config.prior_weight)
  if run.autoregressive:
    method = Method("beam", options=BeamOptions(int(max(run.config.beam_widths))))
  figures, _ = evaluate_method(run, params, method, judge(queries, run.index), run.index)
  return {f"valid {name}": figures[name] for name in ("Hit@1", "MRR@100")}


def _rows(prompts: np.ndarray, start: int, batch: int) -> np.ndarray:
  """A batch of fixed size: the last one is filled up with its own last row."""
  rows = prompts[start : start + batch]
  return np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows), axis=0)])


def _place_one_pass(run, params, index, method, same_as, prompts, judged, which):
  scores = one_pass_scores(
    params,
    jnp.asarray(prompts),
    index["codes"],
    index["scored"],
    run.banned,
    method.prior_weight * index["log_frequency"],
    denoise=run.denoiser,
    mask_id=run.mask_id,
  )
  count = which.stop - which.start
  part = place_in_scores(fetch(scores)[:count], judged.relevant[which], judged.grades[which], same_as)
  return part, np.ones(count, bool), np.ones(count)


def _place_topk(run, params, index, method, same_as, prompts, judged, which):
  """All documents by their scores: those that the search never looked into have one too."""
  codes = index["codes"]
  ranked = decode_topk(
    params,
    prompts,
    np.arange(which.start, which.start + len(prompts)),
    codes,
    index["scored"],
    run.banned,
    method.prior_weight * index["log_frequency"],
    denoise=run.denoiser,
    options=method.options,
    k=len(codes),
  )
  count = which.stop - which.start
  scores = np.empty((len(prompts), len(codes)), np.float32)
  np.put_along_axis(scores, fetch(ranked.document), fetch(ranked.log_probability), axis=1)
  part = place_in_scores(scores[:count], judged.relevant[which], judged.grades[which], same_as)
  return part, np.ones(count, bool), fetch(ranked.canvases)[:count]


def _place_beams(run, params, trie, method, prompts, judged, which):
  """The documents of the beams; all of an identifier's documents tie."""
  width, count = method.options.width, which.stop - which.start
  beams = decode_beams(
    params, prompts, prompts != run.vocab.pad_id, run.banned, trie, config=run.model, width=width, renormalise=True
  )
  found, scores = fetch(beams.document)[:count], fetch(beams.score)[:count]
  part = place_in_ranking(*_spread(found, scores, trie.leaf), judged.relevant[which], judged.grades[which])
  return part, np.ones(count, bool), np.full(count, 1 + (trie.depth - 1) * width)


def _spread(found, scores, leaf):
  """Puts every document behind its identifier's: with collisions, a leaf of the trie stands for several."""
  order = np.argsort(leaf, kind="stable")
  first, size = np.searchsorted(leaf[order], leaf), np.bincount(leaf)
  most = int(size.max())
  listed = np.full((len(found), found.shape[1], most), -1)
  for place in range(most):
    there = (found >= 0) & (size[leaf[found]] > place)
    listed[..., place] = np.where(there, order[np.minimum(first[found] + place, len(leaf) - 1)], -1)
  return listed.reshape(len(found), -1), np.repeat(scores, most, axis=1)


def _place_generated(run, params, index, method, prompts, judged, which):
  codes, scored = index["codes"], index["scored"]
  state = decode_canvas(
    params,
    prompts,
    np.full((len(prompts), codes.shape[1]), run.mask_id, np.int32),
    np.arange(which.start, which.start + len(prompts)),
    run.banned,
    denoise=run.denoiser,
    options=method.options,
    steps=method.steps,
    codes=codes if method.constrained else None,
    rows=index["rows"] if method.constrained else None,
  )
  count = which.stop - which.start
  matches = np.asarray(matching_documents(state.canvas, codes, scored))[:count]
  # Every document with this DocID is listed with the same score: they tie, as collisions should.
  order = np.argsort(~matches, axis=1, kind="stable")[:, : max(int(matches.sum(axis=1).max(initial=0)), 1)]
  listed = np.where(np.take_along_axis(matches, order, axis=1), order, -1)
  part = place_in_ranking(listed, np.zeros(listed.shape), judged.relevant[which], judged.grades[which])
  return part, matches.any(axis=1), np.asarray(forwards_per_row(state))[:count]
