"""What training carries from step to step, how it is created sharded, and the one step itself.

    abstract shapes -> shardings by the rules -> jit(init, out_shardings): nothing is ever whole on one device

The randomness of a step is a function of (seed, step), so a resumed run draws what the uninterrupted one would have.
"""

import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
import optax

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.lora import trained_part, with_trained
from diffgr_jax.models.transformer import abstract_params, init_params, logical_axes
from diffgr_jax.parallel.rules import Rules, constrain_tree, replicated, tree_shardings
from diffgr_jax.stages.stage import Batch, Stage


@struct.dataclass
class TrainState:
  """Step counter (Int32 scalar), parameters and optimizer state; or, as a tree, their shapes or shardings."""

  step: Any
  params: Any
  opt_state: Any


def state_shardings(
  config: TransformerConfig, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Rules
) -> TrainState:
  """The sharding of every leaf of the state: optimizer moments lie as their parameters do, counters everywhere.

  Raises:
    ValueError: a dimension that the mesh does not divide (see parallel/rules.py).
  """
  masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # where another optimizer updates the parameter
  abstract = abstract_params(config)
  params = tree_shardings(mesh, abstract, logical_axes(config), rules)
  opt_state = optax.tree_utils.tree_map_params(
    optimizer,
    lambda moment, sharding: moment if masked(moment) else sharding,
    jax.eval_shape(optimizer.init, trained_part(config, abstract)),
    trained_part(config, params),
    transform_non_params=lambda _: replicated(mesh),
    is_leaf=masked,
  )
  return TrainState(replicated(mesh), params, opt_state)


def create_state(
  config: TransformerConfig, optimizer: optax.GradientTransformation, shardings: TrainState, seed: int
) -> TrainState:
  """Fresh parameters and optimizer state, created where they belong."""

  def init(key):
    params = init_params(config, key)
    return TrainState(jnp.int32(0), params, optimizer.init(trained_part(config, params)))

  return jax.jit(init, out_shardings=shardings)(jax.random.key(seed))


@functools.partial(jax.jit, static_argnames=("stage", "optimizer", "microbatches"), donate_argnames=("state",))
def train_step(
  state: TrainState,
  batch: Batch,
  shared: Batch,
  seed: Int[Array, ""],
  *,
  stage: Stage,
  optimizer: optax.GradientTransformation,
  microbatches: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
  """One optimizer step on a global batch, its gradient accumulated over `microbatches` equal parts in float32."""
  key = jax.random.fold_in(jax.random.key(seed), state.step)
  rows, model = len(jax.tree.leaves(batch)[0]), stage.model
  batch, target_count = stage.prepare(key, batch)
  lie_as_params = lambda tree: constrain_tree(tree, trained_part(model, logical_axes(model)), model.rules)
  old = trained_part(model, state.params)

  def loss(trained, *of_part):
    return stage.loss(with_trained(model, state.params, trained), *of_part)

  gradient = jax.value_and_grad(loss, has_aux=True)

  def part(microbatch: Batch):
    (_, metrics), grads = gradient(old, microbatch, shared, target_count, rows)
    return lie_as_params(jax.tree.map(lambda x: x.astype(jnp.float32), grads)), metrics

  if microbatches == 1:
    grads, metrics = part(batch)
  else:
    # Row r goes to part r % microbatches: a part then holds rows of every device's shard, and no row moves.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, jax.tree.map(lambda x: x[0], parts))
    )
    add = lambda total, microbatch: (jax.tree.map(jnp.add, total, part(microbatch)), None)
    (grads, metrics), _ = jax.lax.scan(add, zeros, parts)

  updates, opt_state = optimizer.update(grads, state.opt_state, old)
  new = lie_as_params(optax.apply_updates(old, updates))
  metrics |= {"grad_norm": optax.global_norm(grads)}
  return TrainState(state.step + 1, with_trained(model, state.params, new), opt_state), metrics
