"""What the training loop asks of a stage.

step:   prepare (draw what is drawn, for the GLOBAL batch)  ->  loss of each microbatch  ->  the parts add up
"""

from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Key

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params

Batch = dict[str, jax.Array]
Metrics = dict[str, Float[Array, ""]]


@runtime_checkable
class Stage(Protocol):
  """A batch contract and a loss; hashable, so that a jitted step takes it as a static argument."""

  @property
  def model(self) -> TransformerConfig:
    """The model as it is trained."""
    ...

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Draws what a step draws, and counts the targets (or their weights) of the global batch."""
    ...

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """Loss of a (micro)batch that `prepare` made. Losses, gradients and metrics of the parts of a batch add up.

    Args:
      params: the model's parameters.
      batch: as prepared.
      shared: what every step reads beside its batch.
      target_count: of the whole global batch.
      row_count: rows of the whole global batch.
    """
    ...
