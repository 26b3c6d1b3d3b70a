"""Checkpoints of a run: what a step holds, which steps stay, another mesh, damage, and SIGTERM."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

from diffgr_jax.models.transformer import abstract_params
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.preemption import Preempted
from diffgr_jax.training import docid_job, loop
from diffgr_jax.training.checkpoint import Checkpoints, Position, abstract_state, restore_params
from diffgr_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffgr_jax.training.run import open_run
from diffgr_jax.training.state import create_state, state_shardings


def steps_of(workdir):
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def trained(corpus_folder, tmp_path_factory):
  """A finished run of six steps with a checkpoint every second one, and its last state."""
  from configs.docid.base import get_config

  workdir = tmp_path_factory.mktemp("trained") / "run"
  config = get_config(f"size=tiny,steps=6,dataset=folder,path={corpus_folder}")
  with config.unlocked():
    config.update(
      d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=16, vocab_size=360, prompt_length=12, batch_size=8,
      warmup_steps=1, checkpoint_every=2, start="random", canvas_length=0, eval_every=2, log_every=1,
      eval_splits=("valid",), eval_batch_size=4, keep_checkpoints=3,
    )  # fmt: skip
  _, state = loop.train_and_evaluate(config, workdir)
  return config, workdir, state


@pytest.fixture
def copied(trained, tmp_path):
  shutil.copytree(trained[1], tmp_path / "run")
  return tmp_path / "run"


def test_a_step_alone_holds_all_that_its_weights_mean(trained, tmp_path):
  _, workdir, state = trained
  step = workdir / "checkpoints" / "4"
  position = json.loads((step / "position" / "metadata").read_text())
  assert (position["examples"], position["batch_size"], position["seed"]) == (32, 8, 0)
  assert re.fullmatch(r"fry [0-9a-f]{8}|threefry2x32 [0-9a-f]{8}", position["generator"])
  alone = open_run(step / "run")
  whole = open_run(workdir)
  assert alone.config == whole.config
  assert alone.model == whole.model
  assert alone.vocab.encode("where is the river") == whole.vocab.encode("where is the river")
  np.testing.assert_array_equal(alone.index.codes, whole.index.codes)
  assert (step / "run" / "manifest.json").is_file()
  assert_same_bits(restore_params(workdir, whole.model)[0], state.params)


def test_the_newest_stay_those_of_every_so_many_steps_and_the_best(tiny_config, tmp_path, monkeypatch):
  figures = {2: 0.9, 4: 0.1, 6: 0.2, 8: 0.3, 10: 0.4, 12: 0.5}
  watched = iter(figures.values())
  monkeypatch.setattr(docid_job, "quick_metrics", lambda *_: {"valid MRR@100": next(watched)})
  with tiny_config.unlocked():
    tiny_config.update(steps=12, checkpoint_every=2, eval_every=2, keep_checkpoints=1, keep_every=6, keep_best=1)
  loop.train_and_evaluate(tiny_config, tmp_path)
  assert steps_of(tmp_path) == [2, 6, 12]
  with tiny_config.unlocked():  # what is the best is known to a run that goes on, too
    tiny_config.update(steps=14)
  watched = iter([0.6])
  loop.train_and_evaluate(tiny_config, tmp_path)
  assert steps_of(tmp_path) == [2, 6, 12, 14]


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "tensor": 4}, {"data": 1}])
def test_a_checkpoint_is_read_onto_another_mesh_bit_for_bit(trained, sizes):
  config, workdir, state = trained
  mesh = make_mesh(sizes, jax.devices()[: np.prod(list(sizes.values()))])
  optimizer = make_optimizer(
    learning_rate_schedule(1e-3, warmup_steps=1, steps=6), b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0
  )
  model = open_run(workdir).model
  shardings = state_shardings(model, optimizer, mesh, [*config.rules[:-1], ("layers", None)])
  fresh = create_state(model, optimizer, shardings, seed=1)
  checkpoints = Checkpoints(workdir, model)
  read, position = checkpoints.restore(6, abstract_state(fresh, shardings), Position.of(0, 8, 0))
  checkpoints.close()
  assert position.examples == 48
  assert_same_bits(read, state)
  assert jax.tree.leaves(read.params)[0].sharding == jax.tree.leaves(shardings.params)[0]


def test_a_run_that_would_draw_otherwise_is_refused(trained):
  config, workdir, state = trained
  checkpoints = Checkpoints(workdir, open_run(workdir).model)
  abstract = abstract_state(state, jax.tree.map(lambda leaf: leaf.sharding, state))
  with pytest.raises(ValueError, match="checkpoint 6 was trained with seed 0, not 5"):
    checkpoints.restore(6, abstract, Position.of(0, config.batch_size, 5))
  with pytest.raises(ValueError, match="checkpoint 6 was trained with batch_size 8, not 16"):
    checkpoints.restore(6, abstract, Position.of(0, 16, 0))
  checkpoints.close()


def test_a_damaged_newest_step_is_passed_over_and_trained_again(trained, copied, capsys):
  config, _, state = trained
  largest = max((copied / "checkpoints" / "6").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
  largest.write_bytes(largest.read_bytes()[:-7])
  (copied / "checkpoints" / "8.orbax-checkpoint-tmp-1").mkdir()
  model = open_run(copied).model
  params, step = restore_params(copied, model)  # a reader names it and leaves it where it is
  assert step == 4
  assert re.search(r"checkpoint 6 is damaged \(.* bytes instead of \d+\): passed over for 4", capsys.readouterr().out)
  with pytest.raises(ValueError, match=r"checkpoint 6 of .* is damaged: .* bytes instead of"):
    restore_params(copied, model, step=6)
  _, again = loop.train_and_evaluate(config, copied)
  said = capsys.readouterr().out
  assert "8.orbax-checkpoint-tmp-1 was never finished: removed" in said
  assert "checkpoint 6 is damaged" in said
  assert steps_of(copied) == [2, 4, 6]
  assert_same_bits(again, state)
  assert params.keys() == abstract_params(model).keys()


def test_a_checkpoint_of_an_older_program_goes_on_at_its_place_in_the_data(trained, copied):
  config, _, state = trained
  for step in (4, 6):
    for item in ("position", "run"):
      shutil.rmtree(copied / "checkpoints" / str(step) / item)
  shutil.rmtree(copied / "checkpoints" / "6")
  _, again = loop.train_and_evaluate(config, copied)
  assert_same_bits(again, state)


def test_sigterm_saves_and_leaves_and_the_run_goes_on_bit_for_bit(trained, tmp_path, monkeypatch):
  config, _, state = trained
  real_step, before = loop.train_step, signal.getsignal(signal.SIGTERM)

  def told_in_the_third(state, *args, **kwargs):
    if int(state.step) == 2:
      os.kill(os.getpid(), signal.SIGTERM)
    return real_step(state, *args, **kwargs)

  monkeypatch.setattr(loop, "train_step", told_in_the_third)
  with pytest.raises(Preempted, match="stopped at step 3, which is saved"):
    loop.train_and_evaluate(config, tmp_path)
  assert steps_of(tmp_path) == [2, 3]
  assert signal.getsignal(signal.SIGTERM) == before
  monkeypatch.setattr(loop, "train_step", real_step)
  _, again = loop.train_and_evaluate(config, tmp_path)
  assert_same_bits(again, state)


def test_adapters_are_kept_alone_beside_a_base_that_is_written_once(tiny_config, tmp_path):
  with tiny_config.unlocked():
    tiny_config.update(lora_rank=2, checkpoint_every=2, keep_checkpoints=3)
  whole = tmp_path / "whole"
  _, state = loop.train_and_evaluate(tiny_config, whole)
  files = sorted(path for path in (whole / "base").rglob("*") if path.is_file())
  written = [path.stat().st_mtime_ns for path in files]
  assert files
  params, step = restore_params(whole, open_run(whole).model)
  assert step == 6
  assert_same_bits(params, state.params)
  held = lambda folder: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
  assert held(whole / "checkpoints" / "6" / "params") < held(whole / "base")

  shutil.rmtree(whole / "checkpoints" / "6")  # the run goes on at 4
  _, again = loop.train_and_evaluate(tiny_config, whole)
  assert_same_bits(again, state)
  assert [path.stat().st_mtime_ns for path in files] == written

  for path in files:
    path.write_bytes(path.read_bytes()[:-1] if path.stat().st_size else b"")
  with pytest.raises(ValueError, match=r"base cannot be read"):
    restore_params(whole, open_run(whole).model)
