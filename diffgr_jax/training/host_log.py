"""A log of each process: `workdir/logs/process_3.log` says when it came, what it did, and why it went.

Metrics are the job's and come from process 0 (metrics.py). What differs between hosts - which one came late, was
killed, or could not read a file - stands here, a line with the time for each event.
"""

from collections.abc import Iterator
import contextlib
import logging
from pathlib import Path
import socket

import jax

LOGGER = logging.getLogger("diffgr_jax")


@contextlib.contextmanager
def host_log(workdir: Path) -> Iterator[None]:
  """Appends what the project logs to this process's file; of a failure, its one line."""
  path = workdir / "logs" / f"process_{jax.process_index()}.log"
  path.parent.mkdir(parents=True, exist_ok=True)
  handler = logging.FileHandler(path, encoding="utf-8")
  handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
  level, propagate = LOGGER.level, LOGGER.propagate
  LOGGER.addHandler(handler)
  LOGGER.setLevel(logging.INFO)
  LOGGER.propagate = False  # the terminal shows progress, not events
  try:
    LOGGER.info(
      "process %d of %d on %s: %d of %d devices (%s)",
      jax.process_index(), jax.process_count(), socket.gethostname(), jax.local_device_count(), jax.device_count(),
      jax.devices()[0].device_kind,
    )  # fmt: skip
    yield
    LOGGER.info("done")
  except BaseException as error:
    LOGGER.error("%s: %s", type(error).__name__, (str(error).splitlines() or [""])[0])
    raise
  finally:
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)
    LOGGER.propagate = propagate
    handler.close()
