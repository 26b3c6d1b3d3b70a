"""Rankings of every decoding, against brute force over all documents, a scripted model and hand-counted figures."""

from collections import Counter
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.data.records import Query
from diffgr_jax.evaluation.answers import (
  Asked,
  Beam,
  BestOfN,
  ChainRule,
  Generate,
  Greedy,
  Method,
  OnePass,
  PseudoBeam,
  TopK,
  methods_of,
)
from diffgr_jax.evaluation.generative import Judged, SharedDocIds, evaluate_method, judge, quick_metrics
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.training.options import DECODINGS
from diffgr_jax.training.run import Run


def with_config(run, **changes):
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.update(changes)
  return dataclasses.replace(run, config=config)


@pytest.fixture(scope="module")
def judged(untrained):
  """Seven queries, so that no batch size of the tests divides them; one of them has two right documents."""
  run, _, collection = untrained
  queries = [*collection.queries["valid"][:6], Query("both", "harbor or violin", ("D11", "D12"))]
  return judge(queries, run.index)


# --- one pass ---


def brute_force_scores(run, params, texts, prior_weight):
  """Sums log p of every document's tokens, one document and one position at a time, in float64."""
  index, banned = run.index, np.asarray(run.banned)
  prompts = jnp.asarray(encode_prompts(texts, run.vocab, run.config.prompt_length))
  canvas = jnp.full((len(texts), index.canvas_length), run.vocab.mask_id, jnp.int32)
  logits = np.asarray(jax.jit(run.denoiser)(params, prompts, canvas), np.float64)
  allowed = [token for token in range(logits.shape[-1]) if not banned[token]]
  tokens = [[int(t) for t in row] for row in index.codes]
  share = [Counter(row[place] for row in tokens) for place in range(index.canvas_length)]
  scores = np.zeros((len(texts), len(tokens)))
  for q in range(len(texts)):
    for place in range(index.canvas_length):
      total = math.log(sum(math.exp(logits[q, place, token]) for token in allowed))
      for n, row in enumerate(tokens):
        if place <= row.index(index.eos_id):
          prior = math.log(share[place][row[place]] / len(tokens))
          scores[q, n] += logits[q, place, row[place]] - total - prior_weight * prior
  return scores


@pytest.mark.parametrize("prior_weight", [0.0, 1.0, 0.4])
def test_one_pass_ranks_as_brute_force_over_the_documents(untrained, judged, prior_weight):
  run, params, _ = untrained
  scores = brute_force_scores(run, params, judged.texts, prior_weight)
  ranks = [
    min(1 + sum(other > row[document] for other in row) for document in relevant)
    for row, relevant in zip(scores, judged.relevant, strict=True)
  ]
  figures, per_query = evaluate_method(run, params, Method("x", OnePass(prior_weight)), judged, run.index)
  assert len(set(ranks)) > 2  # the model tells the documents apart
  np.testing.assert_allclose(per_query["MRR@100"], [1 / rank for rank in ranks])
  for k in (1, 10):
    np.testing.assert_allclose(per_query[f"Hit@{k}"], [float(rank <= k) for rank in ranks], atol=1e-12)
    assert figures[f"Hit@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
  assert (figures["forwards"], figures["queries"]) == (1.0, 7)
  assert figures["queries/s"] > 0


def test_the_prior_correction_changes_the_ranking(untrained, judged):
  run, params, _ = untrained
  plain, corrected = (brute_force_scores(run, params, judged.texts, weight) for weight in (0.0, 1.0))
  assert (plain.argsort(axis=1) != corrected.argsort(axis=1)).any()


def test_quick_metrics_are_those_of_the_first_validation_queries(untrained):
  run, params, collection = untrained
  run = with_config(run, prior_weight=1.0)
  figures = quick_metrics(run, params, collection, limit=5)
  first = judge(collection.queries["valid"][:5], run.index)
  expected, _ = evaluate_method(run, params, Method("x", OnePass(1.0)), first, run.index)
  assert figures == {f"valid {name}": expected[name] for name in ("Hit@1", "MRR@100")}
  nothing = dataclasses.replace(collection, queries={"train": collection.queries["train"]})
  assert quick_metrics(run, params, nothing) == {}


# --- T steps ---


ANY_ORDER = {"policy": "random", "prior_weight": 0.0}


def test_constrained_decoding_always_names_a_document(untrained, judged):
  run, params, _ = untrained
  run = with_config(run, eval_batch_size=3, **ANY_ORDER)
  every = list(range(len(run.index.doc_ids)))  # every document is right: a miss means that none was named
  anything = Judged(judged.texts, [every] * 7, [[1] * len(every)] * 7)
  *_, constrained, free = methods_of(run)
  named, _ = evaluate_method(run, params, constrained, anything, run.index)
  assert named["Hit@1"] == 1.0
  assert "invalid" not in named
  assert 1.0 <= named["forwards"] <= run.config.decode_steps
  loose, _ = evaluate_method(run, params, free, anything, run.index)
  assert loose["Hit@1"] == pytest.approx(1.0 - loose["invalid"])
  assert loose["invalid"] > 0.5  # untrained


def test_batch_size_does_not_change_any_figure(untrained, judged):
  run, params, _ = untrained
  every = dict(decodings=DECODINGS, decode_steps=3, samples=2, pool=5, beam_canvases=3, chain_candidates=4)
  small, large = (with_config(run, eval_batch_size=size, **ANY_ORDER, **every) for size in (3, 16))
  for method in methods_of(small):
    one, one_per_query = evaluate_method(small, params, method, judged, run.index)
    other, other_per_query = evaluate_method(large, params, method, judged, run.index)
    assert one.keys() == other.keys()
    assert {k: v for k, v in one.items() if k != "queries/s"} == {k: v for k, v in other.items() if k != "queries/s"}
    for name, values in one_per_query.items():
      np.testing.assert_array_equal(values, other_per_query[name], err_msg=f"{method.name} {name}")


# --- a model whose answers are known ---


class LookUp(CanvasDenoiser):
  """Finds the prompt in its parameters and is nearly sure of the canvas that stands beside it."""

  def __call__(self, params, prompt, canvas):
    row = (prompt[:, None] == params["prompts"][None]).all(axis=-1).argmax(axis=-1)
    return 25.0 * jax.nn.one_hot(params["answers"][row], self.config.vocab_size)


class Scripted(Run):
  @property
  def denoiser(self):
    return LookUp(self.model, self.vocab.pad_id)


@pytest.fixture
def scripted(untrained):
  """-> run, index in which D1 has D0's DocID, and a function from {text: canvas} to parameters."""
  run, _, _ = untrained
  codes = run.index.codes.copy()
  codes[1] = codes[0]
  index = dataclasses.replace(run.index, codes=codes)
  run = Scripted(**{field.name: getattr(run, field.name) for field in dataclasses.fields(run)})

  def script(answers):
    prompts = encode_prompts(list(answers), run.vocab, run.config.prompt_length)
    return {"prompts": jnp.asarray(prompts), "answers": jnp.asarray(np.stack(list(answers.values())))}

  return run, index, script


def test_free_decoding_counts_what_names_no_document_as_invalid(scripted):
  run, index, script = scripted
  short = int(index.scored.sum(axis=1).argmin())
  right, wrong, broken, padded = (index.codes[i].copy() for i in (5, 6, 7, short))
  broken[0] = index.codes[7][1]  # a token that begins no title
  assert broken[0] not in index.codes[:, 0]
  end = int(index.scored[short].sum())
  assert end < len(padded)
  padded[end:] = padded[0]  # what stands behind EOS is not read
  params = script({"right": right, "wrong one": wrong, "broken here": broken, "padded oddly": padded})
  judged = Judged(["right", "wrong one", "broken here", "padded oddly"], [[5], [5], [7], [short]], [[1]] * 4)
  *_, free = methods_of(run)
  figures, per_query = evaluate_method(run, params, free, judged, index)
  assert figures["invalid"] == 0.25
  assert per_query["Hit@1"].tolist() == [1.0, 0.0, 0.0, 1.0]
  assert set(per_query) == {"Hit@1"}  # one document a query: no other depth means anything


def test_documents_of_one_docid_tie_under_every_decoding(scripted):
  run, index, script = scripted
  run = with_config(run, decodings=DECODINGS, decode_steps=3, samples=2, pool=5, beam_canvases=3)
  params = script({"the pair": index.codes[0], "another": index.codes[9]})
  judged = Judged(["the pair", "the pair", "another"], [[1], [0, 1], [9]], [[1], [1, 1], [1]])
  for method in methods_of(run):
    figures, per_query = evaluate_method(run, params, method, judged, index)
    np.testing.assert_allclose(per_query["Hit@1"], [0.5, 1.0, 1.0], err_msg=method.name)
    if "MRR@10" in per_query:
      np.testing.assert_allclose(per_query["MRR@10"], [(1 + 1 / 2) / 2, 1.0, 1.0])
    assert figures.get("invalid", 0.0) == 0.0


# --- what is asked ---


def test_methods_follow_the_config(untrained):
  run = with_config(untrained[0], policy="margin", decode_steps=3, remask=2, prior_weight=0.5)
  methods = methods_of(run)
  plain = ["one-pass", "margin, 3 steps, constrained", "margin, 3 steps, free"]
  assert [m.name for m in methods] == [plain[0], "one-pass, prior-corrected", *plain[1:]]
  assert [m.decoding for m in methods[:2]] == [OnePass(0.0), OnePass(0.5)]
  assert [m.decoding.constrained for m in methods[2:] if isinstance(m.decoding, Generate)] == [True, False]
  assert [m.decoding.options.remask for m in methods[2:] if isinstance(m.decoding, Generate)] == [2, 2]
  assert [m.may_miss for m in methods] == [False, False, False, True]
  assert [m.name for m in methods_of(with_config(run, prior_weight=0.0))] == plain


def test_a_rival_is_asked_by_each_width_and_kind_of_score(untrained):
  run = with_config(
    untrained[0], paradigm="autoregressive", beam_widths=(0, 1, 5), beam_scores=("renormalised", "plain")
  )
  free = methods_of(run)[0]
  assert (free.name, free.ranks, free.may_miss) == ("greedy, free", False, True)
  asked = {m.name: (m.decoding.width, m.decoding.renormalise) for m in methods_of(run) if isinstance(m.decoding, Beam)}
  assert asked == {"beam 1": (1, True), "beam 5": (5, True), "beam 1, plain": (1, False), "beam 5, plain": (5, False)}
  assert run.renormalises  # where one kind is asked for, it is the first
  assert not with_config(run, beam_scores=("plain", "renormalised")).renormalises


def test_greedy_without_the_trie_names_what_it_spells_or_nothing(untrained):
  """Against the likeliest token of one full pass after another, in Python; two of what is spelled are made DocIDs."""
  run, params, collection = untrained
  run = with_config(run, paradigm="autoregressive", process="clean", beam_widths=(0,), slot_embeddings=False)
  run = dataclasses.replace(run, model=dataclasses.replace(run.model, alignment="shifted", pattern="prefix_causal"))
  length, pad, eos = run.index.canvas_length, run.index.pad_id, run.index.eos_id
  prompts = encode_prompts([query.query for query in collection.queries["valid"][:6]], run.vocab, 12)
  canvas = np.full((6, length), pad, np.int32)
  banned = np.asarray(run.banned)
  for place in range(length):
    logits = np.array(run.denoiser(params, jnp.asarray(prompts), jnp.asarray(canvas)))[:, place]
    going = ~(canvas[:, :place] == eos).any(axis=1)
    canvas[going, place] = np.where(banned, -np.inf, logits).argmax(axis=1)[going]
  spelled = [tuple(row) for row in canvas.tolist()]
  codes = run.index.codes.copy()
  codes[3], codes[7] = spelled[0], spelled[-1]
  index = dataclasses.replace(run.index, codes=codes)
  answer = Greedy().answer(Asked(run, params, index), prompts, np.zeros(6, np.int32))
  known = {tuple(row): place for place, row in reversed(list(enumerate(codes.tolist())))}
  assert answer.document[:, 0].tolist() == [known.get(row, -1) for row in spelled]
  assert answer.canvases.tolist() == [list(row).index(eos) + 1 if eos in row else length for row in spelled]
  assert -1 in answer.document


def test_every_decoding_has_a_name_of_its_own(untrained):
  run = with_config(untrained[0], decodings=DECODINGS, prior_weight=0.5)
  names = [method.name for method in methods_of(run)]
  assert len(set(names)) == len(names) == len(DECODINGS) + 2  # one-pass and samples stand twice


def test_top_k_is_shown_by_each_of_the_weighings_that_are_asked_for(untrained):
  run = with_config(untrained[0], decodings=("topk",), topk_weigh=("documents", "tokens"), topk_steps=3, topk_beam=5)
  named = {method.name: method.decoding.options.weigh for method in methods_of(run)}
  assert named == {"top-k, 3 steps, beam 5": "documents", "top-k by tokens, 3 steps, beam 5": "tokens"}
  shared = with_config(run, topk_weigh=("tokens",), topk_root=(0.0, 0.5))
  named = {method.name: method.decoding.options.root for method in methods_of(shared)}
  assert named == {"top-k by tokens, 3 steps, beam 5": 0.0, "top-k by tokens, 3 steps, beam 5, root 0.5": 0.5}


def test_steps_are_swept_in_every_decoding_that_has_them(untrained):
  settings = dict(decodings=DECODINGS, decode_steps=3, topk_steps=2, chain_steps=2, block_length=1, samples=2)
  plain = {m.name: m.decoding for m in methods_of(with_config(untrained[0], **settings))}
  swept = {m.name: m.decoding for m in methods_of(with_config(untrained[0], **settings, sweep_steps=(1, 2, 3)))}
  assert {name: decoding for name, decoding in swept.items() if name in plain} == plain
  steps = lambda kind: [m.steps for m in swept.values() if isinstance(m, kind)]
  assert sorted(m.options.steps for m in swept.values() if isinstance(m, TopK)) == [1, 2, 3]
  assert sorted(steps(PseudoBeam)) == sorted(steps(BestOfN)) == sorted(steps(ChainRule)) == [1, 2, 3]
  # four generate by steps (constrained, free, two samplers), argmax is one step, and blocks of one position take as
  # many passes as there are positions, whatever T
  length = untrained[0].index.canvas_length
  assert length > 3
  assert sorted(steps(Generate)) == sorted([1, *(4 * [1, 2, 3]), length])


def test_a_list_becomes_one_of_all_documents_with_its_docids():
  # documents 0 and 3 share a DocID, and so do 1, 4 and 5
  parts = [0, 1, 2, 0, 1, 1], [0, 3, 1, 4, 5, 2], [0, 2, 5, 0, 2, 2], [2, 3, 1, 2, 3, 3]
  same = SharedDocIds(*map(np.array, parts))
  listed, scores = same.spread(np.array([[4, 2, 1, -1]]), np.array([[3.0, 2.0, 1.0, 0.0]]))
  found = [
    (document, score) for document, score in zip(listed[0].tolist(), scores[0].tolist(), strict=True) if document >= 0
  ]
  assert sorted(found) == [(1, 3.0), (2, 2.0), (4, 3.0), (5, 3.0)]


def test_judge_takes_grades_and_names_an_unknown_document(untrained):
  run = untrained[0]
  judged = judge([Query("a", "x", ("D3", "D0"), (2, 1)), Query("b", "y", ("D4",))], run.index)
  assert judged == Judged(["x", "y"], [[3, 0], [4]], [[2, 1], [1]])
  with pytest.raises(ValueError, match="query V77 names document gone, which the index does not have"):
    judge([Query("V77", "x", ("D0", "gone"))], run.index)
