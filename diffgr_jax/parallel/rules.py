"""From logical axes to a mesh: which dimension of which array is split over which mesh axis.

A weight or an activation names what its dimensions mean ("embed", "mlp", "batch", ...); the rules of a config say where
each meaning goes, training and decoding by tables of their own:

    ("embed", "fsdp")   ("mlp", "tensor")   =>   an ("embed", "mlp") weight is PartitionSpec("fsdp", "tensor")

A dimension that its mesh axis does not divide is refused with the numbers: an uneven layout would be padded silently.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
import numpy as np

from diffgr_jax.parallel.mesh import AXES, BATCH_AXES

Place = str | tuple[str, ...] | None  # an axis, several of them (the first is the outermost), or no split
Rules = Sequence[Sequence[Any]]  # pairs: logical axis, place
Axes = Sequence[Place]  # of an array: the logical axis, or axes, of each dimension

# What a dimension of a weight means: embed (the residual stream's width), heads and kv_heads (heads x head_dim), mlp,
# vocab, position, rank (of LoRA), norm, layers. Of an activation: batch, length (tokens of a sequence), canvas (the
# positions that logits are taken at), features (the width again), heads, kv_heads, mlp, vocab, documents (rows of the
# DocID index); lookup is the batch at the embedding table, which is split by columns: tokens go to all columns, and
# what they find goes back, so that the table itself stays where it is. Keys are gathered over `length`: any query may
# see them.

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
  ("rank", None),
  ("norm", None),
  ("layers", None),
  ("batch", BATCH_AXES),
  ("lookup", ("replica", "data")),
  ("length", "sequence"),
  ("canvas", None),
  ("features", None),
  ("documents", "tensor"),
)

# Decoding: a pass reads all weights for a few tokens, so none is gathered for it: split over tensor, else whole.
DECODE_RULES = tuple((axis, {"embed": None, "lookup": BATCH_AXES}.get(axis, place)) for axis, place in TRAIN_RULES)


def frozen_rules(rules: Rules) -> tuple[tuple[str, Place], ...]:
  """Rules as they may stand in a static argument; from JSON or a config they come as lists."""
  freeze = lambda place: tuple(place) if isinstance(place, (list, tuple)) else place
  return tuple((str(axis), freeze(place)) for axis, place in rules)


def partition_spec(axes: Axes, rules: Mapping[str, Place]) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes.

  Args:
    axes: of each dimension: a logical axis, several (a dimension that merges them, the first outermost), or None (a
      dimension that is not split).
    rules: the place of each logical axis.

  Raises:
    ValueError: an axis without a rule, a rule that names no mesh axis, or a mesh axis that is used twice.
  """
  places = [tuple(name for logical in _names(axis) for name in _place(logical, rules)) for axis in axes]
  used = [name for place in places for name in place]
  if twice := sorted({name for name in used if used.count(name) > 1}):
    raise ValueError(f"the rules split an array with the axes {_spelled(axes)} twice over {twice[0]}")
  return PartitionSpec(*((place[0] if len(place) == 1 else place) if place else None for place in places))


def _place(logical: str, rules: Mapping[str, Place]) -> tuple[str, ...]:
  if logical not in rules:
    raise ValueError(f"no sharding rule for the logical axis {logical!r}; there are rules for {', '.join(rules)}")
  names = _names(rules[logical])
  if unknown := [name for name in names if name not in AXES]:
    raise ValueError(f"the rule {logical!r} -> {unknown[0]!r} names no mesh axis; the mesh has {', '.join(AXES)}")
  return names


def _names(place: Place) -> tuple[str, ...]:
  return () if place is None else (place,) if isinstance(place, str) else tuple(place)


def _spelled(axes: Axes) -> str:
  return ", ".join(" x ".join(_names(axis)) or "-" for axis in axes)


def _parts(mesh: Mesh | AbstractMesh, place: Place) -> int:
  return math.prod(mesh.shape[name] for name in _names(place))


def _checked_spec(
  mesh: Mesh | AbstractMesh, what: str, shape: Sequence[int], axes: Axes, rules: Rules
) -> PartitionSpec:
  spec = partition_spec(axes, dict(frozen_rules(rules)))
  for size, axis, place in zip(shape, axes, spec, strict=True):
    if size % (parts := _parts(mesh, place)):
      raise ValueError(
        f"{what}: its {_spelled([axis])} dimension of {size} cannot be split over {parts} devices of the mesh"
        f" {'axis' if len(_names(place)) == 1 else 'axes'} {' x '.join(_names(place))}"
      )
  return spec


def tree_shardings(mesh: Mesh, abstract: Any, axes: Any, rules: Rules) -> Any:
  """A NamedSharding for every leaf of a tree of shapes, given the tree of its logical axes.

  Raises:
    ValueError: a dimension that its mesh axis does not divide, with the leaf, the dimension and the numbers.
  """

  def sharding(path, leaf, names: tuple[str, ...]) -> NamedSharding:
    what = jax.tree_util.keystr(path, simple=True, separator=".")
    return NamedSharding(mesh, _checked_spec(mesh, what, leaf.shape, names, rules))

  return jax.tree_util.tree_map_with_path(sharding, abstract, axes)


# --- activations: laid out by the rules on the mesh that `jax.set_mesh` put in force ---


def constrain(x: Any, what: str, axes: Axes, rules: Rules) -> Any:
  """An array inside a jitted function, laid out by the rules; as it is without rules or without a mesh in force.

  Raises:
    ValueError: a dimension that its mesh axis does not divide; `what` names the array.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, _checked_spec(mesh, what, x.shape, axes, rules))


def constrain_tree(tree: Any, axes: Any, rules: Rules) -> Any:
  """`constrain` for every leaf, given the tree of logical axes."""
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
  return jax.tree_util.tree_map_with_path(lambda path, x, names: constrain(x, name(path), names, rules), tree, axes)


def split_of(axis: str, rules: Rules) -> int:
  """Into how many parts the rules split a logical axis on the mesh in force; 1 without rules or mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if not rules or mesh.empty else _parts(mesh, dict(frozen_rules(rules))[axis])


def check_divides(sizes: Mapping[str, int], mesh: Mesh, rules: Rules) -> None:
  """Checks, before anything is compiled, that the mesh divides activations of these sizes, by logical axis.

  Raises:
    ValueError: the first that it does not divide, with the numbers.
  """
  for axis, size in sizes.items():
    _checked_spec(mesh, "activations", (size,), (axis,), rules)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading dimension split over replica, data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """This process's rows of a batch as global arrays, split over the batch axes."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
