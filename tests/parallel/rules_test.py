"""Logical axes to shardings."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, shard_batch, tree_shardings


def test_shardings_follow_the_rules():
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  shapes = {"up": jax.ShapeDtypeStruct((3, 8, 6), jnp.float32), "norm": jax.ShapeDtypeStruct((8,), jnp.float32)}
  shardings = tree_shardings(mesh, shapes, {"up": ("layers", "embed", "mlp"), "norm": ("norm",)}, TRAIN_RULES)
  assert shardings["up"].spec == PartitionSpec(None, "fsdp", "tensor")
  assert shardings["norm"].spec == PartitionSpec(None)
  assert shardings["up"].shard_shape((3, 8, 6)) == (3, 2, 3)


def test_a_dimension_that_does_not_divide_is_refused_with_the_numbers():
  mesh = make_mesh({"fsdp": 8})
  shapes = {"mlp": {"up": jax.ShapeDtypeStruct((12, 6), jnp.float32)}}
  with pytest.raises(ValueError, match=r"mlp\.up: its embed dimension of 12 cannot be split over 8 devices .* fsdp"):
    tree_shardings(mesh, shapes, {"mlp": {"up": ("embed", "mlp")}}, TRAIN_RULES)


def test_unknown_axes_are_named():
  mesh, shapes = make_mesh({"data": -1}), {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
  with pytest.raises(ValueError, match="no sharding rule for the logical axis 'width'"):
    tree_shardings(mesh, shapes, {"w": ("width",)}, TRAIN_RULES)
  with pytest.raises(ValueError, match="'norm' -> 'model' names no mesh axis"):
    tree_shardings(mesh, shapes, {"w": ("norm",)}, (("norm", "model"),))


def test_a_batch_is_split_over_all_batch_axes():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  rows = np.arange(24).reshape(8, 3)
  batch = shard_batch({"prompt": rows}, mesh)
  np.testing.assert_array_equal(batch["prompt"], rows)
  assert {shard.data.shape for shard in batch["prompt"].addressable_shards} == {(2, 3)}
