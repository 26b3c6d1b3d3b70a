"""Traces that a teacher writes, inside a run. The teacher's decoder is replaced by one that writes a template's."""

import numpy as np
import pytest

from diffgr_jax.rerank.chat import Part, encode_messages
from diffgr_jax.rerank.prompt import render
from diffgr_jax.training import sampled_traces
from diffgr_jax.training.rerank_examples import TRACES_FILE, training_examples
from diffgr_jax.training.rerank_run import open_rerank, prepare_rerank
from tests.training.tiny_rerank import tiny


@pytest.fixture
def written(rerank_runs):
  """prompt -> answer, of the messages that the teacher itself was trained on."""
  run = open_rerank(rerank_runs[0] / "sft")
  answers = {}
  for example in training_examples(run):
    prompt = example.parts == int(Part.PROMPT)
    answers[tuple(example.tokens[prompt].tolist())] = example.tokens[~prompt].tolist()
  return answers


def _teacher_that_writes(monkeypatch, written):
  asked = []

  def make_sampler(*_):
    def sample(prompts, seed):
      asked.extend(map(tuple, prompts))
      return [written.get(tuple(prompt), []) for prompt in prompts]

    return sample

  monkeypatch.setattr(sampled_traces, "make_sampler", make_sampler)
  return asked


def _run(rerank_runs, workdir, stage="cft", **fields):
  start = rerank_runs[0] / fields.pop("start", "sft")
  config = tiny(stage, start, **({"traces": "sampled", "trace_agreeing": 1.0} | fields))
  return prepare_rerank(config, workdir)


def test_a_run_learns_what_its_teacher_writes(rerank_runs, written, monkeypatch, tmp_path):
  asked = _teacher_that_writes(monkeypatch, written)
  run = _run(rerank_runs, tmp_path)
  examples = training_examples(run)
  learned = {tuple(example.tokens.tolist()) for example in examples}
  assert learned == {(*prompt, *answer) for prompt, answer in written.items()}
  assert len(asked) == len(run.lists("train").tasks)
  assert (tmp_path / TRACES_FILE).read_text(encoding="utf-8").count("\n") == len(examples)


def test_lists_are_drawn_by_the_seed_and_asked_once(rerank_runs, written, monkeypatch, tmp_path):
  asked = _teacher_that_writes(monkeypatch, written)
  drawn = {}
  for name, seed in (("a", 0), ("again", 0), ("b", 1)):
    run = _run(rerank_runs, tmp_path / name, trace_lists=20, seed=seed)
    examples = training_examples(run)
    assert 0 < len(examples) <= 20
    drawn[name] = list(asked)
    assert len(asked) == 20
    (tmp_path / name / "examples.npz").unlink()  # a run that was stopped before they were kept
    assert len(training_examples(run)) == len(examples)
    assert len(asked) == 20, "what the teacher had written is read back"
    asked.clear()
  assert drawn["a"] == drawn["again"] != drawn["b"]


@pytest.mark.parametrize("right", [True, False])
def test_a_wrong_answer_is_learned_where_all_are(rerank_runs, written, monkeypatch, tmp_path, right):
  run = open_rerank(rerank_runs[0] / "sft")
  task = run.lists("train").tasks[0]
  last_first = (task.candidates[::-1], task.candidates)  # one of them has not the target first
  order = next(order for order in last_first if order[0] != task.target)
  (message,) = encode_messages(
    [render(task, run.shop, run.prompts, ("so it is,",), order)], run.vocab, run.codes, run.prompts.template
  )
  prompt = message.parts == int(Part.PROMPT)
  wrong = {tuple(message.tokens[prompt].tolist()): message.tokens[~prompt].tolist()}
  _teacher_that_writes(monkeypatch, written | wrong)
  learned = training_examples(_run(rerank_runs, tmp_path, trace_right=right, least_reasoning=1))
  assert any(np.array_equal(example.tokens, message.tokens) for example in learned) == (not right)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"start": "convert"}, "is a run of the stage 'convert': name its teacher"),
    ({"trace_model": "{other}"}, "has other tokens than this run: they need one mid-training or SFT"),
  ],
)
def test_a_teacher_that_cannot_be_learned_from_is_named(rerank_runs, monkeypatch, tmp_path, fields, message):
  other = tmp_path / "other"
  prepare_rerank(tiny("sft", seed=3, list_seed=3), other)
  fields = {name: value.format(other=other) for name, value in fields.items()}
  run = _run(rerank_runs, tmp_path / "run", **fields)
  with pytest.raises(ValueError, match=message):
    training_examples(run)
