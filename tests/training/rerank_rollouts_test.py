"""OPD and RL in the one loop, on tiny shops: resumed = uninterrupted, ahead or not; what is refused, and watched."""

import dataclasses
import json
import time
import types

import jax
import numpy as np
import pytest

from diffgr_jax.rerank.answer import Verdict
from diffgr_jax.stages.rl import RlStage
from diffgr_jax.training import loop, rerank_rollouts
from diffgr_jax.training.jobs import check_config
from diffgr_jax.training.metrics import Collapse
from diffgr_jax.training.rerank_rollouts import RolloutJob
from tests.training.tiny_rerank import tiny


def same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def started(rerank_runs, tmp_path_factory):
  """A teacher and a converted student."""
  folder, _ = rerank_runs
  student = tmp_path_factory.mktemp("rollouts") / "convert"
  loop.train_and_evaluate(tiny("convert", folder / "sft"), student)
  return folder / "sft", student


def opd(started, **fields):
  return tiny("opd", started[1], teacher=str(started[0]), group=2, lr_decay="constant", **fields)


def rl(start, **fields):
  return tiny("rl", start, group=4, lr_decay="constant", **fields)


def metrics(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if "loss" in line]


def losses(workdir):
  """By step; one that a resumed run takes again has to come out the same."""
  found = {}
  for line in metrics(workdir):
    assert found.setdefault(line["step"], line["loss"]) == line["loss"], line["step"]
  return found


def interrupted(config, workdir, monkeypatch, at):
  real, calls = loop.train_step, []

  def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == at:
      raise RuntimeError("pulled the plug")
    return real(*args, **kwargs)

  monkeypatch.setattr(loop, "train_step", killed)
  with pytest.raises(RuntimeError, match="pulled the plug"):
    loop.train_and_evaluate(config, workdir)
  monkeypatch.setattr(loop, "train_step", real)
  return loop.train_and_evaluate(config, workdir)


def test_the_time_of_an_update_is_not_counted_as_that_of_rollouts(started, tmp_path, monkeypatch):
  """Weights are waited for before the clock starts: here the wait, and nothing else, takes an hour."""
  real, waited = jax.block_until_ready, [0.0]

  def wait(x):
    waited[0] += 3600.0
    return real(x)

  monkeypatch.setattr(jax, "block_until_ready", wait)
  clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + waited[0])
  monkeypatch.setattr(rerank_rollouts, "time", clock)
  loop.train_and_evaluate(opd(started), tmp_path)
  lines = metrics(tmp_path)
  assert waited[0] >= 3600.0 * len(lines)
  assert all(0 < line["rollout_seconds"] < 1800 for line in lines)
  assert all(line["rollout_share"] < 0.5 for line in lines)


def test_an_update_is_reported_before_its_weights_write(started, tmp_path, monkeypatch):
  """So every line of metrics has as many rounds of rollouts as updates, and weights that are not finite write none."""
  seen, real = [], RolloutJob.roll_out

  def roll_out(self, params, step, mesh):
    seen.append((step, len(metrics(tmp_path)) if step > 1 else 0))
    return real(self, params, step, mesh)

  monkeypatch.setattr(RolloutJob, "roll_out", roll_out)
  loop.train_and_evaluate(opd(started, log_every=1), tmp_path)
  assert seen == [(step, step - 1) for step in range(1, 5)]


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"teacher_top_k": 20, "divergence": "jsd", "teacher_passes": 2},
    {"divergence": "sampled", "rollout_temperature": 1.0},
    {"updates_per_rollout": 2, "rollout_ahead": True},
  ],
)
def test_a_student_is_distilled_and_resumes_bit_for_bit(started, tmp_path, monkeypatch, fields):
  _, whole = loop.train_and_evaluate(opd(started, **fields), tmp_path / "whole")
  rounds = sorted(int(file.stem) for file in (tmp_path / "whole").glob("rollouts/*.npz"))
  assert rounds == ([0, 1] if "updates_per_rollout" in fields else [])  # four steps; none is written for a fifth
  found = metrics(tmp_path / "whole")
  assert all(np.isfinite(line["loss"]) for line in found)
  assert {"rollouts valid", "rollouts entropy", "rollout_share", "rollouts truncated"} <= set(found[0])
  assert 0 < found[0]["rollout_share"] <= 1
  _, resumed = interrupted(opd(started, **fields), tmp_path / "broken", monkeypatch, 4)
  same_bits(resumed, whole)
  assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def test_distillation_asks_for_more_where_answers_are_valid(started, tmp_path, monkeypatch):
  """Every second list, here, has valid answers alone, and is replaced by another."""
  real = rerank_rollouts._Writer._roll
  seen = []

  def roll(self, params, indices, draw=0):
    rows, answers, rewards = real(self, params, indices, draw)
    verdict = np.where(np.asarray(indices) // 2 % 2, Verdict.OK, Verdict.TRUNCATED)
    seen.append((draw, rows["list"]))
    return rows, dataclasses.replace(answers, verdict=verdict), rewards

  monkeypatch.setattr(rerank_rollouts._Writer, "_roll", roll)
  _, whole = loop.train_and_evaluate(opd(started, refills=3), tmp_path / "whole")
  found = metrics(tmp_path / "whole")
  assert [line["rollouts valid"] for line in found] == [0.5] * len(found)
  assert [line["kept"] for line in found] == [1.0] * len(found)
  assert {draw for draw, _ in seen} == {0, 1}  # one more round is enough
  _, resumed = interrupted(opd(started, refills=3), tmp_path / "broken", monkeypatch, 4)
  same_bits(resumed, whole)


def test_a_student_can_be_taught_by_its_slower_self(started, tmp_path):
  itself = {"teacher_slow": True, "group": 2, "teacher_temperature": 1.0}
  config = tiny("opd", started[1], rollout_threshold=1e-4, **itself)
  loop.train_and_evaluate(config, tmp_path / "slow")
  assert metrics(tmp_path / "slow")[0]["loss"] > 0  # several tokens a pass are not what one at a time would be
  one = tiny("opd", started[1], rollout_threshold=1.0, steps=1, warmup_steps=0, **itself)
  loop.train_and_evaluate(one, tmp_path / "same")
  assert metrics(tmp_path / "same")[0]["loss"] == pytest.approx(0.0, abs=1e-5)  # it is its own teacher


@pytest.mark.parametrize("kind", ["autoregressive", "block"])
@pytest.mark.parametrize("fields", [{}, {"updates_per_rollout": 2, "kl_weight": 0.1, "refills": 1}])
def test_a_policy_is_rewarded_and_resumes_bit_for_bit(started, tmp_path, monkeypatch, kind, fields):
  reward_of_length(monkeypatch)
  start = started[kind == "block"]
  job, whole = loop.train_and_evaluate(rl(start, **fields), tmp_path / "whole")
  assert isinstance(job, RolloutJob)
  assert isinstance(job.stage, RlStage)
  assert job.stage.policy.in_blocks == (kind == "block")
  found = metrics(tmp_path / "whole")
  assert found[0]["ratio_off"] < 1e-5  # contract 8, in the loop
  assert found[0]["kept"] > 0
  assert found[0]["grad_norm"] > 0
  _, resumed = interrupted(rl(start, **fields), tmp_path / "broken", monkeypatch, 4)
  same_bits(resumed, whole)
  assert losses(tmp_path / "broken") == losses(tmp_path / "whole")


def reward_of_length(monkeypatch):
  """Barely trained models write nothing valid: all their rewards are -1. Answers are rewarded by a token's parity."""
  import diffgr_jax.training.rerank_rollouts as module

  real = module._Writer._roll

  def roll(self, params, indices, draw=0):
    rows, answers, _ = real(self, params, indices, draw)
    last = np.take_along_axis(rows["tokens"], (rows["start"] + rows["length"] - 1)[:, None], axis=1)[:, 0]
    return rows, answers, (last % 3).astype(np.float32)

  monkeypatch.setattr(module._Writer, "_roll", roll)


@pytest.mark.parametrize("estimator", ["mean_field", "coupled", "elbo", "sandwiched"])
def test_estimators_train_too(started, tmp_path, monkeypatch, estimator):
  reward_of_length(monkeypatch)
  loop.train_and_evaluate(rl(started[1], estimator=estimator, steps=2), tmp_path / estimator)
  found = metrics(tmp_path / estimator)
  assert found[0]["ratio_off"] < 1e-5
  assert found[0]["grad_norm"] > 0


def test_one_device_and_eight_roll_out_alike(started, tmp_path, monkeypatch):
  reward_of_length(monkeypatch)
  loop.train_and_evaluate(rl(started[1], steps=2, warmup_steps=0), tmp_path / "eight")
  real = loop.make_mesh
  monkeypatch.setattr(loop, "make_mesh", lambda sizes: real(sizes, jax.devices()[:1]))
  loop.train_and_evaluate(rl(started[1], steps=2, warmup_steps=0), tmp_path / "one")
  one, eight = metrics(tmp_path / "one"), metrics(tmp_path / "eight")
  for name in ("reward", "rollouts length", "rollouts entropy", "loss", "grad_norm"):
    assert one[0][name] == pytest.approx(eight[0][name], rel=1e-3, abs=1e-6)


def test_a_collapse_stops_the_run(started, tmp_path):
  with pytest.raises(Collapse, match=r"valid 0.000, below config.least_valid 0.5"):
    loop.train_and_evaluate(rl(started[1], least_valid=0.5), tmp_path / "run")


def test_all_invalid_groups_change_nothing(started, tmp_path):
  _, state = loop.train_and_evaluate(rl(started[1], weight_decay=0.0, steps=1, warmup_steps=0), tmp_path / "run")
  assert metrics(tmp_path / "run")[0]["kept"] == 0
  _, fresh = loop.train_and_evaluate(tiny("convert", started[0]), tmp_path / "convert")
  same_bits(state.params, fresh.params)


@pytest.mark.parametrize(
  "stage, fields, message",
  [
    ("rl", {"group": 3}, r"config.batch_size \(8\) counts rollouts"),
    ("rl", {"group": 1}, "config.group is at least 2"),
    ("rl", {"max_new_tokens": 500}, "leaves no room for a prompt"),
    ("rl", {"updates_per_rollout": 4}, "config.checkpoint_every"),
    ("opd", {}, "config.teacher names a workdir unless"),
    ("opd", {"teacher": "x", "divergence": "jsd", "jsd_beta": 1.0}, "config.jsd_beta is between 0 and 1"),
    ("opd", {"teacher": "x", "divergence": "sampled", "updates_per_rollout": 2}, "updates_per_rollout must be 1"),
    ("opd", {"teacher": "x", "divergence": "sampled", "rollout_temperature": 0.7}, "rollout_temperature must be 1.0"),
    ("opd", {"teacher": "x", "divergence": "sampled", "rollout_temperature": 1.0, "refills": 1}, "refills must be 0"),
    (
      "opd",
      {"teacher": "x", "divergence": "sampled", "rollout_temperature": 1.0, "teacher_passes": 4},
      "teacher_passes must be 0",
    ),
    ("opd", {"teacher": "x", "divergence": "tv"}, "config.divergence is one of"),
  ],
)
def test_what_cannot_work_is_refused(stage, fields, message):
  with pytest.raises(ValueError, match=message):
    check_config(tiny(stage, "somewhere", **fields))


def test_what_does_not_fit_is_refused(started, tmp_path):
  with pytest.raises(ValueError, match="is not converted"):
    loop.train_and_evaluate(tiny("opd", started[0], teacher=str(started[0])), tmp_path / "a")
  with pytest.raises(ValueError, match="it must be autoregressive"):
    loop.train_and_evaluate(tiny("opd", started[1], teacher=str(started[1])), tmp_path / "b")
  with pytest.raises(ValueError, match="block_size is 16"):
    loop.train_and_evaluate(rl(started[1], block_size=16), tmp_path / "c")
  with pytest.raises(ValueError, match=r"'coupled', but .* is autoregressive"):
    loop.train_and_evaluate(rl(started[0], estimator="coupled"), tmp_path / "e")
  with pytest.raises(ValueError, match=r"none of .* fits"):
    loop.train_and_evaluate(rl(started[1], row_length=48, max_new_tokens=24), tmp_path / "d")


def test_every_rollout_has_a_verdict(started, tmp_path):
  loop.train_and_evaluate(rl(started[1], steps=1, warmup_steps=0), tmp_path / "run")
  line = metrics(tmp_path / "run")[0]
  verdicts = ("valid", "duplicate", "omission", "out_of_set", "truncated", "unparsable")
  assert sum(line[f"rollouts {name}"] for name in verdicts) == pytest.approx(1.0)
