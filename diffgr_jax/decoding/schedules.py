"""Schedules: how many positions a step is asked to commit. Which ones is the policy's business (policies.py).

    8 masks, 3 steps     Even  3 3 2     EarlyRemainder  3 3 2     BlockRemainder(8)  3 3 2     LinearTime  2 3 3
    7 masks, 3 steps           3 2 2                     3 2 2                        3 3 1                 2 2 3

A schedule sees one row at a time: its masks now, its masks when the steps began, and the step; never its neighbours.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Int


@runtime_checkable
class Schedule(Protocol):
  """Spreads the masks of a canvas (or of a block of it) over the steps."""

  def quota(
    self, masked: Int[Array, "B"], total: Int[Array, "B"], step: Int[Array, "B"], steps: Int[Array, ""]
  ) -> Int[Array, "B"]:
    """How many positions each row is to commit at `step` (from 0).

    Args:
      masked: masked positions now.
      total: masked positions before step 0.
      step: which step of the row this is.
      steps: how many there are.
    """
    ...


@dataclass(frozen=True)
class Even:
  """What is left, spread evenly over the steps left, rounded up: adapts to whatever earlier steps committed."""

  def quota(self, masked, total, step, steps):
    return -(-masked // jnp.maximum(steps - step, 1))


EVEN = Even()


@dataclass(frozen=True)
class EarlyRemainder:
  """The masks at the start, evenly, the remainder in the first steps (LLaDA, arXiv 2502.09992)."""

  def quota(self, masked, total, step, steps):
    return total // steps + (step < total % steps)


@dataclass(frozen=True)
class BlockRemainder:
  """The same, counted from the block's length and not from its masks (SDAR, arXiv 2510.06303).

  A block that begins with given tokens is therefore finished in fewer steps.
  """

  length: int

  def quota(self, masked, total, step, steps):
    return self.length // steps + (step < self.length % steps)


@dataclass(frozen=True)
class LinearTime:
  """Time falls evenly from 1 to `epsilon`; a step commits the share of the masks by which it falls, rounded down.

  Dream's sampler (arXiv 2508.15487). Early steps may commit nothing; the last commits all that is left.
  """

  epsilon: float = 1e-3

  def __post_init__(self):
    if not 0.0 <= self.epsilon < 1.0:
      raise ValueError(f"LinearTime.epsilon is {self.epsilon}; it must be a time in [0, 1)")

  def quota(self, masked, total, step, steps):
    time = lambda i: 1.0 + i.astype(jnp.float32) / steps * (self.epsilon - 1.0)
    share = 1.0 - time(step + 1) / time(step)
    return jnp.where(step >= steps - 1, masked, jnp.floor(masked * share).astype(jnp.int32))


SCHEDULES = ("even", "early_remainder", "block_remainder", "linear_time")


def make_schedule(name: str, length: int) -> Schedule:
  """Builds the schedule that a flag names; `length` is that of the blocks (or of the canvas), for block_remainder.

  Raises:
    ValueError: an unknown name.
  """
  made = dict(zip(SCHEDULES, (EVEN, EarlyRemainder(), BlockRemainder(length), LinearTime()), strict=True))
  if name not in made:
    raise ValueError(f"schedule is one of {', '.join(SCHEDULES)}, not {name!r}")
  return made[name]
