"""Where training's numbers go: a JSONL file, TensorBoard (without TensorFlow) and a progress bar.

Metrics are read one step late: the host hands step n+1 to the device before it waits for the numbers of step n, so
that looking at the loss never leaves the device idle.
"""

from collections.abc import Mapping
import json
import math
from pathlib import Path
import sys
import time

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm


class NonFiniteLoss(RuntimeError):
  """The loss is NaN or infinite."""


class Collapse(RuntimeError):
  """A policy's rollouts are no longer worth learning from."""


def check_finite(step: int, metrics: Mapping[str, float], last_good: int | None, directory: Path) -> None:
  """Stops a run whose loss or gradient is not finite.

  Raises:
    NonFiniteLoss: names the step and the last good checkpoint.
  """
  for name in ("loss", "grad_norm"):
    if not math.isfinite(metrics[name]):
      kept = (
        f"the last good checkpoint is {directory / str(last_good)}" if last_good is not None else "none was kept yet"
      )
      raise NonFiniteLoss(f"{name} is {metrics[name]} at step {step}; {kept}. Lower learning_rate or clip_norm.")


def recorded_seconds(workdir: Path, step: int | None = None) -> float:
  """Wall time of a run's training up to a step (None: the last), with compilation, as its metrics say; else 0."""
  path = workdir / "metrics.jsonl"
  lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
  return max(
    (line["seconds"] for line in lines if "seconds" in line and (step is None or line["step"] <= step)), default=0.0
  )


class MetricWriter:
  """Appends numbers to `metrics.jsonl` and TensorBoard event files of a workdir; only process 0 writes."""

  def __init__(self, workdir: Path):
    self._writer, self._file = None, None
    if jax.process_index() == 0:
      workdir.mkdir(parents=True, exist_ok=True)
      self._file = (workdir / "metrics.jsonl").open("a", encoding="utf-8")
      self._writer = SummaryWriter(logdir=str(workdir / "tensorboard"))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    if self._file is None or self._writer is None:
      return
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()
    for name, value in values.items():
      self._writer.add_scalar(name, value, step)

  def close(self) -> None:
    if self._file is not None and self._writer is not None:
      self._file.close()
      self._writer.close()


class ProgressBar:
  """Steps, loss, examples/s and time left, on stderr; a log file gets a line every ten seconds instead of a bar."""

  def __init__(self, *, start: int, total: int, batch_size: int, enabled: bool = True):
    terminal = sys.stderr.isatty()
    self._bar = tqdm(
      total=total,
      initial=start,
      unit="step",
      disable=not enabled or jax.process_index() != 0,
      mininterval=0.5 if terminal else 10.0,
      maxinterval=0.5 if terminal else 10.0,
      bar_format="training {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} steps{postfix}, {remaining} left",
      ascii=None if terminal else " #",
    )
    self._batch_size = batch_size
    self._since, self._steps, self._rate = time.monotonic(), 0, 0.0

  def update(self, loss: float) -> None:
    self._steps += 1
    elapsed = time.monotonic() - self._since
    if elapsed > 2.0 or self._rate == 0.0:
      self._rate = self._steps * self._batch_size / max(elapsed, 1e-9)
      self._since, self._steps = time.monotonic(), 0
    self._bar.set_postfix_str(f"loss {loss:.3f}, {self._rate:.0f} examples/s", refresh=False)
    self._bar.update()

  def close(self) -> None:
    self._bar.close()
