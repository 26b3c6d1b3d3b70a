"""A job: what one kind of run brings to the training loop, which is the same for all.

config.task   docid    docid_job.py    identifiers of documents
              rerank   rerank_job.py   messages of a re-ranker: mid-training, SFT, conversion, CFT
                       rerank_rollouts.py   what it writes itself: on-policy distillation, RL
"""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import grain
from jax.sharding import Mesh
import numpy as np

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params
from diffgr_jax.stages.stage import Batch, Stage
from diffgr_jax.training.fields import Config
from diffgr_jax.training.speed import Work


@runtime_checkable
class Job(Protocol):
  """A run with its data, ready to be trained."""

  @property
  def config(self) -> Config: ...

  @property
  def workdir(self) -> Path: ...

  @property
  def model(self) -> TransformerConfig: ...

  @property
  def stage(self) -> Stage: ...

  def check_mesh(self, mesh: Mesh) -> None:
    """Raises ValueError, with the numbers, where the mesh does not divide what the rules split over it."""
    ...

  def batches(self, mesh: Mesh) -> grain.DatasetIterator:
    """This process's rows of an endless stream of batches; `next_index` of its state is its position."""
    ...

  def shared(self, mesh: Mesh) -> Batch:
    """What every step reads beside its batch, on the devices."""
    ...

  def starting(self, fresh: Params, shardings: Any) -> Params:
    """The parameters that training starts from, in place of freshly drawn ones."""
    ...

  def watch(self, params: Params) -> dict[str, float]:
    """A quick look at validation, while training."""
    ...

  def work(self, rows: dict[str, np.ndarray]) -> Work:
    """What one step on this batch does, of which these are the process's rows."""
    ...


@runtime_checkable
class RollsOut(Protocol):
  """A job that learns from what its model writes: its stream of batches says what is to be written."""

  def roll_out(self, params: Params, step: int, mesh: Mesh) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What step `step` learns from, written with `params` or (several steps a round) earlier ones; and its figures."""
    ...

  def settle(self, mesh: Mesh) -> None:
    """Called before a checkpoint: everything that a resumed run will not write again has to be kept."""
    ...
