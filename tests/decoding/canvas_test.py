import inspect
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.canvas import (
  DecodeOptions,
  _decode_loop,
  decode_canvas,
  decode_canvas_steps,
  denoise_step,
  forwards_per_row,
)
from diffgr_jax.decoding.policies import Confidence, Entropy, EntropyBounded, Margin, Random, Threshold
from diffgr_jax.decoding.schedules import EarlyRemainder

POLICIES = [Random(), Confidence(), Margin(), Entropy(), Threshold(0.4)]


def settings(toy, policy, *, constrained=False, remask=0, seed=0, rows=4, **options):
  """Arguments of the decoders: positional ones and keywords."""
  prompt, canvas, row_seeds, banned = toy.inputs(seed, rows)
  codes = toy.codes(seed, 40)[0] if constrained else None
  if constrained:
    canvas[1::2, 2] = codes[3, 2]  # a given token that some document has
  spec = DecodeOptions(policy, toy.mask, remask=remask, finish_when_unique=False, **options)
  return (toy.params(seed), prompt, canvas, row_seeds, banned), dict(denoise=toy.denoise, options=spec, codes=codes)


def same(left, right):
  assert (left.canvas == right.canvas).all()
  assert (left.step_map == right.step_map).all()
  assert (left.reopened == right.reopened).all()
  np.testing.assert_allclose(left.confidence, right.confidence, rtol=1e-5)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_loop_and_steps_agree(toy, policy, constrained):
  for remask in (0, 2) if policy == Confidence() else (2,):
    inputs, spec = settings(toy, policy, constrained=constrained, remask=remask)
    for steps, temperature in ((4, 0.0), (4, 1.3), (6, 0.7)):
      whole = decode_canvas(*inputs, steps=steps, temperature=temperature, **spec)
      *_, (last, _) = decode_canvas_steps(*inputs, steps=steps, temperature=temperature, **spec)
      same(whole, last)
      assert not (whole.canvas == toy.mask).any()
      assert int(whole.step) == int(last.step) <= steps
      given = inputs[2] != toy.mask
      assert (np.asarray(whole.canvas)[given] == inputs[2][given]).all()
      assert (np.asarray(whole.step_map == -1) == given).all()


@pytest.mark.parametrize("policy, constrained", [(Random(), False), (Threshold(0.4), False), (Random(), True)])
def test_a_row_decodes_alone_as_in_company(toy, policy, constrained):
  inputs, spec = settings(toy, policy, constrained=constrained, remask=2)
  params, *arrays, banned = inputs
  together = decode_canvas(*inputs, steps=4, temperature=1.0, **spec)
  for rows in ([3], [3, 1, 2, 0], [2, 2, 3, 0, 1, 3, 1]):
    picked = decode_canvas(params, *(a[rows] for a in arrays), banned, steps=4, temperature=1.0, **spec)
    for name in ("canvas", "step_map", "reopened"):
      assert (getattr(picked, name) == getattr(together, name)[jnp.array(rows)]).all()


def test_one_step_commits_all_and_as_many_steps_as_positions_commit_one_each(toy):
  for policy in POLICIES[:4]:
    inputs, spec = settings(toy, policy)
    inputs[2][:] = toy.mask
    assert (decode_canvas(*inputs, steps=1, **spec).step_map == 0).all()
    slow = decode_canvas(*inputs, steps=toy.length, **spec)
    assert (jnp.sort(slow.step_map, axis=-1) == jnp.arange(toy.length)[None]).all()
    assert (forwards_per_row(slow) == toy.length).all()


def test_tau_one_commits_one_position_a_step_even_where_softmax_saturates(toy):
  inputs, spec = settings(toy, Threshold(1.0))
  state = decode_canvas(toy.params(0, scale=1e4), *inputs[1:], steps=32, **spec)
  assert (state.confidence == 1.0).all()
  free = (inputs[2] == toy.mask).sum(-1)
  assert (forwards_per_row(state) == free).all()
  assert int(state.step) == free.max()


def test_a_threshold_that_runs_out_of_steps_commits_the_rest_at_the_last(toy):
  inputs, spec = settings(toy, Threshold(1.0))
  state = decode_canvas(*inputs, steps=3, **spec)
  assert int(state.step) == 3
  assert not (state.canvas == toy.mask).any()


def test_banned_tokens_and_mask_are_never_produced(toy):
  for temperature in (0.0, 50.0):
    inputs, spec = settings(toy, Confidence(), rows=4000)
    params, prompt, canvas, seeds, banned = inputs
    lax_ban = banned.copy()
    lax_ban[toy.mask] = False  # the decoder bans MASK in any case
    state = decode_canvas(params, prompt, canvas, seeds, lax_ban, steps=1, temperature=temperature, **spec)
    seen = np.unique(np.asarray(state.canvas))
    assert not banned[seen].any()
  assert len(seen) == (~banned).sum()  # at a high temperature everything else is


def test_minus_infinity_logits_do_no_harm(toy):
  inputs, spec = settings(toy, Confidence(), rows=2)
  spec["denoise"] = lambda params, prompt, canvas: jnp.full((*canvas.shape, toy.vocab), -jnp.inf)
  state = decode_canvas(*inputs, steps=2, **spec)
  assert not inputs[4][np.asarray(state.canvas)[inputs[2] == toy.mask]].any()


@pytest.mark.parametrize("policy", [Random(), Confidence()])
@pytest.mark.parametrize("constrained", [False, True])
def test_remasking_keeps_the_schedule_and_its_bound(toy, policy, constrained):
  reopenings = 0
  for seed in range(4):
    inputs, spec = settings(toy, policy, seed=seed, constrained=constrained, remask=2)
    for steps in (1, 2, 4, 6, 9):
      states = [state for state, _ in decode_canvas_steps(*inputs, steps=steps, **spec)]
      left = (inputs[2] == toy.mask).sum(-1)
      for done, state in enumerate(states):  # as many MASKs after each step as without remasking, none at the end
        assert (np.asarray(state.canvas == toy.mask).sum(-1) == left).all()
        left = left - -(-left // max(steps - done, 1))
      assert not (states[-1].canvas == toy.mask).any()
      assert states[-1].reopened.max() <= 1
      assert not np.asarray(states[-1].reopened)[inputs[2] != toy.mask].any()
      reopenings += int(states[-1].reopened.sum())
  assert reopenings > 10


def test_a_position_may_be_reopened_more_than_once(toy):
  inputs, spec = settings(toy, Random(), remask=2, max_reopen=2)
  state = decode_canvas(*inputs, steps=6, **spec)
  assert state.reopened.max() == 2
  assert not (state.canvas == toy.mask).any()


def test_remasking_reopens_the_least_confident_of_the_earlier_steps(toy):
  inputs, spec = settings(toy, Confidence(), remask=2, seed=2)
  states = [state for state, _ in decode_canvas_steps(*inputs, steps=5, **spec)]
  reopenings = 0
  for before, after in itertools.pairwise(states):
    back = np.asarray((before.canvas != toy.mask) & (after.canvas == toy.mask))
    earlier = np.asarray((before.step_map >= 0) & (before.reopened == 0))
    for b in range(len(back)):
      count = back[b].sum()
      order = np.argsort(np.where(earlier[b], before.confidence[b], np.inf), kind="stable")
      assert set(np.flatnonzero(back[b])) == set(order[:count])
      reopenings += count
    assert (after.confidence[back] == 0).all()
    assert (after.step_map[back] == -1).all()
  assert reopenings > 3


def test_remasking_by_current_confidence_reopens_what_has_fallen_most(toy):
  reopenings, spared = 0, 0
  for seed in range(3):
    inputs, spec = settings(toy, Random(), remask=2, remask_by="current", seed=seed)
    params, prompt, _, _, banned = inputs
    states = [state for state, _ in decode_canvas_steps(*inputs, steps=5, **spec)]
    same(decode_canvas(*inputs, steps=5, **spec), states[-1])
    assert len(states) == 6
    assert not (states[-1].canvas == toy.mask).any()
    for before, after in itertools.pairwise(states):
      logits = np.asarray(toy.denoise(params, prompt, before.canvas), np.float64)
      logits[..., banned | (np.arange(toy.vocab) == toy.mask)] = -np.inf
      probs = np.exp(logits - logits.max(-1, keepdims=True))
      probs /= probs.sum(-1, keepdims=True)
      now = np.take_along_axis(probs, np.asarray(before.canvas)[..., None], -1)[..., 0]
      may = np.asarray((before.step_map >= 0) & (before.reopened == 0)) & (now < np.asarray(before.confidence))
      back = np.asarray((before.canvas != toy.mask) & (after.canvas == toy.mask))
      for b in range(len(back)):
        order = np.argsort(np.where(may[b], now[b], np.inf), kind="stable")
        assert set(np.flatnonzero(back[b])) == set(order[: back[b].sum()])
        assert back[b].sum() <= may[b].sum()
        spared += int((np.asarray(before.step_map)[b] >= 0).sum() - may[b].sum())
      reopenings += int(back.sum())
  assert reopenings > 5 < spared


def test_threshold_with_remasking_ends(toy):
  inputs, spec = settings(toy, Threshold(0.4), remask=2)
  state = decode_canvas(toy.params(0, scale=0.2), *inputs[1:], steps=100, **spec)
  assert not (state.canvas == toy.mask).any()
  assert int(state.step) < 100
  assert state.reopened.max() > 0


def test_temperature_samples_the_models_distribution(toy):
  rows = 4000
  inputs, spec = settings(toy, Confidence(), rows=rows)
  params, prompt, canvas, _, banned = inputs
  prompt, canvas = np.repeat(prompt[:1], rows, 0), np.repeat(canvas[:1], rows, 0)
  state = decode_canvas(params, prompt, canvas, np.arange(rows), banned, steps=1, temperature=2.0, **spec)
  logits = np.asarray(toy.denoise(params, prompt[:1], canvas[:1])[0], np.float64)
  logits[:, banned] = -np.inf
  expected = np.exp(logits / 2 - logits.max(-1, keepdims=True) / 2)
  expected /= expected.sum(-1, keepdims=True)
  for place in range(toy.length):
    found = np.bincount(np.asarray(state.canvas[:, place]), minlength=toy.vocab) / rows
    assert np.abs(found - expected[place]).max() < 4 * np.sqrt(0.25 / rows)


def test_confidence_is_the_untempered_probability_of_the_committed_token(toy):
  inputs, spec = settings(toy, Confidence())
  state = decode_canvas(*inputs, steps=1, temperature=3.0, **spec)
  logits = np.asarray(toy.denoise(inputs[0], inputs[1], jnp.asarray(inputs[2])), np.float64)
  logits[..., inputs[4]] = -np.inf
  probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  expected = np.take_along_axis(probs, np.asarray(state.canvas)[..., None], -1)[..., 0]
  np.testing.assert_allclose(state.confidence, np.where(inputs[2] == toy.mask, expected, 1), rtol=1e-5)


def test_a_new_budget_or_temperature_compiles_nothing_anew(toy):
  for constrained in (False, True):
    inputs, spec = settings(toy, Confidence(), constrained=constrained, remask=2)
    counts = []
    for steps, temperature in ((3, 0.0), (1, 0.0), (5, 0.7)):
      decode_canvas(*inputs, steps=steps, temperature=temperature, **spec)
      list(decode_canvas_steps(*inputs, steps=steps, temperature=temperature, **spec))
      counts.append((_decode_loop._cache_size(), denoise_step._cache_size()))
    assert counts[0][0] > 0
    assert counts[0] == counts[1] == counts[2]


def test_a_finished_canvas_costs_nothing_and_stays(toy):
  inputs, spec = settings(toy, Confidence())
  inputs[2][:] = 4
  state = decode_canvas(*inputs, steps=3, **spec)
  assert int(state.step) == 0
  assert (state.canvas == 4).all()
  assert len(list(decode_canvas_steps(*inputs, steps=3, **spec))) == 1


def test_decodes_inside_a_users_jit(toy):
  inputs, spec = settings(toy, Confidence())
  inner = jax.jit(lambda *arrays, steps: decode_canvas(*arrays, steps=steps, **spec).canvas)
  assert (inner(*inputs, steps=4) == decode_canvas(*inputs, steps=4, **spec).canvas).all()


def test_wrong_arguments_say_what_would_be_right(toy):
  with pytest.raises(ValueError, match=r"DecodeOptions\.remask is -1; it must be 0"):
    DecodeOptions(Confidence(), toy.mask, remask=-1)
  with pytest.raises(ValueError, match=r"DecodeOptions\.max_reopen is 0; it must be 1"):
    DecodeOptions(Confidence(), toy.mask, max_reopen=0)
  with pytest.raises(ValueError, match=r"DecodeOptions\.remask_by is one of commit, current, not 'now'"):
    DecodeOptions(Confidence(), toy.mask, remask_by="now")
  inputs, spec = settings(toy, Confidence())
  with pytest.raises(ValueError, match="steps is 0; decoding needs at least 1"):
    decode_canvas(*inputs, steps=0, **spec)
  without_shape_check = inspect.unwrap(decode_canvas)
  with pytest.raises(ValueError, match="prompt has 4 rows, canvas 4 and row_seeds 2; they must be equal"):
    without_shape_check(*inputs[:3], inputs[3][:2], inputs[4], steps=2, **spec)
  with pytest.raises(ValueError, match="codes has DocIDs of length 3, canvas 6; they must be equal"):
    without_shape_check(*inputs, steps=2, **(spec | {"codes": np.zeros((2, 3), int)}))
  with pytest.raises(ValueError, match=r"DecodeOptions\.policy is 'confidence'; it must have the methods"):
    inspect.unwrap(DecodeOptions.__post_init__)(SimpleNamespace(policy="confidence"))
  with pytest.raises(ValueError, match=r"temperature is -0.5; it must be 0"):
    decode_canvas(*inputs, steps=2, temperature=-0.5, **spec)


def test_blocks_are_filled_left_to_right_with_an_equal_share_of_the_steps(toy):
  inputs, spec = settings(toy, Confidence(), schedule=EarlyRemainder(), block_length=3)
  inputs[2][:] = toy.mask
  inputs[2][1::2, 2] = 5  # the first block of odd rows has two masks
  states = [state for state, _ in decode_canvas_steps(*inputs, steps=4, **spec)]
  masks = np.stack([np.asarray(state.canvas == toy.mask).reshape(4, 2, 3).sum(-1) for state in states])
  np.testing.assert_array_equal(masks[:, 0], [[3, 3], [1, 3], [0, 3], [0, 1], [0, 0]])
  np.testing.assert_array_equal(masks[:, 1], [[2, 3], [1, 3], [0, 3], [0, 1], [0, 0]])
  whole = decode_canvas(*inputs, steps=4, **spec)
  same(whole, states[-1])
  alone = decode_canvas(inputs[0], *(a[1:2] for a in inputs[1:4]), inputs[4], steps=4, **spec)
  assert (alone.canvas[0] == whole.canvas[1]).all()


def test_remasking_stays_inside_the_block(toy):
  inputs, spec = settings(toy, Random(), remask=2, block_length=3)
  inputs[2][:] = toy.mask
  for state, _ in decode_canvas_steps(*inputs, steps=6, **spec):
    masked = np.asarray(state.canvas == toy.mask).reshape(4, 2, 3)
    assert (masked[:, 1].all(-1) | ~masked[:, 0].any(-1)).all()
  assert not masked.any()
  assert state.reopened.sum() > 0


def test_blocks_that_do_not_fit_are_named(toy):
  inputs, spec = settings(toy, Confidence(), block_length=3)
  with pytest.raises(ValueError, match="steps is 3; it must be a multiple of the 2 blocks"):
    decode_canvas(*inputs, steps=3, **spec)
  with pytest.raises(ValueError, match=r"block_length is -1"):
    DecodeOptions(Confidence(), toy.mask, block_length=-1)
  inputs, spec = settings(toy, EntropyBounded(1.0), constrained=True)
  with pytest.raises(ValueError, match="nor a policy that judges a row as a whole"):
    decode_canvas(*inputs, steps=3, **spec)
