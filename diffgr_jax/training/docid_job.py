"""DocID retrieval as a job: batches of prompts and identifiers, starts, and the validation that is watched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from diffgr_jax.data.pipeline import asked_documents, document_shares, make_train_iterator
from diffgr_jax.data.pseudo_queries import read_generated
from diffgr_jax.data.records import Collection
from diffgr_jax.evaluation.generative import quick_metrics
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params
from diffgr_jax.parallel.distributed import process_rows
from diffgr_jax.parallel.rules import replicated
from diffgr_jax.stages.docid import DocIdStage, masked_rows
from diffgr_jax.stages.stage import Batch
from diffgr_jax.training.fields import Config
from diffgr_jax.training.options import check_mesh
from diffgr_jax.training.run import Run, prepare_run
from diffgr_jax.training.speed import Work, work_of_batch
from diffgr_jax.training.start import starting_params


@dataclass(frozen=True)
class DocIdJob:
  """See `Job`."""

  run: Run
  collection: Collection

  @property
  def config(self) -> Config:
    return self.run.config

  @property
  def workdir(self) -> Path:
    return self.run.workdir

  @property
  def model(self) -> TransformerConfig:
    return self.run.model

  @property
  def stage(self) -> DocIdStage:
    return self.run.stage

  def check_mesh(self, mesh: Mesh) -> None:
    check_mesh(self.config, self.model, self.run.index.canvas_length, mesh)

  def batches(self, mesh: Mesh) -> grain.DatasetIterator:
    config = self.config
    return make_train_iterator(
      self.collection,
      self.run.vocab,
      self.run.index,
      batch_size=config.batch_size,
      prompt_length=config.prompt_length,
      mixture=_usable_mixture(config.mixture.to_dict(), self.collection),
      seed=config.seed,
      rows=process_rows(mesh, config.batch_size),
      generated=_generated_queries(config, self.run),
    )

  def shared(self, mesh: Mesh) -> Batch:
    """The index of DocIDs, which only the document-level term reads in a step."""
    if not self.config.document_weight:
      return {}
    mixture = _usable_mixture(self.config.mixture.to_dict(), self.collection)
    of_documents = {"asked": asked_documents(self.collection), "share": document_shares(self.collection, mixture)}
    index = self.run.device_index() | {name: jnp.asarray(values) for name, values in of_documents.items()}
    return jax.device_put(index, replicated(mesh))

  def starting(self, fresh: Params, shardings: Any) -> Params:
    run = self.run
    return starting_params(fresh, run.config, run.model, run.vocab, run.docid_tokens, self.collection, shardings)

  def watch(self, params: Params) -> dict[str, float]:
    return quick_metrics(self.run, params, self.collection)

  def work(self, rows: dict[str, np.ndarray]) -> Work:
    return work_of_batch(
      rows["prompt"],
      canvas_length=self.run.index.canvas_length,
      pad_id=self.run.vocab.pad_id,
      batch_size=self.config.batch_size,
      model=self.model,
      pattern=self.run.pattern,
      masked=masked_rows(self.stage.masked_share, self.config.batch_size),
    )


def docid_job(config: Config, workdir: Path) -> DocIdJob:
  """Builds, or reads, what the run needs (`prepare_run`)."""
  return DocIdJob(*prepare_run(config, workdir))


def _generated_queries(config: Config, run: Run) -> list[list[str]]:
  """What config.pseudo_queries names, by document; nothing where pseudo-queries are sentences and spans."""
  if config.pseudo_queries == "spans":
    return []
  queries, skipped = read_generated(config.pseudo_queries, run.index.doc_ids, config.on_bad_row)
  having = sum(map(bool, queries))
  left_out = "".join(f", {count} skipped ({kind})" for kind, count in sorted(skipped.items()))
  print(f"{config.pseudo_queries}: queries for {having} of {len(queries)} documents{left_out}", flush=True)
  return queries


def _usable_mixture(mixture: dict[str, float], collection: Collection) -> dict[str, float]:
  """Leaves training queries out of the mixture where the data has none, and says so."""
  if mixture.get("queries") and not collection.queries.get("train"):
    print("the data has no training queries: their share of config.mixture goes to the other sources", flush=True)
    return mixture | {"queries": 0.0}
  return mixture
