"""Speed by the counting rule, time that is not training, and the trace of some steps."""

import dataclasses
import itertools
import json
import time

import numpy as np
import pytest

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.flops import train_step_flops
from diffgr_jax.training import loop, speed
from diffgr_jax.training.speed import LostTime, Work, figures, parse_steps, process_age, work_of_batch

MODEL = TransformerConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=20)


def test_padding_is_no_work():
  prompt = np.array([[0, 0, 5, 6], [0, 7, 8, 9]])
  work = work_of_batch(prompt, canvas_length=3, pad_id=0, batch_size=8, model=MODEL)
  one = lambda length: train_step_flops(MODEL, 1, length, "bidirectional", logits_positions=3)
  assert work == Work(1, 8, tokens=4.0 * (5 + 6), flops=4.0 * (one(5) + one(6)))


def test_rows_without_a_canvas_are_their_prompts_alone():
  model = dataclasses.replace(MODEL, code_levels=4, code_size=5, head="none", first_pass="prompt")
  prompt = np.array([[0, 0, 5, 6], [0, 7, 8, 9]])
  work = work_of_batch(prompt, canvas_length=4, pad_id=0, batch_size=8, model=model, masked=6)
  one = lambda length, logits: train_step_flops(model, 1, length, "bidirectional", logits_positions=logits)
  flops = 1.0 * (one(6, 4) + one(7, 4)) + 3.0 * (one(2, 2) + one(3, 2))
  assert work == Work(1, 8, tokens=1.0 * (6 + 7) + 3.0 * (2 + 3), flops=flops)


def test_rates_are_work_over_seconds_and_mfu_needs_a_known_device():
  work = Work(1, 8, 100.0, 4e15) + Work(1, 8, 60.0, 4e15)
  rates = figures(work, 4.0, 8, "TPU v5 lite")
  assert rates == {
    "step_seconds": 2.0,
    "examples/s": 4.0,
    "tokens/s": 40.0,
    "TFLOP/s/device": 250.0,
    "MFU": pytest.approx(250 / 197),
  }
  assert "MFU" not in figures(work, 4.0, 8, "cpu")
  assert figures(Work(), 4.0, 8, "cpu") == {}


def test_what_is_lost_and_what_is_left_make_the_whole(monkeypatch):
  monkeypatch.setattr(speed, "_runs", itertools.count())
  lost = LostTime(repeated=2.0)
  lost.begin_training()
  with lost.to("data"):
    time.sleep(0.06)
  with lost.to("checkpoint"):
    time.sleep(0.06)
  assert lost.lost["start"] >= process_age() - 1.0
  assert lost.lost["data"] == pytest.approx(0.06, abs=0.05)
  assert lost.lost["checkpoint"] >= 0.06
  share = sum(lost.lost.values()) / lost.total()
  assert lost.goodput() == pytest.approx(1 - share, abs=1e-3)
  assert "repeated 2.0" in lost.summary()
  assert "evaluation" not in lost.summary()
  second = LostTime()  # of this process, which is older than it
  second.begin_training()
  assert second.lost["start"] < 1.0


def test_the_process_is_older_than_this_module():
  first = process_age()
  time.sleep(0.05)
  assert 0.0 < first < process_age()


@pytest.mark.parametrize("text", ["10", "10-12", "0:3", "5:4", "a:b", "1:"])
def test_steps_to_trace_are_first_and_last(text):
  with pytest.raises(ValueError, match="--profile_steps is FIRST:LAST"):
    parse_steps(text)
  assert parse_steps("10:12") == (10, 12)
  assert parse_steps("") is None


def test_a_run_logs_its_speed_says_its_goodput_and_writes_a_trace(tiny_config, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(speed, "_runs", itertools.count())  # as the first run of a process
  with tiny_config.unlocked():
    tiny_config.update(eval_every=3)
  loop.train_and_evaluate(tiny_config, tmp_path, profile_steps=(3, 4))
  lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  last = [line for line in lines if "loss" in line][-1]
  assert last["step"] == 6
  assert last["examples/s"] == pytest.approx(8 / last["step_seconds"])
  assert 0 < last["tokens/s"] < 8 * (12 + 40) / last["step_seconds"]
  assert 0.0 < last["goodput"] < 1.0
  said = capsys.readouterr().out
  assert "goodput" in said
  for part in ("start", "compile", "checkpoint", "evaluation"):
    assert part in said
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
