"""Several processes as one job: who is who, how they start together, agree, and share a workdir.

    JAX_COORDINATOR_ADDRESS=HOST:PORT  JAX_NUM_PROCESSES=4  JAX_PROCESS_ID=0..3      told to each process
    --pod (or DIFFGR_POD=1)                                                          found by JAX: Cloud TPU, GKE, Slurm

Every process runs the same program. What belongs to the job and not to a process (files of the workdir, messages,
metrics) is process 0's; the others wait for it where they read what it wrote (`in_turn`).
"""

from collections.abc import Iterator, Mapping
import contextlib
from dataclasses import dataclass
import os
from pathlib import Path
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int
import numpy as np
import orbax.checkpoint as ocp

from diffgr_jax.parallel.rules import batch_sharding

ENVIRONMENT = {
  "coordinator_address": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}
START_SECONDS = 300  # all processes of a job must have come within
WORK_SECONDS = 6 * 3600  # for what one process does while the others wait, such as building the data
SHUTDOWN_SECONDS = 60  # the others have ended their work within
HEARTBEAT_SECONDS = 30  # a process that has not been heard of for so long is dead, and the job with it


@dataclass(frozen=True)
class PodSettings:
  """How this process finds the others; the default is a job of one process."""

  coordinator_address: str = ""  # HOST:PORT of process 0
  num_processes: int = 1  # with `detect`: as many as there must be; 0: any number
  process_id: int = 0
  detect: bool = False  # let JAX ask the cluster that it runs on

  @property
  def alone(self) -> bool:
    return not self.detect and not self.coordinator_address


def pod_settings(
  *, pod: bool, coordinator_address: str, num_processes: str, process_id: str, environ: Mapping[str, str]
) -> PodSettings:
  """What flags and environment say together; an empty flag says nothing.

  Raises:
    ValueError: they disagree, leave something out, or are no settings; one line.
  """
  given = {}
  flags = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
  for name, flag in flags.items():
    variable = ENVIRONMENT[name]
    told = environ.get(variable, "")
    if flag and told and flag != told:
      raise ValueError(f"--{name}={flag}, but {variable}={told}: give one of them, or the same value twice")
    if flag or told:
      given[name] = flag or told
  numbers = {name: _whole_number(name, given[name]) for name in ("num_processes", "process_id") if name in given}
  if numbers.get("num_processes", 1) < 1:
    raise ValueError(f"--num_processes is at least 1, not {given['num_processes']}")
  if pod or environ.get("DIFFGR_POD") == "1":
    if extra := sorted(given.keys() - {"num_processes"}):
      raise ValueError(f"--pod asks the cluster who is who: leave --{extra[0]} ({ENVIRONMENT[extra[0]]}) out")
    return PodSettings(num_processes=numbers.get("num_processes", 0), detect=True)
  if not given:
    if len(workers := [name for name in environ.get("TPU_WORKER_HOSTNAMES", "").split(",") if name]) > 1:
      raise ValueError(
        f"this host is one of {len(workers)} (TPU_WORKER_HOSTNAMES): start the program on each with --pod"
      )
    return PodSettings()
  if missing := [name for name in flags if name not in given]:
    raise ValueError(
      f"a job of several processes needs --{missing[0]} ({ENVIRONMENT[missing[0]]}) beside --{next(iter(given))}"
    )
  host, _, port = given["coordinator_address"].rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(f"--coordinator_address is HOST:PORT, not {given['coordinator_address']}")
  if not 0 <= numbers["process_id"] < numbers["num_processes"]:
    raise ValueError(
      f"--process_id is from 0 to {numbers['num_processes'] - 1} in a job of {numbers['num_processes']}"
      f" processes, not {numbers['process_id']}"
    )
  return PodSettings(given["coordinator_address"], numbers["num_processes"], numbers["process_id"])


def _whole_number(name: str, value: str) -> int:
  if not value.isdecimal():
    raise ValueError(f"--{name} is a whole number, not {value!r}")
  return int(value)


def initialize(settings: PodSettings) -> None:
  """Joins the other processes; must come before anything asks JAX for devices.

  Raises:
    RuntimeError: the others did not come, or there are more or fewer than there must be; one line.
  """
  if settings.alone:
    return
  jax.config.update("jax_cpu_collectives_implementation", "gloo")  # read by the CPU backend only
  limits: dict[str, Any] = dict(
    initialization_timeout=START_SECONDS,
    shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )
  try:
    if settings.detect:
      jax.distributed.initialize(**limits)
    else:
      jax.distributed.initialize(settings.coordinator_address, settings.num_processes, settings.process_id, **limits)
  except (ValueError, RuntimeError) as error:
    where = settings.coordinator_address or "the cluster that --pod asks"
    raise RuntimeError(f"could not join the job at {where}: {str(error).splitlines()[0]}") from None
  if settings.num_processes and jax.process_count() != settings.num_processes:
    raise RuntimeError(f"the job has {jax.process_count()} processes, not {settings.num_processes} (--num_processes)")


@contextlib.contextmanager
def no_waiting_after_failure() -> Iterator[None]:
  """Ends a process of several at once when it fails: the others wait for it in a collective, and it for them to end."""
  try:
    yield
  except (ValueError, OSError, RuntimeError) as error:
    if jax.process_count() == 1:
      raise
    print(f"error: {error}".splitlines()[0], file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def process_rows(mesh: Mesh, batch_size: int) -> Int[np.ndarray, "R"]:
  """Rows of the global batch that this process's devices hold: what its input pipeline must make, ascending."""
  rows = np.arange(batch_size)
  held = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([rows[index] for index in held if index is not None]))


@contextlib.contextmanager
def in_turn(what: str) -> Iterator[None]:
  """Process 0 goes first, then all others; also where it fails, so that each can say why."""
  first = jax.process_index() == 0
  if not first:
    barrier(what)
  try:
    yield
  finally:
    if first:
      barrier(what)


def barrier(what: str) -> None:
  """Waits until every process is here, however long the first ones must.

  By the coordination service: a collective of devices gives up after 30 s on a CPU.
  """
  ocp.multihost.get_barrier_sync_fn()(key=what, timeout_ms=1000 * WORK_SECONDS)


def compile_together(function: Any, *args: Any, **kwargs: Any) -> None:
  """Compiles a jitted function in all processes before one of them runs it, where that matters: between CPUs (gloo).

  There the first collective gives up after 30 s, and a busy host may compile so much longer than another.
  """
  if jax.process_count() > 1 and jax.default_backend() == "cpu":
    function.lower(*args, **kwargs).compile()
    barrier("compiled")


def agreed(value: int) -> int:
  """Process 0's value, in every process."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def fetch(array: Any) -> np.ndarray:
  """The values of an array that may lie on devices of other processes; every process must ask."""
  if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
  return np.asarray(array)


def check_shared(path: Path) -> None:
  """Raises where this process does not see a file that process 0 has written.

  Raises:
    FileNotFoundError: the workdir is another folder on each host.
  """
  if not path.exists():
    raise FileNotFoundError(
      f"process {jax.process_index()} does not see {path}, which process 0 wrote: the workdir of a job on several hosts"
      " must be storage that all of them share, such as a mounted bucket"
    )
