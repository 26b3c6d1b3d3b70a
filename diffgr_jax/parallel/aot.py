"""Compiling for a TPU slice on a machine that has none: libtpu knows the chips, no device is touched.

    topology v5e:16x16  ->  256 devices that are descriptions  ->  a mesh  ->  jit(f).lower(shapes).compile()

`prepare_environment` must run before JAX is first used. libtpu stays out of the base install (with it, every process
of JAX complains unless it is told to stay on the CPU), and its warnings out of the user's sight.
"""

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import dataclass
import importlib.util
import os
import re
import sys
import tempfile
from typing import Any

LIBTPU = "pip install 'libtpu==0.0.42.*'"
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: libtpu asks for one, the topology says what is compiled for
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no device is opened, so two compilations may run side by side
}
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_REFUSED = (
  re.compile(r"Used ([\d.]+)([BKMGT]) of ([\d.]+)([BKMGT]) hbm"),
  re.compile(r"\(([\d.]+)([BKMGT])\) exceeds available HBM \(([\d.]+)([BKMGT])\)"),
)


class DoesNotFit(RuntimeError):
  """The compiler refuses a program that needs more HBM than a device has; bytes of a device, as it counts them."""

  def __init__(self, needed: float, available: float):
    super().__init__(f"the compiler needs {needed / 2**30:.2f} GiB of {available / 2**30:.2f} GiB of HBM")
    self.needed, self.available = needed, available


def prepare_environment() -> None:
  """Sets the environment for `slice_devices`: to be called before JAX looks for devices.

  Raises:
    RuntimeError: libtpu is not installed; names the command.
  """
  if importlib.util.find_spec("libtpu") is None:
    raise RuntimeError(f"compiling for a TPU needs libtpu (no TPU): {LIBTPU}")
  os.environ.update(_ENVIRONMENT)
  import jax  # a config has imported it already, maybe: what it read of the environment is set once more

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_enable_compilation_cache", False)  # its entries would be asked of a TPU


def slice_devices(topology: str, slices: int = 1) -> list[Any]:
  """The devices of a number of equal slices, as descriptions that a mesh and the compiler take.

  Raises:
    ValueError: the compiler knows no such slice.
  """
  from jax.experimental import topologies

  with hidden_stderr():
    try:
      found = topologies.get_topology_desc(platform="tpu", topology_name=topology, num_slices=slices)
    except Exception as error:  # whatever it is that libtpu throws
      raise ValueError(f"--topology={topology}: {str(error).splitlines()[0]}") from None
  return list(found.devices)


@dataclass(frozen=True)
class Compiled:
  """A program for a slice: bytes are of one device."""

  text: str  # HLO, after partitioning
  arguments: int
  outputs: int
  aliased: int  # outputs that take the place of donated arguments
  temporaries: int
  code: int

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def compile_for(lower: Callable[[], Any]) -> Compiled:
  """Compiles what `lower()` returns, a lowered function.

  Raises:
    DoesNotFit: the compiler gives up for want of HBM.
  """
  import jax

  with hidden_stderr():
    try:
      compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
      if (numbers := refusal(str(error))) is None:
        raise
      raise DoesNotFit(*numbers) from None
  memory = compiled.memory_analysis()
  return Compiled(
    text=compiled.as_text(),
    arguments=memory.argument_size_in_bytes,
    outputs=memory.output_size_in_bytes,
    aliased=memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
  )


def refusal(message: str) -> tuple[float, float] | None:
  """Bytes needed and available, out of the compiler's message; None: it is about something else."""
  for pattern in _REFUSED:
    if found := pattern.search(message):
      needed, unit, available, its_unit = found.groups()
      return float(needed) * _UNITS[unit], float(available) * _UNITS[its_unit]
  return None


def with_shardings(shapes: Any, shardings: Any) -> Any:
  """A tree of shapes as what `lower` takes: each with its place on the mesh."""
  import jax

  place = lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)
  return jax.tree.map(place, shapes, shardings)


def bytes_a_device(tree: Any) -> int:
  """Bytes that one device holds of a tree of shapes with shardings."""
  import jax
  import numpy as np

  size = lambda leaf: int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
  return sum(size(leaf) for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
  """Keeps what a C++ library writes to stderr from the user; if the block fails, nothing is lost but that."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as sink:
    os.dup2(sink.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)
