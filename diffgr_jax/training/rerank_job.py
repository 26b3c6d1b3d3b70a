"""Re-ranking as a job: packed messages, starts, and the valid lists that are watched."""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh
import numpy as np

from diffgr_jax.data.packing import Example, PackedRows, RowShape, fitting
from diffgr_jax.data.pipeline import row_batches
from diffgr_jax.evaluation.rerank_answers import quick_figures
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.flops import train_step_flops
from diffgr_jax.models.transformer import Params
from diffgr_jax.parallel.distributed import process_rows
from diffgr_jax.stages.stage import Batch
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.fields import Config
from diffgr_jax.training.rerank_examples import training_examples
from diffgr_jax.training.rerank_options import CFT, CONVERT, check_mesh
from diffgr_jax.training.rerank_run import RerankRun, RerankStage, open_rerank, prepare_rerank
from diffgr_jax.training.speed import Work
from diffgr_jax.training.start import pretrained_folder, start_at_pretrained


@dataclass(frozen=True)
class RerankJob:
  """See `Job`."""

  run: RerankRun
  examples: Sequence[Example]

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
  def stage(self) -> RerankStage:
    return self.run.stage

  def check_mesh(self, mesh: Mesh) -> None:
    check_mesh(self.config, self.model, mesh)

  def batches(self, mesh: Mesh) -> grain.DatasetIterator:
    config = self.config
    shape = row_shape(config, self.run.vocab.pad_id)
    examples = fitting(self.examples, shape)
    rows = PackedRows(examples, shape, config.seed)
    if jax.process_index() == 0:
      long = len(self.examples) - len(examples)
      left_out = f" ({long} too long for a row are left out)" if long else ""
      tokens = sum(len(example.tokens) for example in examples)
      filled = tokens / rows.rows_an_epoch() / config.row_length
      print(
        f"{len(examples)} examples{left_out} in {rows.rows_an_epoch()} rows an epoch, {filled:.0%} filled", flush=True
      )
    return row_batches(rows, process_rows(mesh, config.batch_size), config.batch_size)

  def shared(self, mesh: Mesh) -> Batch:
    return {}

  def starting(self, fresh: Params, shardings: Any) -> Params:
    config = self.config
    if config.start == "run":
      first = open_rerank(Path(config.start_from))
      params, step = restore_params(first.workdir, first.model, shardings=shardings)
      if jax.process_index() == 0:
        print(f"starts from step {step} of {config.start_from}", flush=True)
      return params
    if config.start == "pretrained":
      rows = self.run.codes + self.run.vocab.docid_token(0, 0)  # no title tokens: only counted for a new head
      return start_at_pretrained(pretrained_folder(config.pretrained), self.run.vocab, rows, shardings)
    return fresh

  def watch(self, params: Params) -> dict[str, float]:
    return quick_figures(self.run, params)

  def work(self, rows: dict[str, np.ndarray]) -> Work:
    """Tokens are those of messages (once, also where two streams read them)."""
    config, tokens = self.config, int((rows["segment"] > 0).sum())
    share = config.batch_size / len(rows["segment"])
    flops = training_flops(config, self.model)
    return Work(1, config.batch_size, share * tokens, float(config.batch_size * flops))


def training_flops(config: Config, model: TransformerConfig) -> int:
  """Operations of a training step on one full row; packed messages count as one (an upper bound of their attention)."""
  cft = config.stage == CFT
  flops = _flops(model, cft, config.block_size, config.row_length, config.target_length)
  return flops * (2 if cft and config.complementary else 1)


@functools.lru_cache(maxsize=8)
def _flops(model: TransformerConfig, cft: bool, block_size: int, row_length: int, target_length: int) -> int:
  if not cft:
    return train_step_flops(model, 1, row_length, "causal", logits_positions=target_length)
  clean = train_step_flops(model, 1, row_length, "block_causal", block_size=block_size, logits_positions=0)
  noisy = train_step_flops(model, 1, target_length, "block_causal", block_size=block_size)
  across = 4 * model.n_layers * model.n_heads * model.head_dim * target_length * (row_length - target_length)
  return clean + noisy + 3 * across


def rollout_flops(config: Config, model: TransformerConfig, length: int, copies: int) -> int:
  """Operations of a training step on one rollout (its writing and its scores are not counted): a row, and the noisy
  copies of its blocks."""
  if model.pattern == "causal":
    return _flops(model, False, 1, length, config.max_new_tokens)
  return _flops(model, True, config.block_size, length, copies * config.block_size)


def row_shape(config: Config, pad_id: int) -> RowShape:
  """Of the rows that the config's stage reads."""
  align = config.block_size if config.stage in (CONVERT, CFT) else 1
  return RowShape(config.row_length, config.target_length, align, pad_id)


def rerank_job(config: Config, workdir: Path) -> RerankJob:
  """Builds, or reads, the run and its examples.

  Raises:
    ValueError: validation is to be watched in a job of several processes; and what `prepare_rerank` raises.
  """
  if config.eval_every and jax.process_count() > 1:
    raise ValueError("config.eval_every must be 0 in a job of several processes: lists are decoded by one")
  run = prepare_rerank(config, workdir)
  return RerankJob(run, training_examples(run) if config.steps else ())
