"""Reinforcement learning on rollouts, for the autoregressive teacher and for the block-diffusion student alike.

    G rollouts of a prompt, with rewards   ->  advantage = reward - mean of the group (/ its deviation)
    ratio r = p_new(token) / p_old(token)      each on the canvas that the estimator says (stages/replay.py)
    loss   - min(r A, clip(r, 1 - low, 1 + high) A)  + kl_weight * KL to a frozen reference, of each generated token

GRPO (arXiv 2402.03300) averages a rollout's tokens, then the rollouts; DAPO (arXiv 2503.14476) averages over all
tokens, clips further upwards than downwards, and drops groups of equal reward, which teach nothing and would only
dilute the mean; Dr. GRPO (arXiv 2503.20783) divides by constants, as any other normaliser depends on what was written.
Rollouts that are not valid keep their reward of -1 and stay in their group (Diffusion-GR2, arXiv 2607.01170).

Batch contract: that of stages/replay.py, and `advantage` Float[B], `kept` Bool[B] (False: its group is dropped),
`old_log_prob` Float[B, G], `row_seed` Int[B]; with a KL, `reference_log_prob` Float[B, G].
"""

from dataclasses import dataclass
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key
import numpy as np

from diffgr_jax.decoding.trajectory import is_generated
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, bind
from diffgr_jax.stages.opd import banned_rows
from diffgr_jax.stages.policy import Policy
from diffgr_jax.stages.stage import Batch, Metrics

AGGREGATES = ("token", "sequence", "constant")
_LOG_RATIO = 10.0  # log-ratios are cut there (TraceRL): beyond it exp() says nothing


@dataclass(frozen=True)
class RlStage:
  """See the module."""

  policy: Policy
  banned: tuple[int, ...]  # tokens that are never written
  clip_low: float = 0.2
  clip_high: float = 0.28
  aggregate: str = "token"  # token (DAPO) | sequence (GRPO) | constant (Dr. GRPO)
  kl_weight: float = 0.0

  def __post_init__(self):
    if self.aggregate not in AGGREGATES:
      raise ValueError(f"RlStage.aggregate is one of {', '.join(AGGREGATES)}, not {self.aggregate!r}")

  @property
  def model(self) -> TransformerConfig:
    return self.policy.model

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Nothing is drawn; counts what the loss is divided by."""
    del key
    kept, room = batch["kept"], self.policy.room
    if self.aggregate == "token":
      return batch, jnp.where(kept, batch["length"], 0).sum().astype(jnp.float32)
    return batch, kept.sum() * jnp.float32(room if self.aggregate == "constant" else 1)

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """The clipped surrogate, and what to watch of it."""
    del shared, row_count
    new = self.policy.log_probs(bind(self.model, params), batch, banned_rows(self.model, self.banned))
    here = is_generated(batch["length"], self.policy.room) & batch["kept"][:, None]
    log_ratio = jnp.where(here, new - batch["old_log_prob"], 0.0)
    ratio = jnp.exp(jnp.clip(log_ratio, -_LOG_RATIO, _LOG_RATIO))
    advantage = batch["advantage"][:, None]
    cut = jnp.clip(ratio, 1.0 - self.clip_low, 1.0 + self.clip_high)
    each = -jnp.minimum(ratio * advantage, cut * advantage)
    weight = here / jnp.maximum(target_count, 1.0)
    if self.aggregate == "sequence":
      weight = weight / jnp.maximum(batch["length"], 1)[:, None]
    mean = lambda x: jnp.where(here, weight * x, 0.0).sum()
    metrics = {
      "clipped": mean((ratio * advantage > cut * advantage).astype(jnp.float32)),
      "ratio_off": mean(jnp.abs(ratio - 1.0)),
    }
    loss = mean(each)
    if self.kl_weight:
      kl = mean(k3(jnp.where(here, new, 0.0), jnp.where(here, batch["reference_log_prob"], 0.0)))
      loss, metrics["kl"] = loss + self.kl_weight * kl, kl
    return loss, {"loss": loss} | metrics


def k3(new: Float[Array, "B G"], reference: Float[Array, "B G"]) -> Float[Array, "B G"]:
  """An estimate of KL(new || reference) from a token of the new policy: never below 0 (Schulman's k3)."""
  gap = jnp.clip(reference - new, -_LOG_RATIO, _LOG_RATIO)
  return jnp.exp(gap) - gap - 1.0


@functools.partial(jax.jit, static_argnames=("policy", "banned"))
def score(params: Params, batch: Batch, *, policy: Policy, banned: tuple[int, ...]) -> Float[Array, "B G"]:
  """log p of the generated tokens under other parameters: those of before an update, or a reference's."""
  return policy.log_probs(bind(policy.model, params), batch, banned_rows(policy.model, banned))


def group_advantages(
  rewards: Float[np.ndarray, "B"], group: int, *, scale: bool = True, epsilon: float = 1e-4
) -> tuple[Float[np.ndarray, "B"], Bool[np.ndarray, "B"]]:
  """Advantages of rollouts that stand group after group, and which groups are worth keeping: those that differ.

  Args:
    rewards: of each rollout.
    group: rollouts of one prompt.
    scale: divides by the group's standard deviation (GRPO, DAPO); without it, Dr. GRPO.
    epsilon: added to the deviation.
  """
  of_groups = rewards.reshape(-1, group).astype(np.float64)
  differ = np.ptp(of_groups, axis=1, keepdims=True) > 0
  advantage = of_groups - of_groups.mean(axis=1, keepdims=True)
  if scale:
    advantage = advantage / (of_groups.std(axis=1, keepdims=True) + epsilon)
  keep = np.broadcast_to(differ, of_groups.shape)
  return np.where(keep, advantage, 0.0).reshape(-1).astype(np.float32), keep.reshape(-1).copy()
