"""The train step: sharded = unsharded, accumulated = whole, created where it belongs, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, replicated, shard_batch
from diffgr_jax.stages.docid import DocIdStage
from diffgr_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffgr_jax.training.state import create_state, state_shardings, train_step

MODEL = TransformerConfig(
  vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, qk_norm=True, rules=TRAIN_RULES
)
STAGE = DocIdStage(
  CanvasDenoiser(MODEL, pad_id=0), make_process("exact_count"), mask_id=4, valid_size=30, document_weight=0.3
)
HALF = dataclasses.replace(MODEL, compute_dtype="bfloat16")
ADAMW, MUON = (
  make_optimizer(
    learning_rate_schedule(1e-2, warmup_steps=1, steps=10), b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0, name=name
  )
  for name in ("adamw", "muon")
)
OPTIMIZER = ADAMW
CODES = np.random.default_rng(0).integers(5, 30, (11, 5)).astype(np.int32)


def batches(count, rows=16):
  rng = np.random.default_rng(1)
  for _ in range(count):
    document = rng.integers(0, len(CODES), rows).astype(np.int32)
    yield {"prompt": rng.integers(5, 30, (rows, 7)).astype(np.int32), "docid": CODES[document], "doc_index": document}


def train(mesh, steps=3, microbatches=1, stage=STAGE, optimizer=ADAMW):
  shardings = state_shardings(stage.model, optimizer, mesh, TRAIN_RULES)
  state = create_state(stage.model, optimizer, shardings, seed=0)
  index = jax.device_put(
    {"codes": CODES, "scored": np.ones(CODES.shape, bool), "log_frequency": np.zeros((5, 32), np.float32)},
    replicated(mesh),
  )
  losses = []
  for batch in batches(steps):
    how = dict(stage=stage, optimizer=optimizer, microbatches=microbatches)
    with jax.set_mesh(mesh):
      state, metrics = train_step(state, shard_batch(batch, mesh), index, jnp.int32(0), **how)
    losses.append(float(metrics["loss"]))
  return state, losses


@pytest.fixture(scope="module", params=[ADAMW, MUON], ids=["adamw", "muon"])
def unsharded(request):
  return train(make_mesh({"data": 1}, jax.devices()[:1]), optimizer=request.param), request.param


@pytest.mark.parametrize(
  "sizes", [{"data": 8}, {"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "tensor": 2, "sequence": 2}]
)
def test_eight_devices_train_as_one_does(unsharded, sizes):
  mesh, ((one, one_losses), optimizer) = make_mesh(sizes), unsharded
  state, losses = train(mesh, optimizer=optimizer)
  expected = state_shardings(MODEL, optimizer, mesh, TRAIN_RULES)
  jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim) or pytest.fail(f"{x}"), state, expected)
  np.testing.assert_allclose(losses, one_losses, rtol=2e-5)
  # Adam divides by the root of tiny second moments: rounding shows more in parameters than in losses.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), state.params, one.params)


def test_accumulated_gradients_are_the_whole_batch(unsharded):
  (_, one_losses), optimizer = unsharded
  _, losses = train(make_mesh({"data": 2}, jax.devices()[:2]), microbatches=4, optimizer=optimizer)
  np.testing.assert_allclose(losses, one_losses, rtol=2e-5)


@pytest.mark.parametrize("share", [0.5, 0.375], ids=["divided", "not divided by eight"])
def test_rows_without_a_canvas_train_on_many_devices_and_in_parts_as_on_one(share):
  model = dataclasses.replace(MODEL, code_levels=5, code_size=30, head="none", first_pass="prompt")
  denoiser = CodeDenoiser(CanvasDenoiser(model, pad_id=0, pattern="prefix"), mask_token=4, first_code=2, size=30)
  stage = dataclasses.replace(STAGE, denoiser=denoiser, mask_id=30, masked_share=share)
  _, one_losses = train(make_mesh({"data": 1}, jax.devices()[:1]), stage=stage)
  for sizes, microbatches in (({"data": 8}, 1), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)):
    _, losses = train(make_mesh(sizes), stage=stage, microbatches=microbatches)
    np.testing.assert_allclose(losses, one_losses, rtol=2e-5)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_in_bfloat16_keep_float32_masters(sizes):
  how = dict(stage=dataclasses.replace(STAGE, denoiser=CanvasDenoiser(HALF, pad_id=0)))
  one, one_losses = train(make_mesh({"data": 1}, jax.devices()[:1]), **how)
  many, losses = train(make_mesh(sizes), **how)
  _, exact = train(make_mesh({"data": 1}, jax.devices()[:1]))
  assert losses != exact  # half precision is what was computed
  np.testing.assert_allclose(losses, one_losses, rtol=5e-3)
  np.testing.assert_allclose(losses, exact, rtol=2e-2)
  for state in (one, many):
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"float32"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state)} <= {"float32", "int32"}
    # Masters hold what bfloat16 would round away.
    kernel = np.asarray(state.params["blocks"]["mlp"]["up"]["kernel"])
    assert (kernel != np.asarray(kernel.astype(jnp.bfloat16), np.float32)).mean() > 0.9


def test_parameters_and_moments_are_created_sharded():
  shardings = state_shardings(MODEL, OPTIMIZER, make_mesh({"fsdp": 4, "tensor": 2}), TRAIN_RULES)
  state = create_state(MODEL, OPTIMIZER, shardings, seed=0)
  up = state.params["blocks"]["mlp"]["up"]["kernel"]
  assert {shard.data.shape for shard in up.addressable_shards} == {(2, 4, 16)}
  moments = [
    leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape == up.shape and leaf.sharding == up.sharding
  ]
  assert len(moments) >= 2  # first and second moments


def test_the_draws_depend_on_seed_and_step_alone():
  batch = next(batches(1))
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  shardings = state_shardings(MODEL, OPTIMIZER, mesh, TRAIN_RULES)
  index = {"codes": jnp.asarray(CODES), "scored": jnp.ones(CODES.shape, bool), "log_frequency": jnp.zeros((5, 32))}

  def loss(seed, step):
    state = dataclasses.replace(create_state(MODEL, OPTIMIZER, shardings, seed=0), step=jnp.int32(step))
    _, metrics = train_step(state, batch, index, jnp.int32(seed), stage=STAGE, optimizer=OPTIMIZER)
    return float(metrics["loss"])

  assert loss(0, 5) == loss(0, 5)
  assert len({loss(0, 5), loss(0, 6), loss(1, 5)}) == 3


def test_later_steps_compile_nothing():
  before = train_step._cache_size()
  train(make_mesh({"data": 1}, jax.devices()[:1]), steps=1)
  after_one = train_step._cache_size()
  train(make_mesh({"data": 1}, jax.devices()[:1]), steps=4)
  assert train_step._cache_size() == after_one
  assert after_one >= before
