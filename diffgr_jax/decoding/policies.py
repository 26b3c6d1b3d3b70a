"""Unmasking policies: which MASK positions are committed at a step.

A policy answers two questions, both without knowing the model or the decoder:

    priority   how urgent is each position?              from `Stats`, computed once from the logits
    takes      does the position of rank r go now?       from its priority, its rank, and the step's quota

    confidence  .9  .2  .6  .4         Confidence, quota 2:  ranks 0 and 2 -> positions 0 and 2
    rank         0   3   1   2         Threshold(0.5):       best, and all above 0.5 -> positions 0 and 2
    commit       x   .   x   .

The quota is the row's own, from the decoder's schedule (schedules.py). `takes` must not skip a rank (a position never
goes before a more urgent one), and it works element by element, so the same policy serves a decoder that commits a
whole step at once (`commit_together`) and one that commits position after position (`constraint.commit_in_turn`); a
policy that has to look at the whole row says so with `whole_row = True`, and the latter refuses it. A new policy is ten
lines:

    @dataclass(frozen=True)
    class RightToLeft:
      def priority(self, stats, row_keys):
        return jnp.broadcast_to(jnp.arange(stats.confidence.shape[1], dtype=jnp.float32), stats.confidence.shape)

      def takes(self, priority, rank, quota):
        return rank < quota

The statistics are those of the model's distribution at temperature 1, restricted to the tokens that are allowed, also
when tokens are sampled at another temperature: temperature changes what is committed, not how sure the model is.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffgr_jax.decoding.sampling import most_likely


@struct.dataclass
class Stats:
  """How sure the model is at each position."""

  confidence: Float[Array, "B L"]  # probability of the most likely token
  margin: Float[Array, "B L"]  # that, minus the probability of the second most likely
  entropy: Float[Array, "B L"]  # in nats


@struct.dataclass
class Budget:
  """How many positions a step may and must commit, per row."""

  quota: Int[Array, "B"]  # what the schedule asks for
  floor: Int[Array, "B"]  # committed whatever the policy says: all that is left at the last step, otherwise 0
  spare: Int[Array, "B"]  # earlier commitments that may be reopened; each is paid for by one more commitment


@struct.dataclass
class Commits:
  """What one step writes into the canvas."""

  chosen: Bool[Array, "B L"]
  tokens: Int[Array, "B L"]  # read where chosen
  confidence: Float[Array, "B L"]  # probability of that token, read where chosen
  extra: Int[Array, "B"]  # how many of the chosen pay for positions that are to be reopened


@runtime_checkable
class Policy(Protocol):
  """Chooses the masked positions to commit at one step."""

  def priority(self, stats: Stats, row_keys: Key[Array, "B"]) -> Float[Array, "B L"]:
    """Returns the urgency of each position: the highest masked one goes first, the leftmost among equals."""
    ...

  def takes(
    self, priority: Float[Array, "B L"], rank: Int[Array, "B L"], quota: Int[Array, "B 1"]
  ) -> Bool[Array, "B L"]:
    """Returns whether a position with this priority and rank (0: most urgent) is committed now."""
    ...


@dataclass(frozen=True)
class Random:
  """Commits `quota` positions drawn uniformly, from the row's own key (the ancestral sampler of masked diffusion)."""

  def priority(self, stats, row_keys):
    length = stats.confidence.shape[1]
    return jax.vmap(lambda key: jax.random.uniform(key, (length,)))(row_keys)

  def takes(self, priority, rank, quota):
    return rank < quota


@dataclass(frozen=True)
class Confidence:
  """Commits the `quota` positions whose most likely token is most probable (MaskGIT, arXiv 2202.04200; LLaDA)."""

  def priority(self, stats, row_keys):
    return stats.confidence

  def takes(self, priority, rank, quota):
    return rank < quota


@dataclass(frozen=True)
class Margin:
  """Commits the `quota` positions with the largest gap between their two best tokens (arXiv 2502.06768)."""

  def priority(self, stats, row_keys):
    return stats.margin

  def takes(self, priority, rank, quota):
    return rank < quota


@dataclass(frozen=True)
class Entropy:
  """Commits the `quota` positions of least entropy (an option of Dream, arXiv 2508.15487)."""

  def priority(self, stats, row_keys):
    return -stats.entropy

  def takes(self, priority, rank, quota):
    return rank < quota


@dataclass(frozen=True)
class Threshold:
  """Commits every position above `tau`, and always the most confident one (Fast-dLLM, arXiv 2505.22618).

  It needs no schedule: easy rows take few steps. The comparison is strict, so that tau = 1 commits one position a step
  even where the float32 softmax saturates at 1.
  """

  tau: float

  def __post_init__(self):
    if not 0.0 < self.tau <= 1.0:
      raise ValueError(f"Threshold.tau is {self.tau}; it must be a probability in (0, 1]")

  def priority(self, stats, row_keys):
    return stats.confidence

  def takes(self, priority, rank, quota):
    return (rank == 0) | (priority > self.tau)


@dataclass(frozen=True)
class Sequential:
  """Commits the `quota` leftmost positions (SDAR's "sequential", arXiv 2510.06303)."""

  def priority(self, stats, row_keys):
    place = jnp.arange(stats.confidence.shape[1], dtype=jnp.float32)
    return -jnp.broadcast_to(place[None], stats.confidence.shape)

  def takes(self, priority, rank, quota):
    return rank < quota


@dataclass(frozen=True)
class Dynamic:
  """Commits every position above `tau`, or the `quota` most confident ones if those are fewer.

  SDAR's "low confidence dynamic" (arXiv 2510.06303). With a quota of 1 it is `Threshold`.
  """

  tau: float

  def __post_init__(self):
    if not 0.0 < self.tau <= 1.0:
      raise ValueError(f"Dynamic.tau is {self.tau}; it must be a probability in (0, 1]")

  def priority(self, stats, row_keys):
    return stats.confidence

  def takes(self, priority, rank, quota):
    return (rank < quota) | (priority > self.tau)


@dataclass(frozen=True)
class Factor:
  """Commits the n most confident positions for the largest n with (n + 1) (1 - n-th confidence) < `factor`; at least 1.

  The bound under which n positions committed together are those of a greedy decoding one by one (Fast-dLLM,
  arXiv 2505.22618, theorem 1 and its factor-based decoding).
  """

  factor: float

  def __post_init__(self):
    if not self.factor > 0.0:
      raise ValueError(f"Factor.factor is {self.factor}; it must be above 0")

  def priority(self, stats, row_keys):
    return stats.confidence

  def takes(self, priority, rank, quota):
    return (rank == 0) | ((rank + 2) * (1.0 - priority) < self.factor)


@dataclass(frozen=True)
class EntropyBounded:
  """Commits the positions of least entropy while the sum of their entropies, less the largest, is at most `bound`.

  The sum bounds the mutual information between what is committed together (EB-Sampler, arXiv 2505.24857, equation 8).
  The first position always goes: alone, its sum less its maximum is 0.
  """

  bound: float  # in nats
  whole_row = True  # the sum runs over the other positions

  def __post_init__(self):
    if not self.bound >= 0.0:
      raise ValueError(f"EntropyBounded.bound is {self.bound}; it must be 0 (one position a step) or more")

  def priority(self, stats, row_keys):
    return -stats.entropy

  def takes(self, priority, rank, quota):
    by_rank = jnp.take_along_axis(-priority, jnp.argsort(rank, axis=-1), axis=-1)
    before = jnp.cumsum(by_rank, axis=-1) - by_rank  # entropies rise with rank: the last one is the maximum
    return (rank == 0) | (jnp.take_along_axis(before, rank, axis=-1) <= self.bound)


@dataclass(frozen=True)
class Prefix:
  """Commits from the left for as long as every position is above `tau`, and always the first.

  What is committed has no gaps, as an autoregressive model would have left it: for models that were converted from one,
  and that read a canvas with gaps less well.
  """

  tau: float
  whole_row = True  # a position goes only with all before it

  def __post_init__(self):
    if not 0.0 < self.tau <= 1.0:
      raise ValueError(f"Prefix.tau is {self.tau}; it must be a probability in (0, 1]")

  def priority(self, stats, row_keys):
    # By place, from the left; the half that is added where the model is sure changes no rank.
    place = jnp.arange(stats.confidence.shape[1], dtype=jnp.float32)
    return jnp.where(stats.confidence > self.tau, 0.5, 0.0) - place[None]

  def takes(self, priority, rank, quota):
    sure = priority > jnp.floor(priority)
    first_unsure = jnp.min(jnp.where(sure, rank.shape[-1], rank), axis=-1, keepdims=True)
    return (rank == 0) | (rank < first_unsure)


POLICIES = {
  "random": Random, "confidence": Confidence, "margin": Margin, "entropy": Entropy, "sequential": Sequential,
  "threshold": Threshold, "dynamic": Dynamic, "factor": Factor, "entropy_bounded": EntropyBounded,
  "prefix": Prefix,
}  # fmt: skip
_WITH_THRESHOLD = ("threshold", "dynamic", "factor", "entropy_bounded", "prefix")


def make_policy(name: str, threshold: float) -> Policy:
  """Builds the policy that a config or flag names.

  Args:
    name: one of `POLICIES`.
    threshold: tau of threshold, dynamic and prefix, the factor of factor, the bound of entropy_bounded; the others
      ignore it.

  Raises:
    ValueError: an unknown name, or a threshold out of the policy's range.
  """
  if name not in POLICIES:
    raise ValueError(f"policy is one of {', '.join(POLICIES)}, not {name!r}")
  return POLICIES[name](threshold) if name in _WITH_THRESHOLD else POLICIES[name]()


def position_stats(log_probs: Float[Array, "B L V"]) -> Stats:
  """Computes what policies look at. Tokens at -inf count as absent; a position with one token left has entropy 0."""
  best = most_likely(log_probs)[..., None]
  confidence = jnp.exp(log_probs.max(axis=-1))
  is_best = jax.lax.broadcasted_iota(best.dtype, log_probs.shape, 2) == best
  second = jnp.exp(jnp.where(is_best, -jnp.inf, log_probs).max(axis=-1))
  entropy = -jnp.where(log_probs > -jnp.inf, jnp.exp(log_probs) * log_probs, 0.0).sum(axis=-1)
  return Stats(confidence, confidence - second, entropy)


_SORT_FROM = 128  # below this length, comparing all pairs is quicker than sorting


def rank_positions(priority: Float[Array, "B L"], among: Bool[Array, "B L"]) -> Int[Array, "B L"]:
  """Ranks the positions of `among` by falling priority (0: highest, leftmost among equals); others come after them."""
  length = priority.shape[-1]
  if length > _SORT_FROM:
    order = jnp.lexsort((-priority, ~among), axis=-1)  # stable, last key first
    return jnp.argsort(order, axis=-1)
  mine, other = priority[:, :, None], priority[:, None, :]
  place = jnp.arange(length)
  before = (other > mine) | ((other == mine) & (place[None, :] < place[:, None])[None])
  among_mine, among_other = among[:, :, None], among[:, None, :]
  return jnp.sum((among_other & ~among_mine) | ((among_other == among_mine) & before), axis=-1, dtype=jnp.int32)


def commit_together(
  stats: Stats,
  tokens: Int[Array, "B L"],
  confidence: Float[Array, "B L"],
  masked: Bool[Array, "B L"],
  row_keys: Key[Array, "B"],
  budget: Budget,
  policy: Policy,
) -> Commits:
  """Commits every position that the policy takes at once, each with its token.

  Args:
    stats: what the model's distributions are like at the positions that hold MASK (`position_stats`).
    tokens: what to write (`sampling.draw_tokens`).
    confidence: the probabilities of these tokens.
    masked: positions that hold MASK.
    row_keys: one key a row, for policies that draw.
    budget: quota, floor and spare of each row.
    policy: chooses the positions.
  """
  priority = policy.priority(stats, row_keys)
  rank = rank_positions(priority, masked)
  taken = policy.takes(priority, rank, budget.quota[:, None]) | (rank < budget.floor[:, None])
  base = jnp.sum(taken & masked, axis=-1)
  extra = jnp.minimum(budget.spare, masked.sum(axis=-1) - base)
  return Commits(masked & (rank < (base + extra)[:, None]), tokens, confidence, extra)
