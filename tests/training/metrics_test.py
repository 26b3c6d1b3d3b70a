"""Training's numbers: the JSONL file, TensorBoard, the check that stops a run, and the progress bar."""

import json
import math
from pathlib import Path
import re

import pytest

from diffgr_jax.training.metrics import MetricWriter, NonFiniteLoss, ProgressBar, check_finite, recorded_seconds


def test_every_write_is_a_line_and_a_resumed_run_appends(tmp_path):
  writer = MetricWriter(tmp_path / "run")
  writer.write(1, {"loss": 2.5, "grad_norm": 0.25})
  (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()  # readable before the run ends
  assert json.loads(line) == {"step": 1, "loss": 2.5, "grad_norm": 0.25}
  writer.close()
  resumed = MetricWriter(tmp_path / "run")
  resumed.write(2, {"loss": 1.5})
  resumed.close()
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_tensorboard_files_hold_the_tags(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(3, {"valid Hit@1": 0.5})
  writer.close()
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert "tfevents" in events.name
  assert b"Hit" in events.read_bytes()


def test_recorded_seconds_are_those_of_the_steps_up_to_the_one_asked_for(tmp_path):
  assert recorded_seconds(tmp_path, 9) == 0.0
  writer = MetricWriter(tmp_path)
  writer.write(2, {"loss": 1.0, "seconds": 30.0})
  writer.write(3, {"valid Hit@1": 0.1})  # a line without a clock
  writer.write(4, {"loss": 1.0, "seconds": 90.0})
  writer.close()
  assert [recorded_seconds(tmp_path, step) for step in (1, 2, 3, 4, 9)] == [0.0, 30.0, 30.0, 90.0, 90.0]


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stops_the_run_and_names_step_and_checkpoint(name, value):
  metrics = {"loss": 1.0, "grad_norm": 1.0} | {name: value}
  with pytest.raises(NonFiniteLoss, match=rf"{name} is {value} at step 41; the last good checkpoint is .*kept.30\b"):
    check_finite(41, metrics, 30, Path("kept"))
  with pytest.raises(NonFiniteLoss, match="at step 4; none was kept yet"):
    check_finite(4, metrics, None, Path("kept"))


def test_finite_numbers_pass_and_other_metrics_are_not_looked_at():
  check_finite(1, {"loss": 0.0, "grad_norm": 1e30, "document_hits": math.nan}, None, Path("kept"))


def test_progress_says_steps_loss_rate_and_time_left(capsys):
  bar = ProgressBar(start=2, total=10, batch_size=64)
  for loss in (3.0, 2.0, 1.25):
    bar.update(loss)
  bar.close()
  shown = capsys.readouterr()
  assert shown.out == ""
  assert "\x1b" not in shown.err  # not a terminal: no cursor movements
  last = shown.err.rstrip().splitlines()[-1].rpartition("\r")[2]
  assert re.fullmatch(r"training\s+50%\|[# ]{20}\| 5/10 steps, loss 1\.250, \d+ examples/s, [\d:?]+ left", last), last


def test_progress_is_silent_when_turned_off(capsys):
  bar = ProgressBar(start=0, total=1, batch_size=1, enabled=False)
  bar.update(1.0)
  bar.close()
  assert capsys.readouterr().err == ""
