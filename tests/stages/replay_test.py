"""Replay: log-probabilities are the decoder's (contract 8); estimators against canvases scored one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.trajectory import generated, is_generated
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind
from diffgr_jax.stages.replay import combined, drawn_copies, replayed_copies
from tests.stages import rollouts as r


def log_prob_of(own, params, canvas, place, token):
  """log p of a token, from an uncached pass over one row up to the end of its block."""
  end = (place // r.SIZE + 1) * r.SIZE
  row = jnp.asarray(canvas[:end])[None]
  model = bind(own.model, params)
  hidden = model(row, padded_layout(jnp.ones(row.shape, bool)), pattern="block_causal", block_size=r.SIZE)
  if own.model.alignment == "shifted":
    hidden = jnp.roll(hidden, 1, axis=1)
  logits = np.asarray(model.logits(hidden), np.float64)[0, place] / own.temperature
  logits[list(r.BANNED)] = -np.inf
  return logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()


@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
@pytest.mark.parametrize("temperature, threshold", [(1.0, 0.3), (0.7, 0.05), (1.5, 1.0)])
def test_replayed_log_probs_are_those_of_the_decoder(alignment, temperature, threshold):
  own = r.policy(alignment, temperature=temperature)
  params = r.sharp_params(own.model)
  batch = r.rollouts(own, params, r.prompts(24), threshold, temperature)
  here = np.asarray(is_generated(batch["length"], r.ROOM))
  old = np.asarray(generated(batch["log_prob"], batch["start"], r.ROOM))
  new = np.asarray(own.log_probs(bind(own.model, params), batch, r.BANNED_ROWS))
  np.testing.assert_allclose(np.exp(new - old)[here], 1.0, atol=1e-5)
  steps = np.asarray(batch["step"])
  if threshold < 1:  # several tokens a pass, and tokens behind a stop, are really among them
    assert max(np.bincount(row[row >= 0]).max() for row in steps) > 1
    end = np.asarray(batch["start"] + batch["length"])
    assert any((row[at:] >= 0).any() for row, at in zip(steps, end, strict=True))


def test_a_low_temperature_makes_tokens_likelier_and_no_policy_surer():
  """A token is committed because the model is sure of it, not because it was drawn from a sharpened distribution."""
  own = r.policy(temperature=0.05)
  params = r.sharp_params(own.model)
  greedy, drawn = (r.rollouts(own, params, r.prompts(24), 0.6, temperature) for temperature in (0.0, own.temperature))
  same = np.asarray((greedy["tokens"] == drawn["tokens"]).all(axis=1))
  assert same.mean() > 0.5
  np.testing.assert_array_equal(np.asarray(greedy["step"])[same], np.asarray(drawn["step"])[same])
  assert np.asarray(greedy["step"])[same].max() > r.ROOM // r.SIZE


def test_autoregressive_log_probs_are_those_of_the_decoder():
  own = r.policy(pattern="causal", temperature=1.3)
  params = r.sharp_params(own.model)
  batch = r.rollouts(own, params, r.prompts(12), temperature=1.3)
  here = np.asarray(is_generated(batch["length"], r.ROOM))
  assert here.any(axis=1).all()
  assert (np.asarray(batch["length"]) < r.ROOM).any()
  old = np.asarray(generated(batch["log_prob"], batch["start"], r.ROOM))
  new = np.asarray(own.log_probs(bind(own.model, params), batch, r.BANNED_ROWS))
  np.testing.assert_allclose(np.exp(new - old)[here], 1.0, atol=1e-5)


def test_a_replay_takes_no_more_blocks_than_passes_and_reads_every_token_once():
  own = r.policy()
  batch = r.rollouts(own, r.sharp_params(own.model), r.prompts(12))
  copies = replayed_copies(batch, r.SIZE, r.ROOM)
  used = (np.asarray(copies.block) >= 0).sum(axis=1)
  passes = np.array([len(np.unique(row[row >= 0])) for row in np.asarray(batch["step"])])
  np.testing.assert_array_equal(used, passes)
  assert (used < np.asarray(batch["length"])).any()
  np.testing.assert_array_equal(np.asarray(copies.weight).sum(axis=(1, 2)), np.asarray(batch["length"]))


@pytest.mark.parametrize("estimator, draws", [("mean_field", 1), ("coupled", 1), ("elbo", 3)])
@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
def test_estimators_score_the_canvases_that_they_say(estimator, draws, alignment):
  own = r.policy(alignment, estimator=estimator, draws=draws)
  params = r.sharp_params(own.model)
  batch = r.rollouts(own, params, r.prompts(4, seed=1), seed=1)
  copies = drawn_copies(batch, r.SIZE, r.ROOM, estimator, draws)
  found = np.asarray(own.log_probs(bind(own.model, params), batch, r.BANNED_ROWS))
  block, hidden, copy, weight = (np.asarray(x) for x in (copies.block, copies.hidden, copies.copy, copies.weight))
  for row in range(4):
    tokens, start, length = (np.asarray(batch[name])[row] for name in ("tokens", "start", "length"))
    for g in range(length):
      total, place = 0.0, start + g
      for k in range(copy.shape[1]):
        if weight[row, k, g]:
          at = copy[row, k, g]
          assert block[row, at] == place // r.SIZE
          assert hidden[row, at, place % r.SIZE]
          canvas = tokens.copy()
          begin = block[row, at] * r.SIZE
          canvas[begin : begin + r.SIZE] = np.where(hidden[row, at], r.MASK, canvas[begin : begin + r.SIZE])
          total += weight[row, k, g] * log_prob_of(own, params, canvas, place, tokens[place])
      assert found[row, g] == pytest.approx(total, abs=2e-4)


def test_coupled_masks_complement_each_other_and_the_bound_weighs_a_block_as_its_tokens():
  own = r.policy()
  batch = r.rollouts(own, r.sharp_params(own.model), r.prompts(6, seed=2))
  length = np.asarray(batch["length"])
  coupled = np.asarray(drawn_copies(batch, r.SIZE, r.ROOM, "coupled", 1).weight)
  np.testing.assert_allclose(coupled.sum(axis=1), np.arange(r.ROOM)[None] < length[:, None])
  assert set(np.unique(coupled[:, :2].sum(axis=1))) <= {0.0, 0.5}
  many = drawn_copies(batch, r.SIZE, r.ROOM, "elbo", 50)
  # each canvas of a block has weights that sum to the block's tokens, so all of them to the row's
  np.testing.assert_allclose(np.asarray(many.weight).sum(axis=(1, 2)), length, rtol=1e-5)


def test_the_upper_bound_is_above_the_lower_one():
  rng = np.random.default_rng(0)
  log_probs, weight = -rng.exponential(size=(2, 40, 5)), rng.exponential(size=(2, 40, 5))
  weight /= weight.mean(axis=1, keepdims=True) * 40
  args = jnp.asarray(log_probs), jnp.asarray(weight)
  lower = combined(*args, "elbo", jnp.asarray([1.0, -1.0]), 1.5, 1.0)
  both = combined(*args, "sandwiched", jnp.asarray([1.0, -1.0]), 1.5, 1.0)
  np.testing.assert_allclose(both[0], lower[0])
  assert (both[1] > lower[1]).all()
  expected = np.log((weight[1] * np.exp(1.5 * log_probs[1])).sum(axis=0)) / 1.5
  np.testing.assert_allclose(both[1], expected, rtol=1e-5)
