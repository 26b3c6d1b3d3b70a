"""The public interface: what it loads, that it answers as the commands do, and that importing it loads nothing."""

import subprocess
import sys

import numpy as np
import pytest

import diffgr_jax as dg
from diffgr_jax.evaluation.rerank_answers import parse_answers, write_answers
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.loop import train_and_evaluate
from diffgr_jax.training.rerank_run import open_rerank
from diffgr_jax.viz.worked import answer_query
from tests.generation.text_test import folder_of  # noqa: F401 (a fixture)


@pytest.fixture
def retriever(tiny_config, tmp_path):
  train_and_evaluate(tiny_config, tmp_path / "run")
  return dg.load(tmp_path / "run")


def test_a_retriever_answers_as_the_decode_command(retriever):
  assert isinstance(retriever, dg.Retriever)
  assert retriever.step == 6
  queries = ["where is the river", "silver and lamp 3", "thunder"]
  found = retriever.retrieve(queries, k=4)
  for query, hits in zip(queries, found, strict=True):
    answer = answer_query(retriever.run, retriever.params, query, top=4)
    assert [hit.doc_id for hit in hits] == [retriever.run.index.doc_ids[at] for at in answer.ranked]
    np.testing.assert_allclose([hit.score for hit in hits], answer.scores, rtol=1e-4)
  assert retriever.retrieve([], k=4) == []
  assert len(retriever.retrieve(queries[:1], k=10_000)[0]) == 24


def test_a_retriever_shows_its_steps(retriever, tmp_path):
  trace = retriever.trace("silver and lamp 3", seed=2)
  assert trace.draw(tmp_path / "steps.png").stat().st_size > 1000
  assert '"query": "silver and lamp 3"' in trace.to_json()


def test_another_decoding_leaves_the_first_as_it_was(retriever, rerank_runs):
  slow = retriever.decoding(decode_steps=2, policy="margin")
  assert (slow.run.config.decode_steps, slow.run.config.policy) == (2, "margin")
  assert slow.trace("thunder").trace.committed.shape[0] == 2
  assert retriever.run.config.decode_steps != 2
  with pytest.raises(ValueError, match="steps=3: field=value with one of the fields decode_steps"):
    retriever.decoding(steps=3)
  reranker = dg.load(rerank_runs[0] / "convert")
  lists = reranker.lists("test")
  fast, slow = (reranker.decoding(threshold=threshold, max_new_tokens=16) for threshold in (1e-6, 1.0))
  assert fast.lists("test") is lists
  assert fast.rerank(lists[:2])[0].forwards < slow.rerank(lists[:2])[0].forwards


@pytest.mark.parametrize("name", ["sft", "convert"])
def test_a_re_ranker_writes_its_answers(rerank_runs, name):
  folder = rerank_runs[0] / name
  reranker = dg.load(folder)
  assert isinstance(reranker, dg.Reranker)
  tasks = reranker.lists("test")[:5]
  found = reranker.rerank(tasks)
  run = open_rerank(folder)
  written = write_answers(run, restore_params(folder, run.model)[0], tasks, batch_size=5)
  assert [ranking.forwards for ranking in found] == written.forwards.tolist()
  for ranking, task, verdict in zip(found, tasks, parse_answers(run, written, tasks).verdict, strict=True):
    assert ranking.verdict in ("truncated", "unparsable")  # barely trained
    assert verdict
    assert ranking.items == tuple(run.shop.items[at].item_id for at in task.candidates)
    assert ranking.text
    assert len(ranking.pieces) == len(ranking.passes) > 0
    assert max(ranking.passes) + 1 == ranking.forwards
  assert reranker.rerank([]) == []


def test_a_checkpoint_writes_text(folder_of):  # noqa: F811 (that fixture)
  folder = folder_of("qwen2")
  writer = dg.load(folder)
  assert isinstance(writer, dg.Writer)
  answer = writer.write("w3 w5", max_new_tokens=4)
  assert answer.text
  with pytest.raises(ValueError, match="step applies to runs only"):
    dg.load(folder, step=3)


def test_models_come_with_the_project_and_others_are_named():
  assert dg.load(dg.shipped("teacher")).run.decoder == "autoregressive"
  with pytest.raises(ValueError, match=r"no model 'techer' in .*; there are student, teacher"):
    dg.shipped("techer")


def test_importing_loads_nothing_and_the_rest_is_named():
  code = "import diffgr_jax, sys; print(sorted({'jax', 'grain', 'orbax', 'flax'} & set(sys.modules)), dir(diffgr_jax))"
  said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
  assert said.startswith("[] ['Hit', ")
  with pytest.raises(AttributeError, match="has no attribute 'retrieve'; it has Hit, Ranking"):
    _ = dg.retrieve
