"""The DocID stage: its loss by hand, its two ways of computing it, and the document-level term by enumeration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.beam import AnyText, decode_beams
from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import build_trie
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.models.transformer import init_params
from diffgr_jax.stages.docid import DocIdStage

MODEL = TransformerConfig(
  vocab_size=24, d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16, qk_norm=True
)
MASK = 4
STAGE = DocIdStage(CanvasDenoiser(MODEL, pad_id=0), make_process("exact_count"), mask_id=MASK, pad_id=0, valid_size=20)
CODES = np.array([[5, 6, 2, 0], [5, 7, 2, 0], [8, 2, 0, 0], [9, 6, 10, 2], [8, 6, 2, 0]], np.int32)
INDEX = {
  "codes": jnp.asarray(CODES),
  "scored": jnp.asarray(np.cumsum(CODES == 2, axis=1) - (CODES == 2) == 0),
  "log_frequency": jnp.zeros((4, 24)),
  "asked": jnp.asarray([True, False, True, True, False]),
  "share": jnp.asarray([0.1, 0.3, 0.2, 0.15, 0.25]),
}


def batch_of(rows, seed=0):
  rng = np.random.default_rng(seed)
  prompt = rng.integers(5, 20, (rows, 6)).astype(np.int32)
  prompt[::2, :2] = 0
  document = rng.integers(0, len(CODES), rows).astype(np.int32)
  batch = {"prompt": prompt, "docid": CODES[document], "doc_index": document, "asked": rng.random(rows) < 0.5}
  return {name: jnp.asarray(value) for name, value in batch.items()}


def whole_loss(stage, params, batch, key):
  drawn, count = stage.prepare(key, batch)
  return stage.loss(params, drawn, INDEX, count, len(batch["prompt"]))


def test_the_loss_is_the_weighted_cross_entropy_of_the_masked_positions_per_target():
  params, batch = init_params(MODEL, jax.random.key(0)), batch_of(8)
  drawn, count = STAGE.prepare(jax.random.key(1), batch)
  assert int(count) == 8 * 4  # every canvas position is a target, EOS and PAD too
  logits = np.asarray(STAGE.denoiser(params, batch["prompt"], drawn["x_t"]), np.float64)[:, :, :20]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = 0.0
  for row in range(8):
    for place in range(4):
      if drawn["x_t"][row, place] == MASK:
        expected -= float(drawn["weight"][row, 0]) * log_probs[row, place, int(batch["docid"][row, place])]
  loss, metrics = whole_loss(STAGE, params, batch, jax.random.key(1))
  np.testing.assert_allclose(loss, expected / 32, rtol=1e-5)
  assert metrics["masked_count"] == (np.asarray(drawn["x_t"]) == MASK).sum()


def test_chunked_cross_entropy_gives_the_same_loss_and_gradient():
  params, batch = init_params(MODEL, jax.random.key(2)), batch_of(4)
  value = lambda stage: jax.value_and_grad(lambda p: whole_loss(stage, p, batch, jax.random.key(3))[0])(params)
  (plain, plain_grad), (chunked, chunked_grad) = value(STAGE), value(dataclasses.replace(STAGE, ce_chunk=7))
  np.testing.assert_allclose(plain, chunked, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain_grad, chunked_grad)


def test_the_two_terms_are_weighted():
  params, batch = init_params(MODEL, jax.random.key(4)), batch_of(6)
  drawn, count = STAGE.prepare(jax.random.key(5), batch)

  def losses(diffusion, document):
    stage = dataclasses.replace(STAGE, diffusion_weight=diffusion, document_weight=document)
    return stage.loss(params, drawn, INDEX, count, 6)

  _, terms = losses(1.0, 1.0)
  expected = 0.25 * terms["diffusion_loss"] + 0.5 * terms["document_loss"]
  np.testing.assert_allclose(losses(0.25, 0.5)[0], expected, rtol=1e-6)
  np.testing.assert_allclose(losses(0.0, 1.0)[0], terms["document_loss"], rtol=1e-6)


def test_the_parts_of_a_batch_add_up():
  params, batch = init_params(MODEL, jax.random.key(4)), batch_of(6)
  stage = dataclasses.replace(STAGE, document_weight=0.5)
  drawn, count = stage.prepare(jax.random.key(5), batch)
  whole = stage.loss(params, drawn, INDEX, count, 6)[0]
  parts = [
    stage.loss(params, jax.tree.map(lambda x, part=part: x[part], drawn), INDEX, count, 6)[0]
    for part in (slice(0, 1), slice(1, 6))
  ]
  np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


@pytest.mark.parametrize("process", ["all_masked", "exact_count"])
def test_the_document_term_is_the_softmax_over_the_documents_that_agree_with_the_canvas(process):
  params, batch = init_params(MODEL, jax.random.key(6)), batch_of(12, seed=1)
  stage = dataclasses.replace(STAGE, process=make_process(process), document_weight=1.0)
  drawn, count = stage.prepare(jax.random.key(7), batch)
  logits = np.asarray(stage.denoiser(params, batch["prompt"], drawn["x_t"]), np.float64)[:, :, :20]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  scored, expected, hits = np.asarray(INDEX["scored"]), [], []
  for row in range(12):
    x_t, scores = np.asarray(drawn["x_t"][row]), {}
    for document, code in enumerate(CODES):
      if all(x_t[i] in (MASK, code[i]) for i in range(4)):
        scores[document] = sum(log_probs[row, i, code[i]] for i in range(4) if scored[document, i] and x_t[i] == MASK)
    right = scores[int(batch["doc_index"][row])]
    expected.append(np.log(sum(np.exp(s) for s in scores.values())) - right)
    hits.append(right >= max(scores.values()))
  _, metrics = stage.loss(params, drawn, INDEX, count, 12)
  np.testing.assert_allclose(metrics["document_loss"], np.mean(expected), rtol=1e-5)
  np.testing.assert_allclose(metrics["document_hits"], np.mean(hits), rtol=1e-5)
  gradient = jax.grad(lambda p: stage.loss(p, drawn, INDEX, count, 12)[0])(params)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_questions_are_spared_the_documents_that_none_asks_for():
  params, batch = init_params(MODEL, jax.random.key(6)), batch_of(12, seed=1)
  batch["doc_index"] = jnp.where(batch["asked"], 2 * (batch["doc_index"] // 2) % 4, batch["doc_index"])
  batch["docid"] = jnp.asarray(CODES)[batch["doc_index"]]
  stage = dataclasses.replace(STAGE, process=make_process("all_masked"), document_weight=1.0, spare_unasked=True)
  drawn, count = stage.prepare(jax.random.key(7), batch)
  logits = np.asarray(stage.denoiser(params, batch["prompt"], drawn["x_t"]), np.float64)[:, :, :20]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  scored, expected = np.asarray(INDEX["scored"]), []
  for row in range(12):
    scores = np.array([log_probs[row, s, code[s]].sum() for s, code in zip(scored, CODES, strict=True)])
    compared = np.asarray(INDEX["asked"]) if batch["asked"][row] else np.ones(5, bool)
    expected.append(np.logaddexp.reduce(scores[compared]) - scores[int(batch["doc_index"][row])])
  np.testing.assert_allclose(
    stage.loss(params, drawn, INDEX, count, 12)[1]["document_loss"], np.mean(expected), rtol=1e-5
  )


POOLED = dataclasses.replace(
  STAGE, process=make_process("random_time"), document_weight=1.0, document_negatives=3, prior_weight=0.5
)


@pytest.mark.parametrize("spare_unasked", [False, True])
def test_the_denominator_over_a_pool_is_that_over_all_documents_on_average(spare_unasked):
  """Batches are drawn by `share`, the first row kept; exp(loss) is the denominator over the right part."""
  stage = dataclasses.replace(POOLED, process=make_process("all_masked"), spare_unasked=spare_unasked)
  params, first = init_params(MODEL, jax.random.key(6)), batch_of(1, seed=1)
  first |= {"docid": jnp.asarray(CODES[2:3]), "doc_index": jnp.asarray([2]), "asked": jnp.asarray([True])}
  exact = dataclasses.replace(stage, document_negatives=0)
  drawn, count = exact.prepare(jax.random.key(7), first)
  expected = np.exp(float(exact.loss(params, drawn, INDEX, count, 1)[1]["document_loss"]))

  def estimate(key):
    pick, bits = jax.random.split(key)
    others = jax.random.choice(pick, 5, (3,), p=INDEX["share"])
    together = jnp.concatenate([first["doc_index"], others])[None]
    pool = {"together": together, "drawn": jax.random.bits(bits, (1, 3))}
    loss = stage.loss(params, drawn | pool, INDEX, count, 4)[1]["document_loss"]
    return jnp.exp(4 * loss)  # a fourth of a batch of four rows

  estimates = np.asarray(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(8), 20_000)))
  assert estimates.std() > 0.01
  np.testing.assert_allclose(estimates.mean(), expected, atol=4 * estimates.std() / np.sqrt(20_000))


def test_a_large_pool_is_the_whole_corpus():
  params, batch = init_params(MODEL, jax.random.key(4)), batch_of(6)
  drawn, count = dataclasses.replace(POOLED, document_negatives=200_000).prepare(jax.random.key(5), batch)
  value = lambda stage: jax.value_and_grad(lambda p: stage.loss(p, drawn, INDEX, count, 6)[1]["document_loss"])(params)
  whole, gradient = value(dataclasses.replace(POOLED, document_negatives=0))
  pooled, of_pool = value(dataclasses.replace(POOLED, document_negatives=200_000))
  np.testing.assert_allclose(pooled, whole, rtol=0.02)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.02 * largest), gradient, of_pool)


def test_microbatches_share_the_pool_of_the_batch():
  params, batch = init_params(MODEL, jax.random.key(4)), batch_of(6)
  drawn, count = POOLED.prepare(jax.random.key(5), batch)
  assert (np.asarray(drawn["together"]) == np.asarray(batch["doc_index"])).all()
  whole = POOLED.loss(params, drawn, INDEX, count, 6)[0]
  parts = [jax.tree.map(lambda x, own=own: x[own], drawn) for own in (slice(0, 2), slice(2, 6))]
  np.testing.assert_allclose(sum(POOLED.loss(params, part, INDEX, count, 6)[0] for part in parts), whole, rtol=1e-5)


def apart_stage(share, **changes):
  """A stage whose model reads the prompt alone where all is masked, its weights, its index, and its batch."""
  model = dataclasses.replace(MODEL, code_levels=4, code_size=11, head="none", first_pass="prompt")
  canvas = CanvasDenoiser(model, pad_id=0, pattern="prefix")
  denoiser = CodeDenoiser(canvas, mask_token=4, first_code=8, size=11)
  params = init_params(model, jax.random.key(3))
  draws = {name: jax.random.normal(jax.random.key(i), (4, 11, 16)) for i, name in enumerate(("centroids", "rows"))}
  params["code_head"] |= draws | {"scale": jnp.full(1, 2.0)}
  stage = dataclasses.replace(
    STAGE, denoiser=denoiser, mask_id=11, pad_id=-1, valid_size=11, document_weight=0.5, masked_share=share, **changes
  )
  index = INDEX | {"scored": jnp.ones((5, 4), bool), "log_frequency": jnp.zeros((4, 12))}
  return stage, params, index, batch_of(8)


@pytest.mark.parametrize("negatives", [0, 3])
def test_rows_without_a_canvas_have_the_loss_of_a_masked_one(negatives):
  stage, params, index, batch = apart_stage(0.5, document_negatives=negatives)
  drawn, count = stage.prepare(jax.random.key(5), batch)
  assert drawn["masked_docid"].shape == drawn["x_t"].shape == (4, 4)
  assert "masked_x_t" not in drawn
  assert count == 8 * 4
  together = dataclasses.replace(stage, masked_share=0.0)
  by_hand, _ = together.prepare(jax.random.key(5), batch)  # the same draws
  np.testing.assert_array_equal(by_hand["x_t"][4:], drawn["x_t"])
  by_hand |= {
    "x_t": by_hand["x_t"].at[:4].set(11),
    "corrupted": by_hand["corrupted"].at[:4].set(True),
    "weight": by_hand["weight"].at[:4].set(1.0),
  }
  value = lambda stage, drawn: jax.value_and_grad(stage.loss, has_aux=True)(params, drawn, index, count, 8)
  (loss, metrics), gradient = value(stage, drawn)
  (expected, of_metrics), of_gradient = value(together, by_hand)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), metrics, of_metrics)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient, of_gradient)


def test_the_parts_of_a_batch_with_rows_apart_add_up():
  stage, params, index, batch = apart_stage(0.5)
  drawn, count = stage.prepare(jax.random.key(5), batch)
  whole = stage.loss(params, drawn, index, count, 8)[0]
  parts = [jax.tree.map(lambda x, own=own: x[own], drawn) for own in (slice(0, 2), slice(2, 4))]
  np.testing.assert_allclose(sum(stage.loss(params, part, index, count, 8)[0] for part in parts), whole, rtol=1e-5)


def test_all_rows_may_be_without_a_canvas():
  stage, params, index, batch = apart_stage(1.0)
  drawn, count = stage.prepare(jax.random.key(5), batch)
  loss, metrics = stage.loss(params, drawn, index, count, 8)
  assert np.isfinite(loss)
  assert metrics["masked_count"] == 32


BERT = dataclasses.replace(
  MODEL, qk_norm=False, norm="layernorm", norm_position="post", mlp="gelu", position_encoding="learned",
  max_positions=16, head="mlm",
)  # fmt: skip


@pytest.mark.parametrize("model", [MODEL, BERT], ids=["rotary", "learned"])
def test_what_an_autoregressive_model_is_trained_on_is_what_its_beam_search_scores(model):
  model = dataclasses.replace(model, alignment="shifted", pattern="prefix_causal")
  denoiser = CanvasDenoiser(model, pad_id=0, pattern="prefix_causal")
  stage = dataclasses.replace(STAGE, denoiser=denoiser, process=make_process("clean"), first_valid=2)
  params, batch = init_params(model, jax.random.key(3)), batch_of(4, seed=5)
  index = DocIdIndex(CODES, tuple("abcde"), tuple("abcde"), eos_id=2, pad_id=0)
  banned = (jnp.arange(24) < 2) | (jnp.arange(24) >= 20)
  prompt = np.asarray(batch["prompt"])
  beams = decode_beams(params, prompt, prompt != 0, banned, build_trie(index), config=model, width=5)
  for document, code in enumerate(CODES):
    docid = jnp.broadcast_to(jnp.asarray(code), (4, 4))
    drawn, count = stage.prepare(jax.random.key(0), batch | {"docid": docid})
    assert count == 4 * (code != 0).sum()
    for row in range(4):
      alone = jax.tree.map(lambda x, row=row: x[row : row + 1], drawn)
      loss = stage.loss(params, alone, INDEX, jnp.float32(1.0), 1)[0]
      place = np.flatnonzero(np.asarray(beams.document[row]) == document)
      np.testing.assert_allclose(-beams.score[row, place], [loss], rtol=1e-4)


@pytest.mark.parametrize("model", [MODEL, BERT], ids=["rotary", "learned"])
def test_and_so_it_is_with_a_code_head_whose_canvas_holds_codes(model):
  model = dataclasses.replace(
    model, alignment="shifted", pattern="prefix_causal", code_levels=4, code_size=3, head="none"
  )
  denoiser = CodeDenoiser(CanvasDenoiser(model, pad_id=0, pattern="prefix_causal"), mask_token=4, first_code=8, size=3)
  stage = dataclasses.replace(
    STAGE, denoiser=denoiser, process=make_process("clean"), mask_id=3, pad_id=-1, valid_size=3
  )
  params = init_params(model, jax.random.key(3))
  drawn = {name: jax.random.normal(jax.random.key(i), (4, 3, 16)) for i, name in enumerate(("centroids", "rows"))}
  params["code_head"] |= drawn | {"scale": jnp.full(1, 2.0)}
  codes = np.array([[0, 2, 1, 0], [0, 2, 2, 0], [1, 0, 0, 2], [2, 2, 1, 1], [0, 1, 1, 0]], np.int32)
  index = DocIdIndex(codes, tuple("abcde"), tuple("abcde"), eos_id=-1, pad_id=-1)
  batch, banned = batch_of(4, seed=5), jnp.arange(4) == 3
  prompt = np.asarray(batch["prompt"])
  search = functools.partial(decode_beams, params, prompt, prompt != 0, banned, build_trie(index), width=5)
  beams = search(config=model, codes=denoiser)
  assert (np.sort(np.asarray(beams.document)) == np.arange(5)).all()
  for document, code in enumerate(codes):
    docid = jnp.broadcast_to(jnp.asarray(code), (4, 4))
    drawn, count = stage.prepare(jax.random.key(0), batch | {"docid": docid})
    assert count == 16
    for row in range(4):
      alone = jax.tree.map(lambda x, row=row: x[row : row + 1], drawn)
      loss = stage.loss(params, alone, INDEX, jnp.float32(1.0), 1)[0]
      place = np.flatnonzero(np.asarray(beams.document[row]) == document)
      np.testing.assert_allclose(-beams.score[row, place], [loss], rtol=1e-4)

  every = functools.partial(decode_beams, params, prompt, prompt != 0, banned, config=model, codes=denoiser)
  free = every(AnyText(4), width=3**4)  # codes in any order, documents or not
  np.testing.assert_allclose(jnp.exp(free.score).sum(axis=1), np.ones(4), rtol=1e-4)
  for row, document in np.ndindex(4, 5):
    place = np.flatnonzero((np.asarray(free.tokens[row]) == codes[document]).all(axis=1))
    mine = np.asarray(beams.document[row]) == document
    np.testing.assert_allclose(free.score[row, place], beams.score[row, mine], rtol=1e-4)
  with pytest.raises(ValueError, match=r"one for each of the 4 levels and no EOS; not .*length=3"):
    every(AnyText(3), width=1)
  with pytest.raises(ValueError, match="codes are for a model with a code head"):
    search(config=MODEL, codes=denoiser)


def test_label_smoothing_spreads_a_share_over_the_columns_in_use():
  params, batch = init_params(MODEL, jax.random.key(0)), batch_of(4)
  stage = dataclasses.replace(STAGE, process=make_process("all_masked"), label_smoothing=0.2, first_valid=3)
  drawn, count = stage.prepare(jax.random.key(1), batch)
  logits = np.asarray(stage.denoiser(params, batch["prompt"], drawn["x_t"]), np.float64)[:, :, 3:20]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  target = 0.8 * np.eye(17)[np.asarray(batch["docid"]).clip(3) - 3] + 0.2 / 17
  in_use = np.asarray(batch["docid"]) >= 3
  loss = stage.loss(params, drawn | {"corrupted": jnp.asarray(in_use)}, INDEX, count, 4)[0]
  np.testing.assert_allclose(loss, -(target * log_probs).sum(-1)[in_use].sum() / 16, rtol=1e-5)


def test_a_denoiser_learns_the_identifiers_it_is_shown():
  stage, batch = STAGE, batch_of(16, seed=2)
  params = init_params(MODEL, jax.random.key(8))
  step = jax.jit(
    lambda p, key: jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(lambda q: whole_loss(stage, q, batch, key)[0])(p))
  )
  first = whole_loss(stage, params, batch, jax.random.key(9))[0]
  for i in range(150):
    params = step(params, jax.random.key(100 + i))
  last = whole_loss(stage, params, batch, jax.random.key(9))[0]
  assert last < 0.5 * first
