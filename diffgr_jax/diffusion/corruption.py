"""The forward process: how an answer x_0 becomes a partly masked canvas x_t.

The absorbing process replaces answer positions by MASK, each alone, with probability 1 - alpha(t). A schedule is the
function alpha with alpha(0) = 1 (nothing masked) and alpha(1) = 0 (all masked). The model learns to fill the masks in,
and a weight makes the expected loss an upper bound of -log p(x_0):

    prompt          canvas x_0       x_t at t = .5    weight of the masked positions' loss
    how to join     os path join     M  path M        -alpha'(t) / (1 - alpha(t)) = 2
    never masked    all are targets  two corrupted

A process draws (x_t, corrupted, weight) for a batch:

    random_time      t ~ U(0, 1]; every target is masked with 1 - alpha(t)          a bound (MDLM, md4)
    exact_count      k ~ U{1..n} of the row's n targets are masked, weight n / k    the same bound (LLaDA)
    uniform_weight   random_time with weight 1                                      not a bound
    all_masked       every target is masked, weight 1: what one-pass scoring sees   not a bound
    and with all_masked_fraction = p, each row is all masked with probability p     not a bound
    or with suffix_fraction = p, its masks are its last targets                     not a bound

Sources: MDLM, arXiv 2406.07524 (the weight of a schedule, and low-discrepancy times); md4, arXiv 2406.04329 (the cosine
schedule); LLaDA, arXiv 2502.09992 (the exact-count form).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

SMALLEST_TIME = 2.0**-24  # `sample_times` returns nothing smaller, so the floor below changes no drawn weight


class Corrupted(NamedTuple):
  """One draw of the forward process."""

  x_t: Int[Array, "B L"]  # x_0 with MASK at the corrupted positions
  corrupted: Bool[Array, "B L"]  # a subset of the target positions
  weight: Float[Array, "B 1"]  # what the loss at a row's corrupted positions is multiplied by; finite


@runtime_checkable
class Schedule(Protocol):
  """How many positions are masked at time t, and what that makes the loss at t weigh."""

  def mask_probability(self, t: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """1 - alpha(t), for t in [0, 1]."""
    ...

  def weight(self, t: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """-alpha'(t) / (1 - alpha(t)), for t in (0, 1]; finite, also at t = 0, where nothing is masked."""
    ...


@dataclass(frozen=True)
class Linear:
  """alpha(t) = 1 - t: the masked share is t, and the weight 1 / t."""

  def mask_probability(self, t):
    return t

  def weight(self, t):
    return 1.0 / jnp.maximum(t, SMALLEST_TIME)


@dataclass(frozen=True)
class Cosine:
  """alpha(t) = 1 - cos(pi/2 (1 - t)) = 1 - sin(pi t / 2) (md4, arXiv 2406.04329).

  Then -alpha'(t) = pi/2 cos(pi t / 2), and the weight is pi/2 / tan(pi t / 2): near 1 / t for small t, 0 at t = 1.
  """

  def mask_probability(self, t):
    return jnp.sin(0.5 * jnp.pi * t)

  def weight(self, t):
    angle = 0.5 * jnp.pi * jnp.maximum(t, SMALLEST_TIME)
    # In float32 the cosine at pi/2 falls a rounding below zero; a weight is never negative.
    return 0.5 * jnp.pi * jnp.maximum(jnp.cos(angle), 0.0) / jnp.sin(angle)


@runtime_checkable
class Process(Protocol):
  """Draws x_t for given times. `is_bound`: the weighted loss is in expectation an upper bound of -log p(x_0)."""

  is_bound: bool

  def corrupt(
    self,
    key: Key[Array, ""],
    x0: Int[Array, "B L"],
    t: Float[Array, "B"],
    *,
    mask_id: int,
    target: Bool[Array, "B L"],
  ) -> Corrupted:
    """Returns one draw per row; positions outside `target` stay as they are."""
    ...


def sample_times(key: Key[Array, ""], n: int, antithetic: bool = True) -> Float[Array, "{n}"]:
  """Draws n times in (0, 1], each uniform.

  Args:
    key: the randomness.
    n: rows of the GLOBAL batch, so that its times are spread evenly whatever the number of devices.
    antithetic: one uniform u for all, t_i = 1 - (u + i/n mod 1): every interval of length 1/n holds one time, which
      takes most of the noise of t out of the batch's loss (MDLM, arXiv 2406.07524). False: independent times.
  """
  if n < 1:
    raise ValueError(f"sample_times needs at least one row, not n = {n}")
  if not antithetic:
    return 1.0 - jax.random.uniform(key, (n,))
  spread = jnp.arange(n, dtype=jnp.float32) / n
  return 1.0 - (jax.random.uniform(key, (1,)) + spread) % 1.0  # from [0, 1) to (0, 1]: t = 0 carries no loss


def corrupt(
  key: Key[Array, ""],
  x0: Int[Array, "B L"],
  t: Float[Array, "B"],
  schedule: Schedule,
  mask_id: int,
  target: Bool[Array, "B L"],
) -> Corrupted:
  """Masks each target position alone with probability 1 - alpha(t). Row i's draw does not depend on the batch size.

  Args:
    key: the randomness.
    x0: clean token ids.
    t: time of each row, in [0, 1].
    schedule: gives the masking probability and the weight.
    mask_id: the id of MASK.
    target: the answer's positions; no other is ever masked.

  Returns:
    x_t, the masked positions, and the rows' weights. No position is forced to be masked: a row may stay clean, and
    then has no loss, which the weight of the other draws makes up for.
  """
  corrupted = target & (_row_uniform(key, *x0.shape) < schedule.mask_probability(t)[:, None])
  return _masked(x0, corrupted, schedule.weight(t)[:, None], mask_id)


def corrupt_exact_count(
  key: Key[Array, ""],
  x0: Int[Array, "B L"],
  t: Float[Array, "B"],
  mask_id: int,
  target: Bool[Array, "B L"],
) -> Corrupted:
  """Masks exactly k = ceil(t n) of a row's n target positions, chosen uniformly, with weight n / k.

  With t uniform on (0, 1], k is uniform on {1..n}; with antithetic times the counts of a batch are spread evenly too.
  The expected loss is that of random times with any schedule, without the draws that mask nothing
  (LLaDA, arXiv 2502.09992, equation 14). A row without targets is left clean, with weight 0.
  """
  targets = target.sum(axis=-1)
  count = _mask_count(t, targets)
  lots = jnp.where(target, _row_uniform(key, *x0.shape), jnp.inf)  # other positions rank behind all targets
  rank = jnp.argsort(jnp.argsort(lots, axis=-1), axis=-1)
  weight = targets / jnp.maximum(count, 1)
  return _masked(x0, rank < count[:, None], weight[:, None].astype(jnp.float32), mask_id)


def corrupt_suffix(x0: Int[Array, "B L"], t: Float[Array, "B"], mask_id: int, target: Bool[Array, "B L"]) -> Corrupted:
  """Masks the last k = ceil(t n) of a row's n target positions, with weight n / k; see `corrupt_exact_count`."""
  targets = target.sum(axis=-1)
  count = _mask_count(t, targets)
  behind = jnp.cumsum(target[:, ::-1], axis=-1)[:, ::-1]  # targets from here on
  weight = targets / jnp.maximum(count, 1)
  return _masked(x0, target & (behind <= count[:, None]), weight[:, None].astype(jnp.float32), mask_id)


@dataclass(frozen=True)
class RandomTime:
  """Independent masking at a random time: the bound of MDLM and md4."""

  schedule: Schedule
  is_bound = True

  def corrupt(self, key, x0, t, *, mask_id, target):
    return corrupt(key, x0, t, self.schedule, mask_id, target)


@dataclass(frozen=True)
class ExactCount:
  """A random number of masks with weight n / k: the same bound."""

  is_bound = True

  def corrupt(self, key, x0, t, *, mask_id, target):
    return corrupt_exact_count(key, x0, t, mask_id, target)


@dataclass(frozen=True)
class UniformWeight:
  """Random times without their weight: easy canvases count for less than the bound asks. Not a bound."""

  schedule: Schedule
  is_bound = False

  def corrupt(self, key, x0, t, *, mask_id, target):
    drawn = corrupt(key, x0, t, self.schedule, mask_id, target)
    return drawn._replace(weight=jnp.ones_like(drawn.weight))


@dataclass(frozen=True)
class AllMasked:
  """Every target masked, weight 1 (t = 1 only): trains what one-pass scoring reads. Not a bound."""

  is_bound = False

  def corrupt(self, key, x0, t, *, mask_id, target):
    return _masked(x0, target, jnp.ones_like(t)[:, None], mask_id)


@dataclass(frozen=True)
class AllMaskedMixture:
  """Each row is all masked with probability `all_masked_fraction`, else drawn from `process`. Not a bound."""

  process: Process
  all_masked_fraction: float
  is_bound = False

  def __post_init__(self):
    if not 0.0 < self.all_masked_fraction <= 1.0:
      raise ValueError(f"all_masked_fraction is a probability in (0, 1], not {self.all_masked_fraction}")

  def corrupt(self, key, x0, t, *, mask_id, target):
    choice_key, draw_key = jax.random.split(key)
    drawn = self.process.corrupt(draw_key, x0, t, mask_id=mask_id, target=target)
    whole = AllMasked().corrupt(draw_key, x0, t, mask_id=mask_id, target=target)
    chosen = _row_uniform(choice_key, x0.shape[0], 1) < self.all_masked_fraction
    return jax.tree.map(lambda one, other: jnp.where(chosen, one, other), whole, drawn)


@dataclass(frozen=True)
class SuffixMixture:
  """Each row's masks are its last targets with probability `suffix_fraction`, else drawn from `process`.

      canvas                a   b   c   d   e          what a decoder that commits from the left (policies.py, Prefix)
      k = 2 of the last     a   b   c   M   M          finds: no token behind a MASK
      k = 2 of any          a   M   c   M   e

  k ~ U{1..n} with weight n / k, as for `exact_count`; a position is read with less to its left than a left-to-right
  factorisation gives it, and with nothing to its right. Not the bound of masked diffusion.
  """

  process: Process
  suffix_fraction: float
  is_bound = False

  def __post_init__(self):
    if not 0.0 < self.suffix_fraction <= 1.0:
      raise ValueError(f"suffix_fraction is a probability in (0, 1], not {self.suffix_fraction}")

  def corrupt(self, key, x0, t, *, mask_id, target):
    choice_key, draw_key = jax.random.split(key)
    drawn = self.process.corrupt(draw_key, x0, t, mask_id=mask_id, target=target)
    suffix = corrupt_suffix(x0, t, mask_id, target)
    chosen = _row_uniform(choice_key, x0.shape[0], 1) < self.suffix_fraction
    return jax.tree.map(lambda one, other: jnp.where(chosen, one, other), suffix, drawn)


@dataclass(frozen=True)
class Clean:
  """Nothing is masked, every target counts with weight 1: teacher forcing of an autoregressive model. Exact -log p."""

  is_bound = True

  def corrupt(self, key, x0, t, *, mask_id, target):
    return Corrupted(x0, target, jnp.ones_like(t)[:, None])


SCHEDULES = {"linear": Linear, "cosine": Cosine}
PROCESSES = ("random_time", "exact_count", "uniform_weight", "all_masked", "clean")


def make_process(
  name: str, schedule: str = "linear", all_masked_fraction: float = 0.0, suffix_fraction: float = 0.0
) -> Process:
  """Builds the process that a config names.

  Args:
    name: one of `PROCESSES`.
    schedule: one of `SCHEDULES`. exact_count, all_masked and clean have none and take only the default.
    all_masked_fraction: probability that a row is all masked instead; 0 leaves the process as it is.
    suffix_fraction: probability that a row's last targets are masked instead (where it is not all masked).

  Raises:
    ValueError: an unknown name, a schedule for a process that has none, or a fraction outside [0, 1].
  """
  if name not in PROCESSES:
    raise ValueError(f"unknown process {name!r}; it is one of {', '.join(PROCESSES)}")
  if schedule not in SCHEDULES:
    raise ValueError(f"unknown schedule {schedule!r}; it is one of {', '.join(SCHEDULES)}")
  if name in ("exact_count", "all_masked", "clean") and schedule != "linear":
    raise ValueError(f"process {name!r} has no schedule; leave schedule at 'linear', not {schedule!r}")
  process: Process = {
    "random_time": lambda: RandomTime(SCHEDULES[schedule]()),
    "exact_count": ExactCount,
    "uniform_weight": lambda: UniformWeight(SCHEDULES[schedule]()),
    "all_masked": AllMasked,
    "clean": Clean,
  }[name]()
  if suffix_fraction != 0.0:
    process = SuffixMixture(process, suffix_fraction)
  return process if all_masked_fraction == 0.0 else AllMaskedMixture(process, all_masked_fraction)


def draw(
  key: Key[Array, ""],
  process: Process,
  x0: Int[Array, "B L"],
  *,
  mask_id: int,
  target: Bool[Array, "B L"],
  antithetic: bool = True,
) -> Corrupted:
  """One training draw for a (global) batch: times, then the process."""
  time_key, process_key = jax.random.split(key)
  t = sample_times(time_key, x0.shape[0], antithetic)
  return process.corrupt(process_key, x0, t, mask_id=mask_id, target=target)


def draw_complementary(
  key: Key[Array, ""], x0: Int[Array, "B L"], *, mask_id: int, target: Bool[Array, "B L"]
) -> list[Corrupted]:
  """Two draws whose masks complement each other: every target position is masked in exactly one (Fast-dLLM v2).

  k ~ U{0..n} of a row's n targets are masked in the first and n - k in the second, each with weight (n + 1) / count.
  Either is the exact-count bound (a draw of 0 masks has no loss, which its weight n + 1 instead of n makes up for), so
  half of their sum is, with less noise.
  """
  count_key, lots_key = jax.random.split(key)
  targets = target.sum(axis=-1)
  share = _row_uniform(count_key, x0.shape[0], 1)[:, 0]
  count = jnp.clip(jnp.floor(share * (targets + 1)).astype(jnp.int32), 0, targets)
  lots = jnp.where(target, _row_uniform(lots_key, *x0.shape), jnp.inf)
  rank = jnp.argsort(jnp.argsort(lots, axis=-1), axis=-1)
  first = target & (rank < count[:, None])

  def one(corrupted: Bool[Array, "B L"], masks: Int[Array, "B"]) -> Corrupted:
    weight = jnp.where(masks > 0, (targets + 1) / jnp.maximum(masks, 1), 0.0)
    return _masked(x0, corrupted, weight[:, None].astype(jnp.float32), mask_id)

  return [one(first, count), one(target & ~first, targets - count)]


def _row_uniform(key: Key[Array, ""], rows: int, length: int) -> Float[Array, "{rows} {length}"]:
  """Uniforms in [0, 1) whose row i is a function of the key and i alone, so that it is the same in any batch."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
  return jax.vmap(lambda row_key: jax.random.uniform(row_key, (length,)))(keys)


def _mask_count(t: Float[Array, "B"], targets: Int[Array, "B"]) -> Int[Array, "B"]:
  """ceil(t n) of a row's n targets: at least one, where there is one."""
  return jnp.clip(jnp.ceil(t * targets).astype(jnp.int32), jnp.minimum(targets, 1), targets)


def _masked(x0, corrupted, weight, mask_id: int) -> Corrupted:
  return Corrupted(jnp.where(corrupted, jnp.asarray(mask_id, x0.dtype), x0), corrupted, weight)
