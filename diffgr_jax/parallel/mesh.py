"""The device mesh: which axes exist and how many devices each one has.

    replica   whole copies of the model, across slices (slow network)
    data      whole copies of the model, inside a slice
    fsdp      copies of nothing: parameters, optimizer and batch are all split over it
    tensor    heads, MLP columns and vocabulary rows are split over it
    sequence  the positions of long canvases are split over it

A batch is split over replica x data x fsdp. Axes of size 1 cost nothing, so every mesh has all five.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("replica", "data", "fsdp", "tensor", "sequence")
BATCH_AXES = ("replica", "data", "fsdp")


def mesh_shape(sizes: Mapping[str, int], n_devices: int) -> dict[str, int]:
  """Completes the sizes of a mesh: axes that are not named have size 1, and one axis may be -1, "what is left".

  Raises:
    ValueError: an unknown axis, more than one -1, or sizes whose product is not the number of devices.
  """
  if unknown := sorted(set(sizes) - set(AXES)):
    raise ValueError(f"mesh has no axis {', '.join(unknown)}; its axes are {', '.join(AXES)}")
  shape = {axis: int(sizes.get(axis, 1)) for axis in AXES}
  if bad := [axis for axis, size in shape.items() if size < 1 and size != -1]:
    raise ValueError(f"mesh axis {bad[0]} has size {shape[bad[0]]}; a size is at least 1, or -1 for what is left")
  open_axes = [axis for axis, size in shape.items() if size == -1]
  if len(open_axes) > 1:
    raise ValueError(f"at most one mesh axis may be -1, not {', '.join(open_axes)}")
  fixed = math.prod(size for size in shape.values() if size != -1)
  if open_axes:
    shape[open_axes[0]] = max(n_devices // fixed, 1)
  if math.prod(shape.values()) != n_devices:
    named = " x ".join(f"{axis}={size}" for axis, size in shape.items() if size > 1) or "1"
    raise ValueError(f"the mesh {named} needs {math.prod(shape.values())} devices, but there are {n_devices}")
  return shape


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """A mesh with all five axes over the given devices (default: all of them).

  Several TPU slices are joined by `replica`, the axis that is meant for a slow network.

  Raises:
    ValueError: see `mesh_shape`; or a replica axis that the slices do not divide.
  """
  devices = jax.devices() if devices is None else devices
  shape = mesh_shape(sizes, len(devices))
  slices = len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"})
  if slices > 1:
    if shape["replica"] % slices:
      raise ValueError(f"the mesh axis replica ({shape['replica']}) must be a multiple of the {slices} slices")
    inside, between = shape | {"replica": shape["replica"] // slices}, dict.fromkeys(shape, 1) | {"replica": slices}
    placed = mesh_utils.create_hybrid_device_mesh(tuple(inside.values()), tuple(between.values()), devices)
    return Mesh(placed, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))
  return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices)


def batch_shards(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
