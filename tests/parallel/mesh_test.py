"""Meshes that divide, and those that are refused with their numbers."""

import types

import jax
import pytest

from diffgr_jax.parallel.mesh import AXES, batch_shards, make_mesh, mesh_shape


def test_open_axis_takes_what_is_left():
  assert mesh_shape({"data": -1, "tensor": 2}, 8) == dict(replica=1, data=4, fsdp=1, tensor=2, sequence=1)
  mesh = make_mesh({"data": 2, "fsdp": -1})
  assert mesh.axis_names == AXES
  assert mesh.shape["fsdp"] == jax.device_count() // 2
  assert batch_shards(mesh) == jax.device_count()


@pytest.mark.parametrize(
  "sizes, message",
  [
    ({"data": 3}, "data=3 needs 3 devices, but there are 8"),
    ({"data": -1, "tensor": 3}, "needs 6 devices, but there are 8"),
    ({"data": -1, "fsdp": -1}, "at most one mesh axis may be -1"),
    ({"model": 8}, "no axis model; its axes are replica"),
    ({"data": 0}, "axis data has size 0"),
  ],
)
def test_a_mesh_that_does_not_fit_is_refused_with_the_numbers(sizes, message):
  with pytest.raises(ValueError, match=message):
    mesh_shape(sizes, 8)


def test_slices_are_joined_by_replica():
  devices = [types.SimpleNamespace(platform="tpu", slice_index=i // 4, id=i) for i in range(8)]
  with pytest.raises(ValueError, match=r"replica \(1\) must be a multiple of the 2 slices"):
    make_mesh({"fsdp": 8}, devices)
