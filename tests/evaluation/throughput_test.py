"""The throughput harness: its cases decode what they say, its figures follow from its times."""

import json

import numpy as np
import pytest

from configs.bench.decode import get_config
from diffgr_jax.evaluation import throughput
from diffgr_jax.evaluation.bench import check_bench, make_workload, run_bench
from diffgr_jax.evaluation.machine import Costs
from diffgr_jax.evaluation.throughput import Case, case_figures, crossovers
from diffgr_jax.models.config import TransformerConfig


def tiny(**fields):
  config = get_config("size=tiny")
  with config.unlocked():
    config.update(batch_sizes=(2,), new_tokens=(16,), block_sizes=(4,), rounds=2, **fields)
  return config


def made_case(rows, block, seconds, forwards=32):
  case = Case(rows, 164, 100, block, f"block {block}" if block else "AR", run=lambda n: None)
  case.whole, case.first, case.forwards = [seconds + 1.0] * 3, [1.0] * 3, forwards
  return case


def test_a_bench_run_writes_what_it_measured(tmp_path, capsys):
  record = run_bench(tiny(thresholds=(1.0,)), tmp_path)
  assert json.loads((tmp_path / "results.json").read_text())["metrics"] == record["metrics"]
  of_rows = record["metrics"]["16 new tokens, batch 2"]
  assert list(of_rows) == ["AR", "block 4, 4 a pass", "block 4, threshold 1.0"]
  assert [of_rows[label]["forwards"] for label in of_rows] == [16, 4, 16]
  assert all(figures["rounds"] == 2 for figures in of_rows.values())
  printed = capsys.readouterr().out
  assert "block 4, 4 a pass" in printed
  assert "This machine reads" in printed
  assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_block_size_one_with_the_same_weights_agrees_with_autoregression():
  work = make_workload(tiny())
  cases = throughput.make_cases(work, batch_sizes=(2,), new_tokens=(6,), block_sizes=(1,), tokens_per_forward=(1,))
  costs = Costs(work.config, work.params)
  list(throughput.measure(cases, costs, rounds=1, most_seconds=60.0, mask_id=work.mask_id))
  assert [case.agreement for case in cases] == [1.0, 1.0]
  assert [len(case.whole) for case in cases] == [1, 1]
  assert all(len(samples) == 2 for samples in costs.measured.values())


def test_speed_up_ceiling_and_share_by_hand():
  costs = Costs(TransformerConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=1, n_kv_heads=1, head_dim=8, d_ff=8), {})
  costs.body = {2: 1.0, 16: 2.0, 32: 3.5}.__getitem__
  costs.head = {2: 0.5, 16: 1.0}.__getitem__
  # 8 positions, 4 a pass: 2 passes; the commitment rides on the first pass of the next block for 1.5 instead of 2.
  assert costs.block(8, 2.0, 2) == 2 * (2.0 + 1.0) + 1.5
  assert costs.block(8, 2.0, 2, commit=False) == 6.0
  assert costs.best_speedup(8, 2.0, 2) == 8 * 1.5 / 7.5
  # Attention on both sides: once a step, and in each of the three passes that a block is computed in.
  costs.attention = lambda rows, slots, positions=1: {1: 0.1, 8: 0.25}[positions]
  np.testing.assert_allclose(costs.best_with_attention(8, 2.0, 2, 100), 8 * 1.6 / (7.5 + 3 * 0.25))
  ar, block = made_case(2, 0, 99 * 2.0, forwards=100), made_case(2, 8, 92 * 1.5, forwards=25)
  figures = case_figures(block, ar, costs)
  np.testing.assert_allclose([figures["speed-up"], figures["ceiling"]], [2.0 / 1.5, 1.6])
  np.testing.assert_allclose(figures["share"], (2.0 / 1.5) / 1.6)
  np.testing.assert_allclose(figures["share, attention too"], (2.0 / 1.5) / (8 * 1.6 / 8.25))
  assert figures["tok/forward"] == 4.0
  assert figures["tok/s"] == 2 * 100 / (92 * 1.5 + 1.0)


def test_crossover_is_the_smallest_batch_at_which_blocks_are_slower():
  of = lambda x: {"AR": {}, "a": {"speed-up": x}, "b": {"speed-up": 2.0}}
  assert crossovers({1: of(2.0), 8: of(1.1), 32: of(0.9), 64: of(0.5)}) == {"a": 32, "b": None}


@pytest.mark.parametrize(
  "fields, message",
  [
    (dict(batch_sizes=(0,)), r"config\.batch_sizes holds numbers of at least 1"),
    (dict(thresholds=(1.5,)), r"config\.thresholds holds probabilities in \(0, 1\], not 1\.5"),
    (dict(rounds=0), r"config\.rounds is at least 1, not 0"),
    (dict(dtype="float16"), r"config\.dtype is float32 or bfloat16, not 'float16'"),
  ],
)
def test_what_cannot_be_measured_is_refused(fields, message):
  config = tiny()
  config.unlock()
  config.update(fields)
  with pytest.raises(ValueError, match=message):
    check_bench(config)
