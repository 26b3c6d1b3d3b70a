"""Where parameters start: the corpus' statistics, a pretrained model, and what does not go together."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.data.records import Collection, Document, Query
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.docid.build import with_words
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.product_quantizer import fit_product_quantizer
from diffgr_jax.docid.residual_quantizer import fit_residual_quantizer
from diffgr_jax.docid.words import fit_word_coder
from diffgr_jax.models.encoder import sentence_vectors
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import abstract_params, init_params
from diffgr_jax.training import loop, start
from diffgr_jax.training.docid_job import DocIdJob
from diffgr_jax.training.options import check_config
from diffgr_jax.training.run import open_run, prepare_run

GOLDEN = Path(__file__).parents[1] / "golden"


class Letters(Vocabulary):
  """A vocabulary without a tokenizer: a token a letter, from 5 on."""

  def __init__(self):
    pass

  def encode_many(self, texts):
    return [[5 + ord(c) - ord("a") for c in text if c.isalpha()] for text in texts]


def collection_of(texts, queries=()):
  documents = [Document(f"D{i}", "", text) for i, text in enumerate(texts)]
  return Collection("toy", documents, {"train": list(queries)}, "", {})


def test_corpus_embeddings_are_the_right_singular_vectors_of_tf_idf():
  texts = ["aab", "abc", "bcd", "cde", "aef", "fgb"]
  collection = collection_of(texts, [Query("q", "gg", ("D0",))])
  embeddings, known = start.corpus_embeddings(collection, Letters(), rows=16, width=3)
  counts = np.zeros((6, 16))
  for i, text in enumerate(["aabgg", *texts[1:]]):
    for c in text:
      counts[i, 5 + ord(c) - ord("a")] += 1
  idf = np.log(7 / np.maximum((counts > 0).sum(0), 1))
  weights = np.log1p(counts) * idf
  weights /= np.linalg.norm(weights, axis=1, keepdims=True)
  right = np.linalg.svd(weights)[2][:3].T
  right = start.ROW_LENGTH * right / np.maximum(np.linalg.norm(right, axis=1, keepdims=True), 1e-9)
  np.testing.assert_array_equal(known, counts.sum(0) > 0)
  # Singular vectors have no sign, and the order of the columns is free: compare the cosines of tokens.
  np.testing.assert_allclose(
    (embeddings @ embeddings.T)[known][:, known], (right @ right.T)[known][:, known], atol=1e-5
  )
  again, _ = start.corpus_embeddings(collection, Letters(), rows=16, width=3)
  np.testing.assert_array_equal(embeddings, again)


def test_a_corpus_smaller_than_the_width_is_refused_with_the_numbers():
  with pytest.raises(ValueError, match=r"more than d_model \(3\) documents and tokens, not 3 and 4"):
    start.corpus_embeddings(collection_of(["ab", "bc", "cd"]), Letters(), rows=16, width=3)


def test_the_corpus_start_answers_with_the_company_of_the_querys_words(tiny_config, tmp_path):
  with tiny_config.unlocked():
    tiny_config.update(start="corpus", n_heads=2, n_kv_heads=2, head_dim=8)
  run, collection = prepare_run(tiny_config, tmp_path)
  shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract_params(run.model))
  fresh = init_params(run.model, jax.random.key(0))
  params = start.starting_params(fresh, tiny_config, run.model, run.vocab, run.docid_tokens, collection, shardings)
  assert not np.array_equal(params["embed"]["embedding"], fresh["embed"]["embedding"])
  assert not np.asarray(params["blocks"]["mlp"]["down"]["kernel"]).any()
  # Logits of an all-masked canvas, by hand: the final norm of MASK + slot + what attention averages, against the table.
  prompt = jnp.asarray([[run.vocab.bos_id, 100, 101, run.vocab.sep_id]])
  canvas = jnp.full((1, run.index.canvas_length), run.vocab.mask_id)
  base = np.asarray(run.denoiser(params, prompt, canvas))[0]
  swapped = np.asarray(run.denoiser(params, prompt.at[0, 1].set(102), canvas))[0]
  assert (base[:, 100] > swapped[:, 100]).all()  # a token of the query is likelier everywhere
  assert (base[:, 102] < swapped[:, 102]).all()


def test_a_run_starts_at_a_pretrained_model_and_reads_back(tiny_config, tmp_path, tiny_bert):
  with tiny_config.unlocked():
    tiny_config.update(start="pretrained", pretrained=str(tiny_bert), slot_embeddings=False, learning_rate=1e-9)
  job, state = loop.train_and_evaluate(tiny_config, tmp_path / "run")
  assert isinstance(job, DocIdJob)
  run = job.run
  assert run.model.norm_position == "post"
  assert run.model.head == "mlm"
  assert run.model.vocab_size == run.vocab.padded_size
  from diffgr_jax.models.hf_weights import load_hf

  _, original = load_hf(tiny_bert)
  np.testing.assert_allclose(
    state.params["blocks"]["mlp"]["up"]["kernel"], original["blocks"]["mlp"]["up"]["kernel"], atol=1e-6
  )
  again = open_run(tmp_path / "run")
  assert again.model == run.model
  assert again.vocab.encode("river stone") == run.vocab.encode("river stone")


def pretrained_run(config, folder, tiny_bert, **changes):
  with config.unlocked():
    config.update(start="pretrained", pretrained=str(tiny_bert), slot_embeddings=False, **changes)
  run, collection = prepare_run(config, folder)
  shardings = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract_params(run.model))
  params = start.starting_params({}, config, run.model, run.vocab, run.docid_tokens, collection, shardings)
  return run, params


def test_an_encoder_gets_a_head_that_knows_how_common_tokens_are(tiny_config, tmp_path, tiny_bert):
  run, params = pretrained_run(tiny_config, tmp_path, tiny_bert)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_params(run.model))
  canvas = jnp.full((2, run.index.canvas_length), run.vocab.mask_id)
  prompt = jnp.asarray([[run.vocab.bos_id, 10, 11, run.vocab.sep_id], [0, run.vocab.bos_id, 12, run.vocab.sep_id]])
  model, features = run.denoiser.features(params, prompt, canvas)
  length = np.linalg.norm(np.asarray(features), axis=-1)
  np.testing.assert_allclose(length, np.sqrt(run.model.d_model), rtol=1e-3)
  # Without features, what is left is the share of each token in the DocIDs.
  logits = np.asarray(model.project(jnp.zeros_like(features)))[0, 0]
  share = np.bincount(run.index.codes.reshape(-1), minlength=run.model.vocab_size) / run.index.codes.size
  in_docids = share > 0
  np.testing.assert_allclose(jax.nn.softmax(logits)[in_docids], share[in_docids], rtol=0.2)
  assert logits[~in_docids].max() < logits[in_docids].min()


def test_docid_code_rows_begin_at_the_mean_and_padding_is_never_sampled(tiny_config, tmp_path, tiny_bert):
  run, params = pretrained_run(tiny_config, tmp_path, tiny_bert, docid_levels=2, docid_codes=8)
  from diffgr_jax.models.hf_weights import load_hf

  _, original = load_hf(tiny_bert)
  mean = np.asarray(original["embed"]["embedding"]).mean(axis=0)
  codes = [run.vocab.docid_token(level, code) for level in range(2) for code in range(8)]
  assert len(set(codes)) == 16
  assert max(codes) == run.vocab.size - 1 < run.model.vocab_size - 1
  for row in codes:
    np.testing.assert_allclose(params["embed"]["embedding"][row], mean, atol=1e-6)
  bias = params["mlm"]["bias"].at[run.vocab.size :].set(1e6).at[jnp.asarray(codes)].set(1e3)
  params = params | {"mlm": params["mlm"] | {"bias": bias}}  # padding would win, and codes come next
  prompt = jnp.full((3, 4), run.vocab.sep_id)
  canvas = jnp.full((3, run.index.canvas_length), run.vocab.mask_id)
  for temperature in (0.0, 5.0):
    state = decode_canvas(
      params,
      prompt,
      canvas,
      np.arange(3),
      run.banned,
      denoise=run.denoiser,
      options=DecodeOptions(make_policy("confidence", 0.9), run.vocab.mask_id),
      steps=2,
      temperature=temperature,
    )
    assert np.isin(np.asarray(state.canvas), codes).all()


@pytest.mark.parametrize("kind, scale", [("product", 20.0), ("residual", 40.0)])
def test_codes_start_at_their_centroids_and_rank_as_quantised_vectors(tiny_config, tmp_path, tiny_bert, kind, scale):
  width = 64  # of the golden encoder
  vectors = np.random.default_rng(0).normal(size=(24, width)).astype(np.float32)
  fit = {"product": fit_product_quantizer, "residual": fit_residual_quantizer}[kind]
  quantizer = fit(vectors, 4, 6)
  ids = tuple(f"D{i}" for i in range(24))
  codes = quantizer.encode(vectors)
  CodeIndex(codes, (6,) * 4, ids, ids, quantizer).save(tmp_path / "i.npz")
  changes = dict(docid="codes", docid_index=str(tmp_path / "i.npz"), code_head=True, pattern="prefix", prior_weight=0.0)
  run, params = pretrained_run(tiny_config, tmp_path / "run", tiny_bert, **changes, code_scale=scale)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_params(run.model))
  prompt = jnp.asarray([[run.vocab.bos_id, 10, 11, run.vocab.sep_id]])
  canvas = jnp.full((1, 4), run.mask_id)
  logits = np.asarray(run.denoiser(params, prompt, canvas), np.float64)[0]
  scores = sum(logits[level, codes[:, level]] for level in range(4))
  spec, original = load_hf(tiny_bert)
  table = np.asarray(params["embed"]["embedding"])
  texts = sentence_vectors(original | {"embed": {"embedding": table}}, spec.config, prompt, jnp.ones((1, 4), bool))
  np.testing.assert_allclose(scores, scale * quantizer.decode(codes) @ np.asarray(texts)[0], atol=1e-3)
  token = run.vocab.docid_token(1, 2)
  cosine = table[token] @ quantizer.centroids()[1, 2]
  assert cosine == pytest.approx(np.linalg.norm(table[token]) * np.linalg.norm(quantizer.centroids()[1, 2]), rel=1e-4)


def test_levels_that_name_words_start_as_idf_beside_the_vectors(tiny_config, tmp_path, tiny_bert):
  rng, ids = np.random.default_rng(1), tuple(f"D{i}" for i in range(24))
  vectors = rng.normal(size=(24, 64)).astype(np.float32)
  quantizer, texts = fit_product_quantizer(vectors, 2, 6), rng.integers(0, 118, (24, 9)).tolist()
  coder = fit_word_coder(texts, 118, levels=4, codes=6)
  dense = quantizer.encode(vectors)
  index = CodeIndex(dense, (6,) * 2, ids, ids, quantizer)
  index = with_words(index, coder, [[]] * 24, texts)
  index.save(tmp_path / "i.npz")
  changes = dict(docid="codes", docid_index=str(tmp_path / "i.npz"), code_head=True, pattern="prefix", prior_weight=0.0)
  run, params = pretrained_run(tiny_config, tmp_path / "run", tiny_bert, **changes)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract_params(run.model))
  asked = [texts[3][0], texts[5][1]]
  prompt = jnp.asarray([[run.vocab.bos_id, *(5 + piece for piece in asked), run.vocab.sep_id]])
  logits = np.asarray(run.denoiser(params, prompt, jnp.full((1, 6), run.mask_id)), np.float64)[0]
  scores = sum(logits[level, index.codes[:, level]] for level in range(6))
  spec, original = load_hf(tiny_bert)
  table = np.asarray(params["embed"]["embedding"])
  query = sentence_vectors(original | {"embed": {"embedding": table}}, spec.config, prompt, jnp.ones((1, 4), bool))
  named = sum(coder.idf[piece] * (index.codes[:, 2 + piece % 4] == 1 + piece // 4 % 5) for piece in sorted(set(asked)))
  expected = 20 * (quantizer.decode(dense) @ np.asarray(query)[0] + 0.01 * named)
  np.testing.assert_allclose(scores, expected, atol=1e-3)
  shared = [piece for piece in range(118) if piece % 4 == 1 and piece // 4 % 5 == 2]  # the pieces of code 3, level 1
  np.testing.assert_allclose(
    table[run.vocab.docid_token(3, 3)], table[[5 + piece for piece in shared]].mean(axis=0), atol=1e-6
  )
  assert open_run(tmp_path / "run").model == run.model


def test_levels_that_name_words_of_another_tokenizer_or_for_the_rival_are_refused(tiny_config, tmp_path, tiny_bert):
  vectors, ids = np.random.default_rng(2).normal(size=(24, 64)).astype(np.float32), tuple(f"D{i}" for i in range(24))
  quantizer = fit_product_quantizer(vectors, 2, 6)
  index = CodeIndex(quantizer.encode(vectors), (6,) * 2, ids, ids, quantizer)
  changes = dict(docid="codes", docid_index=str(tmp_path / "i.npz"), code_head=True, pattern="prefix")
  for pieces, more, message in (
    (100, {}, "names words in 100 pieces and 6 codes a level, but config.pretrained has 118 pieces"),
    (118, dict(paradigm="autoregressive", process="clean"), "build it without --word_levels for config.paradigm"),
  ):
    with_words(index, fit_word_coder([[1]], pieces, 2, 6), [[]] * 24, [[1]] * 24).save(tmp_path / "i.npz")
    with pytest.raises(ValueError, match=message):
      pretrained_run(tiny_config, tmp_path / "run", tiny_bert, **changes, **more)


def test_a_code_head_without_centroids_of_the_model_s_width_is_refused(tiny_config, tmp_path, tiny_bert):
  ids = tuple(f"D{i}" for i in range(24))
  rows = np.stack([np.arange(24) // 5, np.arange(24) % 5], axis=1).astype(np.int32)
  CodeIndex(rows, (5, 5), ids, ids).save(tmp_path / "i.npz")
  changes = dict(docid="codes", docid_index=str(tmp_path / "i.npz"), code_head=True)
  with pytest.raises(
    ValueError, match=r"config\.code_head needs an index of .* has no quantiser: .* set config.code_head to False"
  ):
    pretrained_run(tiny_config, tmp_path / "run", tiny_bert, **changes)


@pytest.mark.parametrize("begin", ["random", "corpus"])
def test_a_code_head_that_nothing_puts_centroids_into_is_refused(tiny_config, tmp_path, begin):
  with tiny_config.unlocked():
    tiny_config.update(docid="codes", docid_index=str(tmp_path / "i.npz"), code_head=True, start=begin)
  with pytest.raises(ValueError, match=f"config.code_head needs config.start to be 'pretrained', not '{begin}'"):
    prepare_run(tiny_config, tmp_path / "run")


def test_a_vocabulary_from_the_corpus_has_the_code_rows_too(tiny_config, tmp_path):
  with tiny_config.unlocked():
    tiny_config.update(docid_levels=3, docid_codes=4)
  run, _ = prepare_run(tiny_config, tmp_path)
  assert run.vocab.docid_token(2, 3) == run.vocab.size - 1
  assert run.vocab.size <= run.model.vocab_size


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(start="warm"), "config.start is one of random, corpus, pretrained, not 'warm'"),
    (dict(start="pretrained"), "config.pretrained must name a folder, or minilm"),
    (dict(start="pretrained", pretrained="minilm"), "config.slot_embeddings must be False"),
    (dict(start="corpus", n_heads=2, n_kv_heads=1), "config.start 'corpus' needs n_heads = n_kv_heads"),
  ],
)
def test_starts_that_do_not_fit_are_named(tiny_config, change, message):
  with tiny_config.unlocked():
    tiny_config.update(change)
  with pytest.raises(ValueError, match=message):
    check_config(tiny_config)


def test_a_missing_pretrained_folder_is_named(tiny_config, tmp_path):
  with tiny_config.unlocked():
    tiny_config.update(start="pretrained", pretrained=str(tmp_path / "gone"), slot_embeddings=False)
  with pytest.raises(FileNotFoundError, match=r"gone is no folder: name a Hugging Face folder, or minilm"):
    prepare_run(tiny_config, tmp_path / "run")


@pytest.fixture
def tiny_bert(tmp_path):
  """The golden BERT encoder with a word-piece tokenizer of its size beside it."""
  import shutil

  from tokenizers import Tokenizer, models, pre_tokenizers

  folder = tmp_path / "bert"
  shutil.copytree(GOLDEN / "bert_minilm", folder)
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "river", "stone", "lamp"]
  pieces += [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(i) for i in range(10)]
  pieces += [f"##{piece}" for piece in pieces[8:]]
  pieces += [f"[unused{i}]" for i in range(118 - len(pieces))]
  tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.save(str(folder / "tokenizer.json"))
  names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
  (folder / "special_tokens_map.json").write_text(json.dumps(names))
  return folder
