"""The loop: resumed = uninterrupted bit for bit, one device = eight, a NaN stops it, another config is refused."""

import json

import jax
import numpy as np
import pytest

from diffgr_jax.training import loop
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.metrics import NonFiniteLoss
from diffgr_jax.training.run import open_run


def losses_of(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def uninterrupted(tiny_config, tmp_path):
  _, state = loop.train_and_evaluate(tiny_config, tmp_path / "whole")
  return state, losses_of(tmp_path / "whole")


def test_resumed_is_uninterrupted_bit_for_bit(tiny_config, tmp_path, uninterrupted, monkeypatch):
  state, losses = uninterrupted
  real_step, calls = loop.train_step, []

  def killed_in_the_fifth(*args, **kwargs):
    calls.append(1)
    if len(calls) == 5:
      raise RuntimeError("pulled the plug")
    return real_step(*args, **kwargs)

  monkeypatch.setattr(loop, "train_step", killed_in_the_fifth)
  with pytest.raises(RuntimeError, match="pulled the plug"):
    loop.train_and_evaluate(tiny_config, tmp_path / "broken")
  monkeypatch.setattr(loop, "train_step", real_step)
  _, resumed = loop.train_and_evaluate(tiny_config, tmp_path / "broken")
  assert int(resumed.step) == 6
  assert_same_bits(resumed, state)
  assert losses_of(tmp_path / "broken") == losses


def test_a_finished_run_started_again_does_nothing(tiny_config, tmp_path, uninterrupted):
  _, again = loop.train_and_evaluate(tiny_config, tmp_path / "whole")
  assert_same_bits(again.params, uninterrupted[0].params)


def test_the_checkpoint_holds_what_inference_needs(tiny_config, tmp_path, uninterrupted):
  run = open_run(tmp_path / "whole")
  params, step = restore_params(tmp_path / "whole", run.model)
  assert step == 6
  assert_same_bits(params, uninterrupted[0].params)
  assert run.vocab.size <= run.model.vocab_size
  with pytest.raises(FileNotFoundError, match="no checkpoint of step 4; it holds 3, 6"):
    restore_params(tmp_path / "whole", run.model, step=4)


def test_one_device_and_eight_give_the_same_losses(tiny_config, tmp_path, uninterrupted, monkeypatch):
  real_mesh = loop.make_mesh
  monkeypatch.setattr(loop, "make_mesh", lambda sizes: real_mesh(sizes, jax.devices()[:1]))
  loop.train_and_evaluate(tiny_config, tmp_path / "one")
  one, eight = losses_of(tmp_path / "one"), uninterrupted[1]
  np.testing.assert_allclose([one[i] for i in range(1, 7)], [eight[i] for i in range(1, 7)], rtol=2e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(tiny_config, tmp_path, monkeypatch):
  real_step = loop.train_step

  def poisoned(state, *args, **kwargs):
    at = int(state.step)
    state, metrics = real_step(state, *args, **kwargs)
    return state, metrics | ({"loss": metrics["loss"] * np.nan} if at == 4 else {})

  monkeypatch.setattr(loop, "train_step", poisoned)
  with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 5; the last good checkpoint is .*checkpoints/3"):
    loop.train_and_evaluate(tiny_config, tmp_path / "nan")


def test_another_config_in_the_same_workdir_is_refused_by_field(tiny_config, tmp_path, uninterrupted):
  with tiny_config.unlocked():
    tiny_config.d_model = 32
  with pytest.raises(ValueError, match="holds a run with d_model=16, not 32"):
    loop.train_and_evaluate(tiny_config, tmp_path / "whole")


def test_data_without_training_queries_trains_on_the_other_sources(tiny_config, corpus_folder, tmp_path, capsys):
  folder = tmp_path / "corpus"
  folder.mkdir()
  (folder / "corpus.jsonl").write_text((corpus_folder / "corpus.jsonl").read_text())
  with tiny_config.unlocked():
    tiny_config.update(dataset_path=str(folder), steps=2)
  _, state = loop.train_and_evaluate(tiny_config, tmp_path / "run")
  assert int(state.step) == 2
  assert "no training queries" in capsys.readouterr().out


def test_figures_of_the_host_do_not_hide_that_the_devices_ran_dry():
  lost = loop.LostTime()
  for pending in (None, (1, {"loss": jax.block_until_ready(jax.numpy.float32(1.0)), "valid": 0.5}, None)):
    before = lost.lost["data"]
    assert loop._next_batch(iter([{"rows": np.zeros(1)}]), lost, pending).keys() == {"rows"}
    assert lost.lost["data"] > before
