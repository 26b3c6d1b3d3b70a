"""From logical axes to a mesh: which dimension of which array is split over which mesh axis.

A weight names what its dimensions mean ("embed", "mlp", ...); the rules of a config say where each meaning goes:

    ("embed", "fsdp")   ("mlp", "tensor")   =>   an ("embed", "mlp") weight is PartitionSpec("fsdp", "tensor")

A dimension that its mesh axis does not divide is refused with the numbers: an uneven layout would be padded silently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from diffgr_jax.parallel.mesh import AXES, BATCH_AXES

Rules = Sequence[Sequence[str | None]]  # pairs: logical axis, mesh axis or None

# Training: weights split over fsdp by rows and over tensor by columns; norms and layer stacks whole.
TRAIN_RULES = (
  ("embed", "fsdp"),
  ("embed_out", None),
  ("heads", "tensor"),
  ("kv_heads", "tensor"),
  ("mlp", "tensor"),
  ("vocab", "tensor"),
  ("code_level", None),
  ("code", "tensor"),
  ("position", None),
  ("norm", None),
  ("layers", None),
)


def partition_spec(axes: Sequence[str], rules: Mapping[str, str | None]) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes.

  Raises:
    ValueError: an axis without a rule, or a rule that names no mesh axis.
  """
  for axis in axes:
    if axis not in rules:
      raise ValueError(f"no sharding rule for the logical axis {axis!r}; there are rules for {', '.join(rules)}")
    if rules[axis] is not None and rules[axis] not in AXES:
      raise ValueError(f"the rule {axis!r} -> {rules[axis]!r} names no mesh axis; the mesh has {', '.join(AXES)}")
  return PartitionSpec(*(rules[axis] for axis in axes))


def tree_shardings(mesh: Mesh, abstract: Any, axes: Any, rules: Rules) -> Any:
  """A NamedSharding for every leaf of a tree of shapes, given the tree of its logical axes.

  Raises:
    ValueError: a dimension that its mesh axis does not divide, with the leaf, the dimension and the numbers.
  """
  table = {str(logical): mesh_axis for logical, mesh_axis in rules}

  def sharding(path, leaf, names: tuple[str, ...]) -> NamedSharding:
    spec = partition_spec(names, table)
    for size, name, mesh_axis in zip(leaf.shape, names, spec, strict=True):
      if mesh_axis is not None and size % mesh.shape[mesh_axis]:
        raise ValueError(
          f"{jax.tree_util.keystr(path, simple=True, separator='.')}: its {name} dimension of {size} cannot be split"
          f" over {mesh.shape[mesh_axis]} devices of the mesh axis {mesh_axis}"
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(sharding, abstract, axes)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading dimension split over replica, data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch as global arrays, split over the batch axes."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
