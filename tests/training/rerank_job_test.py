"""Re-ranking jobs in the one loop: resumed = uninterrupted, stages hand over, a converted model is its teacher."""

import dataclasses
import json
from pathlib import Path
import shutil

import jax
import numpy as np
import pytest

from diffgr_jax.evaluation.rerank_answers import write_answers
from diffgr_jax.rerank.chat import marker_tokens
from diffgr_jax.training import loop
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.jobs import check_config
from diffgr_jax.training.rerank_run import open_rerank
from tests.training.tiny_rerank import tiny


def same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture
def teacher(rerank_runs):
  folder, state = rerank_runs
  return folder / "sft", state


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line["loss"] for line in lines if "loss" in line]


def test_the_teacher_learns_and_resumes_bit_for_bit(teacher, tmp_path, monkeypatch):
  workdir, state = teacher
  assert losses(workdir)[-1] < losses(workdir)[0]
  real, calls = loop.train_step, []

  def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) == 4:
      raise RuntimeError("pulled the plug")
    return real(*args, **kwargs)

  monkeypatch.setattr(loop, "train_step", killed)
  with pytest.raises(RuntimeError, match="pulled the plug"):
    loop.train_and_evaluate(tiny("sft"), tmp_path / "broken")
  monkeypatch.setattr(loop, "train_step", real)
  _, resumed = loop.train_and_evaluate(tiny("sft"), tmp_path / "broken")
  same_bits(resumed, state)
  assert losses(tmp_path / "broken") == losses(workdir)


def test_one_device_and_eight_give_the_same_losses(teacher, tmp_path, monkeypatch):
  real = loop.make_mesh
  monkeypatch.setattr(loop, "make_mesh", lambda sizes: real(sizes, jax.devices()[:1]))
  loop.train_and_evaluate(tiny("sft"), tmp_path / "one")
  np.testing.assert_allclose(losses(tmp_path / "one"), losses(teacher[0]), rtol=5e-5)


def test_a_converted_model_with_blocks_of_one_decodes_exactly_as_its_teacher(teacher, tmp_path):
  """The weights are copied one to one, and at block size 1 shifted block diffusion IS autoregressive decoding."""
  workdir, state = teacher
  job, converted = loop.train_and_evaluate(tiny("convert", workdir, block_size=1), tmp_path / "convert")
  same_bits(converted.params, state.params)
  params, step = restore_params(tmp_path / "convert", job.model)
  assert step == 0
  params = jax.tree.map(lambda leaf: 5.0 * leaf, params)  # barely trained weights say the same to every prompt
  own, first = open_rerank(tmp_path / "convert"), open_rerank(workdir)
  tasks = own.lists("test").tasks[:10]
  assert own.decoder == "block"
  assert first.decoder == "autoregressive"
  blocks, tokens = write_answers(own, params, tasks), write_answers(first, params, tasks)
  np.testing.assert_array_equal(blocks.tokens, tokens.tokens)
  np.testing.assert_array_equal(blocks.forwards, tokens.forwards)
  assert len({tuple(row) for row in tokens.tokens.tolist()}) > 1  # they do not all say the same


@pytest.mark.parametrize("fields", [{}, {"alignment": "same_position", "complementary": True, "whole_stream": True}])
def test_cft_goes_on_from_the_teacher(teacher, tmp_path, fields):
  workdir, _ = teacher
  job, state = loop.train_and_evaluate(tiny("cft", workdir, **fields), tmp_path / "cft")
  assert np.isfinite(losses(tmp_path / "cft")).all()
  assert int(state.step) == 4
  assert job.model.pattern == "block_causal"
  assert job.model.alignment == job.config.alignment
  np.testing.assert_array_equal(open_rerank(tmp_path / "cft").codes, open_rerank(workdir).codes)
  again = open_rerank(tmp_path / "cft")  # reads back what it is
  assert again.model == dataclasses.replace(job.model)


def test_mid_training_hands_over_to_sft(tmp_path):
  (tmp_path / "general.txt").write_text("some general text about nothing at all. " * 60)
  text = (str(tmp_path / "general.txt"),)
  config = tiny("mid_training", text_files=text, row_length=96, target_length=96)
  with config.unlocked():
    config.mixture.text = 0.2
  loop.train_and_evaluate(config, tmp_path / "mid")
  job, state = loop.train_and_evaluate(tiny("sft", tmp_path / "mid"), tmp_path / "sft")
  assert job.config.start_from == str(tmp_path / "mid")
  assert int(state.step) == 4
  own = open_rerank(tmp_path / "mid")
  examples = _examples(tmp_path / "mid")
  assert [one for one in examples if len(one) < 40]  # captions
  (sep,) = marker_tokens("[SEP]", own.vocab)
  order, first, levels = own.vocab.encode(" order"), own.vocab.docid_token(0, 0), own.vocab.docid_levels
  behind = lambda row: next((at for at in range(len(row)) if row[at - len(order) : at] == order), 0)
  listings = [one for one in map(np.ndarray.tolist, examples) if behind(one)]
  assert len(listings) > 20
  sizes = []
  for one in listings:  # the letters of the order are those of the answer, and each ID is its letter's
    prompt, answer = one[: one.index(sep)], one[len(one) - one[::-1].index(sep) :]
    leads = [at for at in range(len(prompt) - 1) if prompt[at + 1] >= first > prompt[at]]
    entry = {prompt[at]: prompt[at + 1 : at + 1 + levels] for at in leads}
    letters = prompt[behind(prompt) :]
    sizes.append(len(letters))
    assert len(entry) == len(letters)
    assert answer[1:-2] == [token for letter in letters for token in (letter, *entry[letter])]
  assert set(sizes) == {1, 2, 3, 4, 5}  # half of the lists are cut, mostly to few candidates
  assert 0.4 < np.mean(np.equal(sizes, 5)) < 0.75

  # ... and CFT may begin on the same messages
  lists = tiny("cft", tmp_path / "sft", examples=str(tmp_path / "mid"), row_length=96, target_length=96)
  loop.train_and_evaluate(lists, tmp_path / "lists")
  assert len(_examples(tmp_path / "lists")) == len(examples)
  whole = tiny("cft", tmp_path / "lists", examples=f"{tmp_path / 'mid'}+{tmp_path / 'sft'}")
  loop.train_and_evaluate(whole, tmp_path / "whole")
  assert len(_examples(tmp_path / "whole")) == len(examples) + len(_examples(tmp_path / "sft"))
  with pytest.raises(ValueError, match=r"config\.examples names workdirs"):
    loop.train_and_evaluate(tiny("cft", tmp_path / "sft", examples=str(tmp_path)), tmp_path / "none")
  (tmp_path / "mid" / "examples.npz").unlink()  # what a run has of its own is enough, to go on and to be evaluated
  check_config(open_rerank(tmp_path / "whole").config)
  loop.train_and_evaluate(whole, tmp_path / "whole")


def _examples(workdir):
  with np.load(workdir / "examples.npz") as kept:
    return np.split(kept["tokens"], kept["ends"][:-1])


def test_another_config_or_another_shop_is_refused(teacher, tmp_path):
  workdir, _ = teacher
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  with pytest.raises(ValueError, match="holds a run with d_model=32, not 64"):
    loop.train_and_evaluate(tiny("sft", d_model=64), copy)
  with pytest.raises(ValueError, match="is a run of another shop"):
    loop.train_and_evaluate(tiny("cft", workdir, shop_path="users=130+categories=4"), tmp_path / "cft")
  with pytest.raises(ValueError, match=r"config.name_words is 1, but .* was trained with -1"):
    loop.train_and_evaluate(tiny("cft", workdir, name_words=1), tmp_path / "cft2")
  with pytest.raises(FileNotFoundError, match=r"holds no run \(no config.json\)"):
    loop.train_and_evaluate(tiny("cft", Path(tmp_path / "nothing")), tmp_path / "cft3")
