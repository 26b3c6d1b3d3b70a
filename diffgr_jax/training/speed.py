"""How fast a run is, by our counting rule, and where the time goes that is not training.

    step time    wall time a step, evaluations and checkpoints left out
    tokens/s     tokens that are no padding: prompt and canvas
    MFU          operations of the model (models/flops.py) a second and device, over the peak of the device
    goodput      share of the time since the process began that was training: less start, compilation, data that the
                 devices waited for, checkpoints, evaluations, and steps trained before a crash that no checkpoint kept

Tokens and operations are counted on this process's rows and scaled to the batch.
"""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
import itertools
import os
from pathlib import Path
import time

import jax
import numpy as np

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.flops import docid_step_flops
from diffgr_jax.parallel.chips import CHIPS

# JAX's names of devices.
_KINDS = {
  "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e", "TPU v6e": "v6e",
  "TPU7x": "tpu7x",
}  # fmt: skip
# bfloat16 operations a second of one device (nvidia.com for the GPU).
PEAK_FLOPS = {kind: CHIPS[chip].bf16_flops for kind, chip in _KINDS.items()} | {"NVIDIA H100 80GB HBM3": 989e12}
LOSSES = ("start", "compile", "data", "checkpoint", "evaluation", "repeated")


@dataclass
class Work:
  """What one or more steps did."""

  steps: int = 0
  examples: int = 0
  tokens: float = 0.0
  flops: float = 0.0

  def __add__(self, other: "Work") -> "Work":
    return Work(
      self.steps + other.steps,
      self.examples + other.examples,
      self.tokens + other.tokens,
      self.flops + other.flops,
    )


def work_of_batch(
  prompt: np.ndarray,
  *,
  canvas_length: int,
  pad_id: int,
  batch_size: int,
  model: TransformerConfig,
  pattern: str = "bidirectional",
  masked: int = 0,
) -> Work:
  """Of one step on a batch of which this process has the rows `prompt` [rows, P].

  `masked` of the batch's rows are read without a canvas; which of them this process has is not asked.
  """
  prompts, whole = (prompt != pad_id).sum(axis=1), batch_size - masked
  flops = docid_step_flops(model, prompts, canvas_length, pattern, rows=batch_size, unread=masked)
  return Work(1, batch_size, batch_size * float(prompts.mean()) + whole * canvas_length, flops)


def figures(work: Work, seconds: float, devices: int, device_kind: str) -> dict[str, float]:
  """Rates of the work that was done in so many seconds; MFU where the device's peak is known."""
  if not work.steps or seconds <= 0:
    return {}
  rate = work.flops / seconds / devices
  values = {
    "step_seconds": seconds / work.steps,
    "examples/s": work.examples / seconds,
    "tokens/s": work.tokens / seconds,
    "TFLOP/s/device": rate / 1e12,
  }
  return values | ({"MFU": rate / PEAK_FLOPS[device_kind]} if device_kind in PEAK_FLOPS else {})


_runs = itertools.count()  # that this process has begun


class LostTime:
  """Seconds since the process began (of its later runs: since they did), and those that were not training."""

  def __init__(self, *, repeated: float = 0.0):
    """`repeated` are seconds of an earlier process whose steps are trained again."""
    self._began = time.monotonic() - (process_age() if next(_runs) == 0 else 0.0)
    self.lost = dict.fromkeys(LOSSES, 0.0) | {"repeated": repeated}

  def begin_training(self) -> None:
    self.lost["start"] = time.monotonic() - self._began

  @contextlib.contextmanager
  def to(self, what: str) -> Iterator[None]:
    """Counts the time inside as lost."""
    began = time.monotonic()
    try:
      yield
    finally:
      self.lost[what] += time.monotonic() - began

  @property
  def between_steps(self) -> float:
    """Seconds that are no part of a step."""
    return self.lost["checkpoint"] + self.lost["evaluation"] + self.lost["compile"]

  def total(self) -> float:
    return time.monotonic() - self._began + self.lost["repeated"]

  def goodput(self) -> float:
    return 1.0 - sum(self.lost.values()) / self.total()

  def summary(self) -> str:
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.lost.items() if seconds >= 0.05)
    return f"goodput {100 * self.goodput():.0f}% of {self.total():.1f} s; lost to {parts or 'nothing'} s"


def process_age() -> float:
  """Seconds since this process began, imports included; 0 where the system does not say (Linux does)."""
  try:
    started = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    uptime = Path("/proc/uptime").read_text(encoding="utf-8").split()[0]
  except OSError:
    return 0.0
  return max(float(uptime) - int(started) / os.sysconf("SC_CLK_TCK"), 0.0)


class StepProfile:
  """Writes an xprof trace of some steps to `workdir/profile` (process 0)."""

  def __init__(self, steps: tuple[int, int] | None, workdir: Path):
    """`steps` are the first and the last step of the trace; None traces nothing."""
    self._steps = steps if jax.process_index() == 0 else None
    self._folder = workdir / "profile"
    self._running = False

  def before(self, step: int) -> None:
    if self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, step: int, results: object) -> None:
    """Ends the trace behind its last step, when the step's results are there."""
    if self._steps is not None and self._running and step >= self._steps[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
      print(f"trace: {self._folder} (xprof --logdir={self._folder})", flush=True)


def parse_steps(text: str) -> tuple[int, int] | None:
  """FIRST:LAST of --profile_steps; nothing for an empty text.

  Raises:
    ValueError: not of that form, or no steps.
  """
  if not text:
    return None
  first, colon, last = text.partition(":")
  if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
    raise ValueError(f"--profile_steps is FIRST:LAST, two steps such as 10:12, not {text!r}")
  return int(first), int(last)
