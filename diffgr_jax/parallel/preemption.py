"""SIGTERM is a notice: the machine goes away in some seconds (30 on a spot VM). A run saves, then leaves. So is
a first Ctrl-C.

All processes must save the same step, but the notice reaches each at another moment, or only one of them. In a job of
several, JAX's coordination service passes it on and finds the first step that no process has begun; alone, a flag does.
"""

from collections.abc import Iterator
import contextlib
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # of sysexits.h: failed for now, try again


class Preempted(Exception):
  """The run was told to leave, has saved, and goes on from there when started again."""


class Notice:
  """Whether the run was told to leave."""

  def __init__(self):
    self._told = threading.Event()

  def tell(self, *_) -> None:
    self._told.set()

  def interrupt(self, *_) -> None:
    """Ctrl-C: the first is a notice, the second means now."""
    if self._told.is_set():
      raise KeyboardInterrupt
    self.tell()
    print("\nCtrl-C: saves and leaves after this step; again: leaves at once", file=sys.stderr)

  def reached(self, step: int) -> bool:
    """True at the step that all processes save and leave at. To be asked once in every step, by every process."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._told.is_set()


@contextlib.contextmanager
def notice_of_preemption() -> Iterator[Notice]:
  """Takes SIGTERM and Ctrl-C as notices; in a job of several processes `jax.distributed` has taken SIGTERM already."""
  notice = Notice()
  if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
    yield notice
    return
  taken = {signal.SIGTERM: notice.tell, signal.SIGINT: notice.interrupt}
  before = {number: signal.signal(number, handler) for number, handler in taken.items()}
  try:
    yield notice
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
