"""Permutations read off a model: scores equal those of one prefix at a time, and no answer makes a ranking invalid."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.evaluation.rerank_answers import list_prompts, parse_answers
from diffgr_jax.evaluation.rerank_permutations import PERMUTATIONS, permuted, place_scores
from diffgr_jax.evaluation.rerank_report import RETRIEVER, evaluate_rerank
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind
from diffgr_jax.rerank.answer import answer_form, rankings
from diffgr_jax.rerank.chat import item_tokens
from diffgr_jax.training.rerank_run import open_rerank
from tests.evaluation.rerank_report_test import written_by_hand


def sharpened(params):
  """An untrained model's weights, scaled until what it says depends on what it reads."""
  return jax.tree.map(lambda x: 4.0 * x, params)


def answered(run, fault="duplicate"):
  tasks = [task for task in run.lists("test").tasks if task.target_rank][:3]
  written = written_by_hand(run, tasks, fault)
  return tasks, written, parse_answers(run, written, tasks)


def one_prefix_at_a_time(run, params, tasks, written, answers):
  """log p(candidate j at place i), each from a pass over nothing but what stands before the place (and its block)."""
  form, ids = answer_form(run.vocab, run.prompts.template), item_tokens(run.codes, run.vocab)
  size = run.config.block_size if run.converted else 1
  order, model = rankings(answers, "repair"), bind(run.model, params)
  scores = np.zeros((len(tasks), len(tasks[0].candidates), len(tasks[0].candidates)))
  for row, (task, prompt) in enumerate(zip(tasks, list_prompts(run, tasks), strict=True)):
    tokens = written.tokens[row].tolist()
    message = prompt + tokens[: max(at for at in range(len(tokens)) if tokens[at] == form.marker[0])]
    answer = len(message)
    message += [*form.marker, *form.list_open]
    for place in range(len(task.candidates)):
      begin = len(message) // size * size
      known = message[: max(begin, answer)] if run.converted else message
      seen = [*known, *[run.vocab.mask_id] * (begin + size - len(known) if run.converted else 0)]
      layout = padded_layout(jnp.ones((1, len(seen)), bool))
      hidden = model(jnp.array([seen]), layout, pattern=run.model.pattern, block_size=size)
      logits = model.logits(hidden[:, len(message) - 1])  # shifted: the place before
      log_probs = jax.nn.log_softmax(jnp.where(run.banned, -jnp.inf, logits[0]))
      scores[row, place] = log_probs[jnp.array(form.labels[: len(task.candidates)])]
      message += [form.labels[order[row, place]], *ids[task.candidates[order[row, place]]].tolist()]
  return scores


@pytest.mark.parametrize("stage", ["sft", "convert"])
def test_scores_are_those_of_one_prefix_at_a_time(rerank_runs, stage):
  folder, state = rerank_runs
  run, params = open_rerank(folder / stage), sharpened(state.params)
  assert run.config.alignment == "shifted"
  inputs = answered(run)
  np.testing.assert_allclose(
    place_scores(run, params, *inputs), one_prefix_at_a_time(run, params, *inputs), rtol=2e-4, atol=2e-4
  )


@pytest.mark.parametrize("how", PERMUTATIONS)
@pytest.mark.parametrize("fault", ["", "truncated", "nothing"])
def test_every_answer_gives_a_permutation(rerank_runs, how, fault):
  folder, state = rerank_runs
  run = open_rerank(folder / "convert")
  tasks, written, answers = answered(run, "" if fault == "nothing" else fault)
  if fault == "nothing":  # no marker, no end
    tokens = np.where(written.tokens > 0, written.tokens[:, :1], 0)
    written = dataclasses.replace(written, tokens=tokens)
    answers = parse_answers(run, written, tasks)
    assert not answers.ok.any()
  found = permuted(run, state.params, tasks, written, answers, how)
  assert [sorted(ranking) for ranking in found] == [sorted(task.candidates) for task in tasks]


def test_the_report_has_the_row_and_refuses_what_is_none(rerank_runs, tmp_path):
  folder, state = rerank_runs
  run = open_rerank(folder / "sft")
  out = tmp_path / "results.json"
  record = evaluate_rerank(run, state.params, step=4, out=out, trees=False, permutations="optimal")
  row = record["metrics"]["valid"]["autoregressive, optimal permutation"]
  assert {"R@1", f"R@1 - {RETRIEVER} low"} <= set(row)
  assert "valid" not in row  # it says nothing of the model
  tasks, written, answers = answered(run)
  with pytest.raises(ValueError, match="optimal, left_to_right, surest_first, not 'best'"):
    permuted(run, state.params, tasks, written, answers, "best")


def test_lists_of_unequal_length_keep_to_their_own(rerank_runs):
  folder, state = rerank_runs
  run = open_rerank(folder / "sft")
  tasks, written, _ = answered(run, "")
  short = dataclasses.replace(tasks[0], candidates=tasks[0].candidates[:3], evidence=tasks[0].evidence[:3])
  tasks = [short, *tasks[1:]]
  answers = parse_answers(run, written, tasks)
  found = permuted(run, state.params, tasks, written, answers, "left_to_right")
  assert sorted(found[0]) == sorted(short.candidates)
