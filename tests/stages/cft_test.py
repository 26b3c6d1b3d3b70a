"""CFT: logits are those of block decoding (contract 1), for both alignments; blocks, parts and complements by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.data.parts import BEHIND
from diffgr_jax.diffusion.corruption import ExactCount
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind, init_params
from diffgr_jax.stages.cft import CftStage
from diffgr_jax.stages.sft import TokenWeights
from tests.stages.small import CAUSAL, messages, packed

SIZE, MASK = 4, 4
MODEL = dataclasses.replace(CAUSAL, pattern="block_causal")
STAGE = CftStage(MODEL, ExactCount(), SIZE, MASK, valid_size=40, weights=TokenWeights(0.5, 2.0, 1.0))


def batch_of(rows=4, seed=0):
  return packed(messages(30, seed), rows, align=SIZE, length=32, targets=24)


def blocks_of(batch):
  """Row, first column of `target_at`, and the slots of each block that is learned."""
  at = np.asarray(batch["target_at"])
  for row in range(len(at)):
    for column in range(0, at.shape[1], SIZE):
      if at[row, column] >= 0:
        yield row, column, at[row, column : column + SIZE]


def decoded_logits(stage, params, batch, row, slots, x_t):
  """What a block decoder computes for a block: everything before it clean, itself as it stands; nothing behind."""
  segment, position = (np.asarray(batch[name][row]) for name in ("segment", "position"))
  before = np.flatnonzero((segment == segment[slots[0]]) & (position < position[slots[0]]))
  tokens = np.r_[np.asarray(batch["tokens"][row])[before], x_t]
  layout = padded_layout(jnp.ones((1, len(tokens)), bool))
  model = bind(stage.model, params)
  hidden = model(jnp.asarray(tokens[None]), layout, pattern="block_causal", block_size=SIZE)
  if stage.model.alignment == "shifted":
    hidden = jnp.roll(hidden, 1, axis=1)  # the first of the block: the clean token before it
  return np.asarray(model.logits(hidden))[0, -SIZE:]


@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
@pytest.mark.parametrize("whole_stream", [False, True])
def test_training_logits_are_decoding_logits(alignment, whole_stream):
  model = dataclasses.replace(MODEL, alignment=alignment)
  stage = dataclasses.replace(STAGE, model=model, whole_stream=whole_stream)
  params = init_params(model, jax.random.key(0))
  prepared, _ = stage.prepare(jax.random.key(1), batch_of())
  bound = bind(model, params)
  logits = np.asarray(bound.logits(stage.read(bound, prepared)))
  compared = 0
  for row, column, slots in blocks_of(prepared):
    if slots[0] == 0 or int(prepared["position"][row, slots[0]]) == 0:
      continue  # no message begins with a target
    x_t = np.asarray(prepared["x_t"][row, column : column + SIZE])
    expected = decoded_logits(stage, params, prepared, row, slots, x_t)
    np.testing.assert_allclose(logits[row, column : column + SIZE], expected, atol=2e-5)
    compared += 1
  assert compared > 15


def test_each_block_is_a_bound_of_its_own_and_only_targets_are_masked():
  batch = batch_of()
  prepared, count = STAGE.prepare(jax.random.key(2), batch)
  part_weight = np.array([0, 0.5, 2.0, 1.0, 0])
  total = 0.0
  for row, column, slots in blocks_of(prepared):
    part = np.asarray(batch["part"][row])[slots]
    clean, x_t = np.asarray(batch["tokens"][row])[slots], np.asarray(prepared["x_t"][row, column : column + SIZE])
    weight = np.asarray(prepared["weight"][row, column : column + SIZE])
    target = (part > 0) & (part != BEHIND)
    masked = (x_t == MASK) & target
    total += part_weight[part].sum()
    assert masked.sum() >= 1
    np.testing.assert_array_equal(x_t[~masked & (part != BEHIND)], clean[~masked & (part != BEHIND)])
    assert (x_t[part == BEHIND] == MASK).all()
    np.testing.assert_allclose(weight, masked * part_weight[part] * target.sum() / masked.sum(), rtol=1e-6)
  assert float(count) == pytest.approx(total)


def test_the_loss_by_hand():
  params = init_params(MODEL, jax.random.key(0))
  prepared, count = STAGE.prepare(jax.random.key(3), batch_of())
  loss, _ = STAGE.loss(params, prepared, {}, count, 4)
  total = 0.0
  for row, column, slots in blocks_of(prepared):
    x_t = np.asarray(prepared["x_t"][row, column : column + SIZE])
    logits = decoded_logits(STAGE, params, prepared, row, slots, x_t).astype(np.float64)[:, :40]
    found = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    clean = np.asarray(prepared["tokens"][row])[slots]
    total -= (np.asarray(prepared["weight"][row, column : column + SIZE]) * found[np.arange(SIZE), clean]).sum()
  assert float(loss) == pytest.approx(total / float(count), rel=1e-4)


def test_complementary_rows_mask_every_target_once():
  stage = dataclasses.replace(STAGE, complementary=True)
  batch = batch_of()
  prepared, count = stage.prepare(jax.random.key(4), batch)
  assert len(prepared["tokens"]) == 8
  first, second = (np.asarray(prepared["weight"][half]) > 0 for half in (slice(4), slice(4, 8)))
  part = np.take_along_axis(np.asarray(batch["part"]), np.maximum(np.asarray(batch["target_at"]), 0), axis=1)
  target = (np.asarray(batch["target_at"]) >= 0) & (part > 0) & (part != BEHIND)
  np.testing.assert_array_equal(first ^ second, target)
  assert float(count) == pytest.approx(2 * float(STAGE.prepare(jax.random.key(4), batch)[1]))
