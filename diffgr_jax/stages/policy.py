"""A model as the policy that wrote a trajectory: the states that its tokens are scored on, and their log-probabilities.

One interface for the autoregressive teacher and for the block-diffusion student, so that OPD and RL are written once.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffgr_jax.decoding.trajectory import generated, is_generated
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Transformer
from diffgr_jax.stages.replay import (
  REPLAY,
  Copies,
  causal_states,
  combined,
  copied_states,
  drawn_copies,
  replayed_copies,
  token_log_probs,
)
from diffgr_jax.stages.stage import Batch


@dataclass(frozen=True)
class Policy:
  """How a model writes, as far as its trajectories' log-probabilities depend on it.

  Attributes:
    model: whose pattern says whether it writes token by token (causal) or block by block.
    room: new tokens of a trajectory, at most.
    mask_id: MASK.
    block_size: of a block model.
    temperature: that tokens were drawn at.
    estimator: of a block model's log-probabilities (stages/replay.py).
    draws: canvases of the estimators `elbo` and `sandwiched`.
    beta, mix: of `sandwiched`: the power of its upper bound, and the share of that bound.
  """

  model: TransformerConfig
  room: int
  mask_id: int
  block_size: int = 1
  temperature: float = 1.0
  estimator: str = REPLAY
  draws: int = 2
  beta: float = 1.5
  mix: float = 0.5

  @property
  def in_blocks(self) -> bool:
    return self.model.pattern != "causal"

  def copies(self, batch: Batch) -> Copies:
    """The canvases of a block model's tokens."""
    if self.estimator == REPLAY:
      return replayed_copies(batch, self.block_size, self.room)
    return drawn_copies(batch, self.block_size, self.room, self.estimator, self.draws)

  def states(self, model: Transformer, batch: Batch) -> Float[Array, "B G D"]:
    """The hidden states that the tokens were drawn from."""
    if not self.in_blocks:
      return causal_states(model, batch, self.room)
    copies = replayed_copies(batch, self.block_size, self.room)
    return copied_states(model, batch, copies, self.block_size, self.mask_id)[:, 0]

  def are_read(self, batch: Batch) -> Bool[Array, "B G"]:
    """Which places hold a token that `states` is about: a generated one, of a pass that is replayed."""
    if not self.in_blocks:
      return is_generated(batch["length"], self.room)
    return replayed_copies(batch, self.block_size, self.room).weight[:, 0] > 0

  def log_probs(self, model: Transformer, batch: Batch, banned: Bool[Array, "V"]) -> Float[Array, "B G"]:
    """log p of each generated token, by the estimator; what is not generated has some number."""
    tokens = generated(batch["tokens"], batch["start"], self.room)
    if not self.in_blocks:
      return token_log_probs(model, self.states(model, batch), tokens, banned, self.temperature)
    copies = self.copies(batch)
    states = copied_states(model, batch, copies, self.block_size, self.mask_id)
    rows, readings, room, width = states.shape
    every = jnp.broadcast_to(tokens[:, None], (rows, readings, room)).reshape(rows, -1)
    found = token_log_probs(model, states.reshape(rows, -1, width), every, banned, self.temperature)
    found = found.reshape(rows, readings, room)
    advantage = batch["advantage"] if "advantage" in batch else jnp.zeros(rows)
    return combined(found, copies.weight, self.estimator, advantage, self.beta, self.mix)
