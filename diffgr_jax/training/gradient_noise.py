"""How much of a step's gradient is signal, where a model learns from what it writes (opd, rl).

Two gradients g of the same weights have their signal G in common, and their noise not:

    signal share = |G|^2 / E|g|^2         E g_i . g_j over all pairs, over E|g|^2; also the mean cosine of two gradients
    noise scale  = rollouts * (1 / share - 1)       rollouts a step of which half would be signal

The latter is the simple noise scale of McCandlish et al. 2018 (arXiv 1812.06162). Intervals are the jackknife's over
rounds, 95%.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float
import numpy as np
import optax
from tqdm import tqdm

from diffgr_jax.parallel.rules import shard_batch
from diffgr_jax.training.rerank_rollouts import RolloutJob
from diffgr_jax.training.state import create_state, state_shardings, train_step

# What may differ from the run that is measured.
FIELDS = {
  "batch_size": int, "group": int, "microbatches": int, "refills": int, "rollout_threshold": float,
  "rollout_temperature": float,
}  # fmt: skip

# Takes no step, and keeps the gradient in place of moments.
_GRADIENT = optax.GradientTransformation(
  lambda params: jax.tree.map(jnp.zeros_like, params),
  lambda updates, state, params=None: (jax.tree.map(jnp.zeros_like, updates), updates),
)


def gradients(job: RolloutJob, mesh: Mesh, rounds: int) -> Float[np.ndarray, "K P"]:
  """The gradients of rounds that the start's weights write."""
  config = job.config
  shardings = state_shardings(job.model, _GRADIENT, mesh, config.rules)
  state, found = create_state(job.model, _GRADIENT, shardings, config.seed), []
  state = dataclasses.replace(state, params=job.starting(state.params, shardings.params))
  how: dict[str, Any] = dict(stage=job.stage, optimizer=_GRADIENT, microbatches=config.microbatches)
  with jax.set_mesh(mesh):
    for number in tqdm(range(1, rounds + 1), desc=config.stage, unit="round", leave=False):
      rows, _ = job.roll_out(state.params, number, mesh)
      state, _ = train_step(state, shard_batch(rows, mesh), {}, jnp.int32(config.seed), **how)
      found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(state.opt_state))]))
  return np.stack(found)


def signal_share(of_rounds: Float[np.ndarray, "K P"], rollouts: int) -> Mapping[str, float]:
  """What gradients of the same weights have in common.

  Args:
    of_rounds: gradients of K rounds.
    rollouts: of a round.
  """
  dots = of_rounds.astype(np.float64) @ of_rounds.T.astype(np.float64)

  def share(rows: np.ndarray) -> float:
    own = dots[np.ix_(rows, rows)]
    squares, count = np.trace(own), len(rows)
    return (own.sum() - squares) / (count - 1) / squares

  rounds = np.arange(len(dots))
  found, without = share(rounds), np.array([share(np.delete(rounds, at)) for at in rounds])
  error = math.sqrt((len(rounds) - 1) * without.var())
  low, high = found - 1.96 * error, found + 1.96 * error
  scale = lambda share: rollouts * (1 / share - 1) if share > 0 else math.inf
  figures = {
    "rounds": len(rounds),
    "rollouts a round": rollouts,
    "norm": math.sqrt(np.trace(dots) / len(rounds)),
    "signal share": found,
    "signal share low": low,
    "signal share high": high,
    "noise scale": scale(found),
    "noise scale low": scale(high),
    "noise scale high": scale(low),
  }
  return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
