"""Eight devices compute what one does: gradients, and every decoder, on meshes that split rows, heads and lengths."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.autoregressive import decode_autoregressive
from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.policies import Confidence, Threshold
from diffgr_jax.decoding.scoring import one_pass_retrieve, one_pass_scores, pad_documents
from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.models.cache import cache_split, init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.inference import decoding_axes, decoding_params
from diffgr_jax.models.transformer import abstract_params, init_params, logical_axes
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import DECODE_RULES, TRAIN_RULES, batch_sharding, tree_shardings
from diffgr_jax.stages.docid import DocIdStage

MASK, VOCAB, ROWS, PROMPT, CANVAS = 4, 32, 8, 6, 4
MODEL = TransformerConfig(
  vocab_size=VOCAB, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=32, qk_norm=True, qkv_bias=True
)
MESHES = [{"data": 8}, {"fsdp": 4, "tensor": 2}, {"data": 2, "tensor": 2, "sequence": 2}]
RNG = np.random.default_rng(0)
PROMPTS = np.where(np.arange(PROMPT) < RNG.integers(0, 4, (ROWS, 1)), 0, RNG.integers(5, VOCAB, (ROWS, PROMPT)))
PROMPTS = PROMPTS.astype(np.int32)
CODES = RNG.integers(5, VOCAB, (11, CANVAS)).astype(np.int32)
BANNED = np.isin(np.arange(VOCAB), [0, MASK])


@functools.cache
def params():
  # Larger than at a real start: decisions are then clear, and rounding does not turn them.
  return jax.tree.map(lambda x: 2.0 * x, init_params(MODEL, jax.random.key(0)))


def on_mesh(sizes, rules, compute):
  """compute(model, params, put) on the mesh, its weights as the rules say; with sizes None on one device."""
  if sizes is None:
    return compute(MODEL, params(), jnp.asarray)
  mesh = make_mesh(sizes)
  placed = jax.device_put(params(), tree_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL), rules))
  with jax.set_mesh(mesh):
    return compute(dataclasses.replace(MODEL, rules=rules), placed, lambda x: jax.device_put(x, batch_sharding(mesh)))


def loss_and_gradient(model, params, put, ce_chunk):
  codes = np.minimum(CODES, 29)  # rows from 30 on are padding: a target there has an infinite loss
  denoiser = CanvasDenoiser(model, pad_id=0)
  stage = DocIdStage(
    denoiser,
    make_process("exact_count"),
    MASK,
    valid_size=30,
    ce_chunk=ce_chunk,
    document_weight=0.0 if ce_chunk else 0.5,
  )
  documents = np.arange(ROWS, dtype=np.int32)
  batch = {"prompt": put(PROMPTS), "docid": put(codes[:ROWS]), "doc_index": put(documents)}
  index = {
    "codes": jnp.asarray(codes),
    "scored": jnp.ones(codes.shape, bool),
    "log_frequency": jnp.zeros((CANVAS, VOCAB)),
  }

  @jax.jit
  def both(params, batch):
    batch, count = stage.prepare(jax.random.key(1), batch)
    return jax.value_and_grad(lambda p: stage.loss(p, batch, index, count, ROWS)[0])(params)

  return both(params, batch)


@pytest.mark.parametrize("ce_chunk", [0, 12])
@pytest.mark.parametrize("sizes", MESHES)
def test_loss_and_gradients(sizes, ce_chunk):
  compute = functools.partial(loss_and_gradient, ce_chunk=ce_chunk)
  loss, gradient = on_mesh(sizes, TRAIN_RULES, compute)
  expected, expected_gradient = on_mesh(None, (), compute)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, expected_gradient)


def canvas(model, params, put):
  options = DecodeOptions(policy=Confidence(), mask_id=MASK)
  empty = np.full((ROWS, CANVAS), MASK, np.int32)
  seeds = np.arange(ROWS)
  how = dict(denoise=CanvasDenoiser(model, pad_id=0), options=options, steps=3, codes=CODES)
  state = decode_canvas(params, put(PROMPTS), put(empty), put(seeds), BANNED, **how)
  return state.canvas, state.step_map, state.confidence


def autoregressive(model, params, put):
  rows = decode_autoregressive(
    params, PROMPTS, PROMPTS != 0, np.arange(ROWS), BANNED, config=model, max_new_tokens=5, pad_id=0, stops=[[7]]
  )
  return rows.tokens, rows.length, rows.log_prob


def blocks(model, params, put):
  options = BlockOptions(policy=Threshold(0.2), mask_id=MASK, block_size=2)
  state = decode_blocks(
    params, PROMPTS, PROMPTS != 0, np.arange(ROWS), BANNED, config=model, options=options, max_new_tokens=5, stops=[[7]]
  )
  return state.canvas, state.step_map, state.confidence


@pytest.mark.parametrize("decode", [canvas, autoregressive, blocks])
@pytest.mark.parametrize("sizes", MESHES)
def test_decoding(sizes, decode):
  *tokens, numbers = on_mesh(sizes, DECODE_RULES, decode)
  *expected, expected_numbers = on_mesh(None, (), decode)
  for found, right in zip(tokens, expected, strict=True):
    np.testing.assert_array_equal(found, right)
  np.testing.assert_allclose(numbers, expected_numbers, atol=1e-5)


@pytest.mark.parametrize("k", [1, 4, 11])
def test_every_device_scores_its_own_documents_and_ties_go_by_index(k):
  rules = tuple(
    (axis, {"documents": "tensor", "batch": "data", "lookup": "data"}.get(axis, x)) for axis, x in DECODE_RULES
  )
  same = np.concatenate([CODES[:6], CODES[:5]])  # every document twice, on different devices: ties

  def retrieve(model, params, put):
    codes, scored = pad_documents(same, np.ones(same.shape, bool), 2 if model.rules else 1, MASK)
    how = dict(denoise=CanvasDenoiser(model, pad_id=0), mask_id=MASK, rules=model.rules)
    return one_pass_retrieve(params, jnp.asarray(PROMPTS), codes, scored, BANNED, k=k, **how)

  index, score = on_mesh({"data": 4, "tensor": 2}, rules, retrieve)
  expected, expected_score = on_mesh(None, (), retrieve)
  np.testing.assert_array_equal(index, expected)
  np.testing.assert_allclose(score, expected_score, atol=1e-5)


def test_scores_and_cache_are_split_over_the_mesh():
  rules = DECODE_RULES

  def scores(model, params, put):
    codes, scored = pad_documents(CODES, np.ones(CODES.shape, bool), 2, MASK)
    how = dict(denoise=CanvasDenoiser(model, pad_id=0), mask_id=MASK, rules=rules)
    cache = jax.jit(lambda: init_cache(model, ROWS, 6))()
    return one_pass_scores(params, put(PROMPTS), codes, scored, BANNED, **how), cache, cache_split(model)

  scored, cache, split = on_mesh({"data": 4, "tensor": 2}, rules, scores)
  assert {shard.data.shape for shard in scored.addressable_shards} == {(2, 6)}
  assert {shard.data.shape for shard in cache.keys[0].addressable_shards} == {(2, 6, 4)}
  assert split == (4, 2)


def test_laid_out_weights_have_their_axes():
  laid_out = jax.eval_shape(functools.partial(decoding_params, MODEL), abstract_params(MODEL))
  mesh = make_mesh({"data": 4, "tensor": 2})
  shardings = tree_shardings(mesh, laid_out, decoding_axes(MODEL), DECODE_RULES)
  assert shardings["blocks"][1]["mlp"]["up"]["kernel"].shard_shape((32, 16)) == (16, 16)
  assert shardings["blocks"][0]["attention"]["out"]["kernel"].shard_shape((16, 16)) == (16, 8)


@pytest.mark.parametrize(
  "sizes, message",
  [
    (
      {"tensor": 8},
      r"attention queries: its heads dimension of 4 cannot be split over 8 devices of the mesh axis tensor",
    ),
    ({"sequence": 8}, r"tokens: its length dimension of 10 cannot be split over 8 devices of the mesh axis sequence"),
  ],
)
def test_a_mesh_that_does_not_divide_is_refused_with_the_numbers(sizes, message):
  with pytest.raises(ValueError, match=message):
    on_mesh(sizes, TRAIN_RULES, functools.partial(loss_and_gradient, ce_chunk=0))
