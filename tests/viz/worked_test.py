"""One query answered in full: ranking, denoised DocID, its JSON, its terminal view and its picture."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
from matplotlib.image import imread
import numpy as np
import pytest
from rich.console import Console

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.viz.worked import answer_by_beams, answer_query, show_answer, show_worked_queries

QUERY = "where is the river"


@pytest.fixture(scope="module")
def answer(untrained):
  run, params, _ = untrained
  return answer_query(run, params, QUERY, top=6)


def test_the_ranking_is_the_order_of_the_corrected_scores(answer, untrained):
  run, params, _ = untrained
  index = run.index
  prompt = jnp.asarray(encode_prompts([QUERY], run.vocab, run.config.prompt_length))
  canvas = jnp.full((1, index.canvas_length), run.vocab.mask_id, jnp.int32)
  log_probs = np.asarray(log_probabilities(jax.jit(run.denoiser)(params, prompt, canvas), run.banned))[0]
  evidence = log_probs - run.config.prior_weight * index.log_frequency(run.model.vocab_size)
  scores = [sum(evidence[place, code[place]] for place in np.flatnonzero(code)) for code in index.codes]  # PAD is 0
  assert answer.ranked.tolist() == np.argsort(-np.array(scores), kind="stable")[:6].tolist()
  np.testing.assert_allclose(answer.scores, np.sort(scores)[::-1][:6], atol=1e-3)


def test_the_json_names_documents_scores_and_how_the_docid_was_denoised(answer, untrained):
  run, _, _ = untrained
  said = json.loads(answer.to_json())
  assert said["query"] == QUERY
  assert [entry["doc_id"] for entry in said["ranking"]] == [run.index.doc_ids[i] for i in answer.ranked]
  assert [entry["title"] for entry in said["ranking"]] == [run.index.titles[i] for i in answer.ranked]
  scores = [entry["score"] for entry in said["ranking"]]
  assert scores == sorted(scores, reverse=True)
  row = run.index.doc_ids.index(said["denoised"])  # constrained: always a document that exists
  assert said["tokens"] == [run.vocab.piece(token) for token in run.index.codes[row]]
  assert len(said["step_map"]) == run.index.canvas_length
  assert set(said["step_map"]) <= set(range(run.config.decode_steps))


def test_a_small_corpus_and_a_docid_of_no_document(untrained):
  run, params, _ = untrained
  free = answer_query(run, params, QUERY, top=100, constrained=False)
  assert sorted(free.ranked) == list(range(24))  # no more than there are
  assert free.trace.alive is None
  said = json.loads(dataclasses.replace(free, denoised=None).to_json())
  assert said["denoised"] is None


def test_the_terminal_view_marks_what_is_relevant(answer, untrained):
  run, _, _ = untrained
  best, out = answer.ranked[0], io.StringIO()
  show_answer(answer, relevant=(run.index.doc_ids[best],), console=Console(file=out, width=100))
  shown = out.getvalue()
  assert f'"{QUERY}"' in shown
  assert f"denoised to: {run.index.titles[answer.denoised]}" in shown
  for row in answer.ranked:
    assert run.index.titles[row] in shown
  starred = [line for line in shown.splitlines() if "*" in line]
  assert any(run.index.titles[best] in line for line in starred)
  out = io.StringIO()
  show_answer(dataclasses.replace(answer, denoised=None), console=Console(file=out, width=100))
  assert "denoised to: no document" in out.getvalue()


def test_worked_queries_draw_the_first_one(untrained, tmp_path, capsys):
  run, params, _ = untrained
  png = tmp_path / "pictures" / "denoising.png"
  assert show_worked_queries(run, params, [], png) is None
  assert not png.exists()
  assert show_worked_queries(run, params, [("copper cloud", ("D4",)), ("lamp", ())], png) == png
  assert imread(png).std() > 0.01  # something is drawn
  shown = capsys.readouterr().out
  assert shown.index('"copper cloud"') < shown.index('"lamp"')
  assert shown.count("denoised to: ") == 2


def test_an_autoregressive_run_answers_by_its_beams(untrained):
  """Whatever the weights, the beams are distinct documents that exist, by falling score."""
  run, params, _ = untrained
  model = dataclasses.replace(run.model, alignment="shifted", pattern="prefix_causal")
  rival = dataclasses.replace(run, model=model)
  row = json.loads(answer_by_beams(rival, params, QUERY, top=5))
  assert row["query"] == QUERY
  ids, scores = ([entry[key] for entry in row["ranking"]] for key in ("doc_id", "score"))
  assert len(set(ids)) == 5
  assert set(ids) <= set(run.index.doc_ids)
  assert scores == sorted(scores, reverse=True)
  out = io.StringIO()
  assert answer_by_beams(rival, params, QUERY, top=5, console=Console(file=out, width=100)) == ""
  assert QUERY in out.getvalue()
  assert all(entry["title"].split()[0] in out.getvalue() for entry in row["ranking"])
