"""SFT: its loss by hand on unpacked messages, whatever the packing, the parts of the batch and the chunking."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind, init_params
from diffgr_jax.stages.sft import SftStage, TokenWeights, target_weights
from tests.stages.small import CAUSAL as MODEL
from tests.stages.small import messages, packed

WEIGHTS = (0.5, 2.0, 1.0)
STAGE = SftStage(MODEL, valid_size=40, weights=TokenWeights(*WEIGHTS))


def own_messages(batch):
  """The messages of a batch, unpacked."""
  for row in range(len(batch["tokens"])):
    one = {name: np.asarray(batch[name][row]) for name in ("tokens", "segment", "part")}
    for segment in range(1, one["segment"].max() + 1):
      inside = (one["segment"] == segment) & (one["part"] < 4)
      yield one["tokens"][inside], one["part"][inside]


def log_probs(params, tokens):
  layout = padded_layout(jnp.ones((1, len(tokens)), bool))
  model = bind(MODEL, params)
  logits = np.asarray(model.logits(model(jnp.asarray(tokens[None]), layout, pattern="causal"))[0, :, :40], np.float64)
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_the_loss_is_that_of_the_messages_alone():
  params, batch = init_params(MODEL, jax.random.key(0)), packed(messages(30))
  prepared, count = STAGE.prepare(jax.random.key(1), batch)
  loss, metrics = STAGE.loss(params, prepared, {}, count, 4)
  total, weights, answers = 0.0, 0.0, 0.0
  for tokens, parts in own_messages(batch):
    found = log_probs(params, tokens)
    for place in np.flatnonzero(parts > 0):
      weight = WEIGHTS[parts[place] - 1]
      term = -weight * found[place - 1, tokens[place]]
      total, weights = total + term, weights + weight
      answers += term if parts[place] == 2 else 0.0
  assert float(count) == pytest.approx(weights)
  assert float(loss) == pytest.approx(total / weights, rel=1e-4)
  assert float(metrics["answer_loss"]) == pytest.approx(answers / weights, rel=1e-4)
  assert float(metrics["loss"]) == pytest.approx(
    sum(float(metrics[f"{name}_loss"]) for name in ("reasoning", "answer", "end")), rel=1e-5
  )


def test_parts_of_a_batch_add_up_and_chunks_change_nothing():
  params, batch = init_params(MODEL, jax.random.key(0)), packed(messages(30))
  prepared, count = STAGE.prepare(jax.random.key(1), batch)
  whole = STAGE.loss(params, prepared, {}, count, 4)[0]
  halves = [{name: value[at] for name, value in prepared.items()} for at in (slice(2), slice(2, 4))]
  assert sum(float(STAGE.loss(params, half, {}, count, 4)[0]) for half in halves) == pytest.approx(
    float(whole), rel=1e-5
  )
  chunked = dataclasses.replace(STAGE, ce_chunk=16)
  assert float(chunked.loss(params, prepared, {}, count, 4)[0]) == pytest.approx(float(whole), rel=1e-5)


def test_a_choice_is_a_label_before_an_id_in_a_reasoning():
  weights = TokenWeights(0.5, 2.0, 1.0, choice=10.0, labels=(6, 7), first_codes=(20, 24))
  tokens = [[6, 20, 6, 21, 7, 24, 9, 22, 7, 23, 6, 20, 7, 2]]
  part = [[0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3]]
  at = [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, -1, -1]]
  batch = {name: jnp.asarray(rows) for name, rows in {"tokens": tokens, "part": part, "target_at": at}.items()}
  # 7 before 24 is no choice (24 is no first code), nor is 9 before 22, nor what stands in the answer.
  expected = [5.0, 0.5, 0.5, 0.5, 0.5, 0.5, 5.0, 0.5, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0]
  np.testing.assert_array_equal(target_weights(batch, weights)[0], expected)
  even = dataclasses.replace(weights, choice=1.0)
  np.testing.assert_array_equal(target_weights(batch, even)[0, :8], [0.5] * 8)
