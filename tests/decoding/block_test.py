"""The block decoder against an uncached one written apart, against two-stream training, and against autoregression."""

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import block
from diffgr_jax.decoding.autoregressive import decode_autoregressive
from diffgr_jax.decoding.block import decode_blocks, decode_blocks_steps
from diffgr_jax.decoding.block_state import BlockOptions, answers, prepare
from diffgr_jax.decoding.policies import (
  POLICIES,
  Confidence,
  Dynamic,
  Entropy,
  EntropyBounded,
  Factor,
  Margin,
  Prefix,
  Random,
  Sequential,
  Threshold,
)
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.models import inference
from diffgr_jax.models.attention import padded_layout, two_stream_layout
from diffgr_jax.models.cache import init_cache
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import bind


def configured(model, alignment):
  return dataclasses.replace(model.config, alignment=alignment)


def decode(model, lengths, options, alignment="same_position", seeds=None, **how):
  tokens, valid = model.prompts(lengths)
  seeds = np.arange(len(lengths)) if seeds is None else seeds
  return decode_blocks(
    model.params(), tokens, valid, seeds, model.banned, config=configured(model, alignment), options=options, **how
  )


def row_of(state, row):
  """Canvas, step map and confidence of a row without its padding."""
  first = int(state.first[row])
  return [np.asarray(x)[row, first:] for x in (state.canvas, state.step_map, state.confidence)]


def two_stream_logits(model, alignment, clean, noisy, size):
  """What training computes for the x_t half; the first position of a shifted block reads the clean stream."""
  config, length = configured(model, alignment), clean.shape[1]
  layout = two_stream_layout(padded_layout(jnp.ones(clean.shape, bool)))
  bound = bind(config, model.params())
  both = jnp.concatenate([noisy, clean], axis=1)
  logits = bound.logits(bound(both, layout, pattern="two_stream", block_size=size))
  if alignment == "same_position":
    return logits[:, :length]
  index = np.arange(length)
  before = np.where(index % size == 0, length + index - 1, index - 1)
  return logits[:, before]


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_training_logits_are_decoding_logits(model, alignment):
  size, config = 4, configured(model, alignment)
  options = BlockOptions(size, Confidence(), model.mask)
  tokens, valid = model.prompts([10, 9, 8])
  clean, hidden = np.zeros((3, 12), np.int32), np.zeros((3, 12), bool)
  for row, prompt, is_token, masks in zip(clean, tokens, valid, hidden, strict=True):
    row[: is_token.sum()], masks[is_token.sum() :] = prompt[is_token], True
  noisy = np.where(hidden, model.mask, clean)
  expected = two_stream_logits(model, alignment, jnp.asarray(clean), jnp.asarray(noisy), size)[:, 8:]
  state, setting, context = prepare(
    tokens, valid, np.arange(3), model.banned, config, options, 2, None, None, (), None, None
  )
  static = dict(config=config, options=options, context=context)
  cache = init_cache(config, *state.canvas.shape)
  params = decoding_params(config, model.params())
  opened = block._open_step(params, state, cache, setting, first=True, **static)
  np.testing.assert_allclose(inference.logits(config, params, opened[2]), expected, atol=3e-5)
  again, _ = block._denoise_step(params, opened[0], opened[1], **static)
  np.testing.assert_allclose(inference.logits(config, params, again), expected, atol=3e-5)


@functools.partial(jax.jit, static_argnames=("config", "size"))
def uncached(params, tokens, config, size):
  bound, valid = bind(config, params), jnp.ones(tokens.shape, bool)
  return bound.logits(bound(tokens, padded_layout(valid), pattern="block_causal", block_size=size))


def reference(model, alignment, prompt, size, max_new_tokens, steps):
  """Uncached, one row, in Python: whole passes over everything up to the current block; most confident first."""
  length = len(prompt) + max_new_tokens
  blocks, params = -(-length // size), model.params()
  canvas = np.full(20 // size * size, model.mask)
  canvas[: len(prompt)] = prompt
  for b in range(len(prompt) // size, blocks):
    own = np.arange(b * size, (b + 1) * size)
    step = 0
    while (left := np.flatnonzero((canvas[own] == model.mask) & (own < length))).size:
      seen = np.where(np.arange(len(canvas)) < own[-1] + 1, canvas, 0)
      logits = np.asarray(uncached(params, jnp.asarray(seen)[None], model.config, size)[0], np.float64)
      logits[:, 22:] = -np.inf
      probs = np.exp(logits - logits.max(-1, keepdims=True))
      probs /= probs.sum(-1, keepdims=True)
      read = own if alignment == "same_position" else own - 1
      best = sorted(left, key=lambda i: -probs[read[i]].max())[: -(-len(left) // (steps - step))]
      for i in best:
        canvas[own[i]] = probs[read[i]].argmax()
      step += 1
  return canvas


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("size, steps", [(4, 2)])
def test_agrees_with_an_uncached_decoder(model, alignment, size, steps):
  lengths = [9, 2, 4]
  options = BlockOptions(size, Confidence(), model.mask)
  state = decode(model, lengths, options, alignment, max_new_tokens=7, steps=steps)
  tokens, valid = model.prompts(lengths)
  for row, length in enumerate(lengths):
    expected = reference(model, alignment, tokens[row][valid[row]], size, 7, steps)
    ours = row_of(state, row)[0]
    np.testing.assert_array_equal(ours[: length + 7], expected[: length + 7])
    assert (ours[length + 7 :] == model.mask).all()  # what was not asked for is not decoded
  out, count = answers(state, 7, mask_id=model.mask, pad_id=0)
  np.testing.assert_array_equal(count, [7, 7, 7])
  np.testing.assert_array_equal(out[1], row_of(state, 1)[0][2:9])


def test_blocks_of_one_shifted_are_autoregression(model):
  lengths = [5, 1, 3]
  tokens, valid = model.prompts(lengths)
  state = decode(model, lengths, BlockOptions(1, Confidence(), model.mask), "shifted", max_new_tokens=6)
  rows = decode_autoregressive(
    model.params(), tokens, valid, np.zeros(3, np.int32), model.banned, config=model.config, max_new_tokens=6, pad_id=0
  )
  np.testing.assert_array_equal(answers(state, 6, mask_id=model.mask, pad_id=0)[0], rows.tokens)
  assert int(state.forwards.max()) == 6


@pytest.mark.parametrize(
  "alignment, shifted_first, window",
  [
    ("same_position", "clean", "exact"),
    ("same_position", "clean", "sub_block"),
    ("shifted", "clean", "exact"),
    ("shifted", "noisy", "exact"),
    ("shifted", "noisy", "sub_block"),
  ],
)
def test_loop_and_steps_agree_and_rows_are_independent(model, alignment, shifted_first, window):
  """Blocks of 8, which the loop unembeds in quarters and the twin does not."""
  options = BlockOptions(8, Threshold(0.3), model.mask, sub_block=4, shifted_first=shifted_first, window=window)
  how = dict(max_new_tokens=9, sampling=make_sampling(1.2, 8, 0.95), context=8, blocks=4)
  lengths = [9, 2, 4]
  whole = decode(model, lengths, options, alignment, **how)
  tokens, valid = model.prompts(lengths)
  config = configured(model, alignment)
  *_, (last, _) = decode_blocks_steps(
    model.params(), tokens, valid, np.arange(3), model.banned, config=config, options=options, **how
  )
  for row in range(3):
    for ours, twin in zip(row_of(whole, row)[:2], row_of(last, row)[:2], strict=True):
      np.testing.assert_array_equal(ours, twin)
  np.testing.assert_array_equal(whole.forwards, last.forwards)
  alone = decode_blocks(
    model.params(), tokens[1:2, -2:], valid[1:2, -2:], np.array([1]), model.banned, config=config, options=options,
    max_new_tokens=9, sampling=how["sampling"],
  )  # fmt: skip
  width = len(row_of(alone, 0)[0])
  for company, lonely in zip(row_of(whole, 1)[:2], row_of(alone, 0)[:2], strict=True):
    np.testing.assert_array_equal(company[:width], lonely)
  assert int(alone.forwards[0]) == int(whole.forwards[1])


def seen_probabilities(model, row, state, size):
  """Uncached: what the model gives every token of the current block of a row, in float64."""
  tokens, begin = row_of(state, row)[0], 8 - int(state.first[row]) + int(state.block) * size
  logits = np.asarray(
    uncached(model.params(), jnp.asarray(tokens[: begin + size])[None], model.config, size), np.float64
  )
  logits = logits[0, begin:, :22]
  probs = np.exp(logits - logits.max(-1, keepdims=True))
  return probs / probs.sum(-1, keepdims=True), np.arange(begin, begin + size)


@pytest.mark.parametrize("remask_by", ["commit", "current"])
def test_remasking_reopens_the_most_doubtful_and_ends_within_the_steps(model, remask_by):
  options = BlockOptions(4, Random(), model.mask, remask=2, remask_by=remask_by)
  how = dict(max_new_tokens=11, steps=3, context=8, blocks=4)
  lengths = [9, 2, 4]
  whole = decode(model, lengths, options, **how)
  tokens, valid = model.prompts(lengths)
  steps = decode_blocks_steps(
    model.params(), tokens, valid, np.arange(3), model.banned, config=model.config, options=options, **how
  )
  states = [state for state, _ in steps]
  reopenings = 0
  for before, after in itertools.pairwise(states):
    for row in range(3):
      if int(before.block) != int(after.block) or int(before.block) < 0:
        continue
      (old, step_map, committed), new = row_of(before, row), row_of(after, row)[0]
      back = np.flatnonzero((old != model.mask) & (new == model.mask))
      probs, own = seen_probabilities(model, row, before, 4)
      now = committed[own]
      may = (step_map[own] >= 0) & (np.asarray(before.reopened)[row, int(before.first[row]) :][own] == 0)
      if remask_by == "current":
        now = probs[np.arange(4), np.minimum(old[own], 21)]
        may &= now < committed[own]
      order = own[np.argsort(np.where(may, now, np.inf), kind="stable")]
      assert set(back) == set(order[: len(back)])
      assert len(back) <= may.sum()
      reopenings += len(back)
  assert reopenings > 3
  for ours, twin in zip(jax.tree.leaves(row_of(whole, 0)), jax.tree.leaves(row_of(states[-1], 0)), strict=True):
    np.testing.assert_allclose(ours, twin, rtol=1e-6)
  _, counts = answers(whole, 11, mask_id=model.mask, pad_id=0)
  np.testing.assert_array_equal(counts, [11, 11, 11])
  assert int(whole.forwards.max()) <= 3 * 4
  assert int(whole.reopened.max()) == 1
  alone = decode_blocks(
    model.params(), tokens[1:2], valid[1:2], np.array([1]), model.banned, config=model.config, options=options, **how
  )
  for company, lonely in zip(row_of(whole, 1)[:2], row_of(alone, 0)[:2], strict=True):
    np.testing.assert_array_equal(company, lonely)


def test_another_prompt_length_budget_or_sampling_compiles_nothing_anew(model):
  options = BlockOptions(4, Random(), model.mask)
  counts = []
  for lengths, budget, steps, heat in (([7, 6], 5, 2, 0.0), ([1, 8], 7, 3, 1.0), ([3, 4], 2, 1, 0.5)):
    decode(
      model, lengths, options, max_new_tokens=budget, steps=steps, sampling=make_sampling(heat), context=8, blocks=3
    )
    counts.append(block._decode_loop._cache_size())
  assert counts[0] == counts[1] == counts[2]


def test_tau_one_commits_one_position_a_pass_even_where_softmax_saturates(model):
  params = model.params()
  params["final_norm"]["scale"] = params["final_norm"]["scale"] * 1e4
  tokens, valid = model.prompts([4, 8])
  state = decode_blocks(
    params, tokens, valid, np.arange(2), model.banned, config=model.config, max_new_tokens=8,
    options=BlockOptions(4, Threshold(1.0), model.mask),
  )  # fmt: skip
  assert (np.asarray(state.confidence)[0, int(state.start[0]) :] == 1.0).all()
  np.testing.assert_array_equal(state.forwards, [8, 8])


EVERY_POLICY = {
  "random": Random(),
  "confidence": Confidence(),
  "margin": Margin(),
  "entropy": Entropy(),
  "sequential": Sequential(),
  "threshold": Threshold(0.15),
  "dynamic": Dynamic(0.15),
  "factor": Factor(2.5),
  "entropy_bounded": EntropyBounded(3.0),
  "prefix": Prefix(0.15),
}
AS_MANY_AS_ASKED = ("random", "confidence", "margin", "entropy", "sequential")  # the others commit as they judge


def test_no_policy_is_left_out():
  assert set(EVERY_POLICY) == set(POLICIES)


@pytest.fixture(scope="module")
def shallow(model):
  """One layer, so that every policy compiles soon; decoded in blocks of 4 with room for 8 + 12 slots."""
  config = dataclasses.replace(model.config, n_layers=1)
  return SimpleNamespace(config=config, params=model.params(config=config), shape=dict(context=8, blocks=3))


@pytest.mark.parametrize("name", EVERY_POLICY)
def test_every_policy_loops_as_it_steps_and_row_by_row(model, shallow, name):
  """Blocks of 8, which the loop unembeds in quarters and the twin does not."""
  size = 8
  options, how = BlockOptions(size, EVERY_POLICY[name], model.mask), dict(max_new_tokens=7, steps=size, **shallow.shape)
  tokens, valid = model.prompts([9, 2, 4])
  order = [1, 1, 2]  # other neighbours, other padding: a longer context, and prompts padded further
  wider = [np.pad(x[order], ((0, 0), (3, 0))) for x in (tokens, valid)]
  texts = []
  for heat in (0.0, 1.0):
    static = dict(config=shallow.config, options=options, sampling=make_sampling(heat), **how)
    whole = decode_blocks(shallow.params, tokens, valid, np.arange(3), model.banned, **static)
    inputs = (shallow.params, *wider, np.array(order), model.banned)
    *_, (moved, _) = decode_blocks_steps(*inputs, **static | {"context": 8 + size})
    for place, row in enumerate(order):
      for ours, twin in zip(row_of(whole, row)[:2], row_of(moved, place)[:2], strict=True):
        np.testing.assert_array_equal(ours, twin)
      assert int(whole.forwards[row]) == int(moved.forwards[place])
    texts.append(np.asarray(answers(whole, 7, mask_id=model.mask, pad_id=0)[0]))
    if name in AS_MANY_AS_ASKED:
      np.testing.assert_array_equal(whole.forwards, [7, 7, 7])  # one a token
    elif not heat:
      assert int(whole.forwards.min()) < 7  # some passes commit several
  assert (texts[0] != texts[1]).any()  # the temperature is read


@pytest.mark.parametrize("name", ["confidence", "random"])
@pytest.mark.parametrize("new_tokens", [1, 5, 6])
def test_positions_behind_the_budget_cost_no_pass(model, shallow, name, new_tokens):
  """One position a pass; behind the last token asked for, the last blocks have open positions that nobody wants."""
  options, lengths = BlockOptions(4, EVERY_POLICY[name], model.mask), [9, 2, 4]
  how = dict(config=shallow.config, options=options, max_new_tokens=new_tokens, steps=4, **shallow.shape)
  inputs = (shallow.params, *model.prompts(lengths), np.arange(3), model.banned)
  state = decode_blocks(*inputs, **how)
  np.testing.assert_array_equal(state.forwards, [new_tokens] * 3)
  np.testing.assert_array_equal(answers(state, new_tokens, mask_id=model.mask, pad_id=0)[1], [new_tokens] * 3)
  for row, length in enumerate(lengths):
    canvas, step_map, _ = row_of(state, row)
    np.testing.assert_array_equal(np.sort(step_map[step_map >= 0]), np.arange(new_tokens))  # every pass commits one
    assert (canvas[length + new_tokens :] == model.mask).all()
  passes = sum(stats is not None for _, stats in decode_blocks_steps(*inputs, **how | {"context": 12}))
  blocks = [[(n % 4 + i) // 4 for i in range(new_tokens)] for n in lengths]  # of each token, from its row's first one
  slowest = [max(row.count(block) for row in blocks) for block in range(3)]
  assert passes == sum(slowest)  # rows wait for one another, and for nothing else


def test_a_stop_freezes_its_row_and_ends_the_answer(model):
  options = BlockOptions(4, Confidence(), model.mask)
  free = decode(model, [6, 3], options, max_new_tokens=12)
  text = np.asarray(answers(free, 12, mask_id=model.mask, pad_id=0)[0])
  stop = tuple(int(t) for t in text[0, 2:4])
  stopped = decode(model, [6, 3], options, max_new_tokens=12, stops=[stop])
  out, count = answers(stopped, 12, [stop], mask_id=model.mask, pad_id=0)
  end = next(i for i in range(1, 12) if tuple(text[0, i - 1 : i + 1]) == stop) + 1
  assert int(count[0]) == end
  np.testing.assert_array_equal(out[0], np.where(np.arange(12) < end, text[0], 0))
  assert int(stopped.forwards[0]) < int(free.forwards[0])


def test_wrong_options_are_named(model):
  for change, message in (
    (dict(block_size=0), "block_size is 0"),
    (dict(sub_block=3), "must divide block_size 4"),
    (dict(window="sub_block"), "needs BlockOptions.sub_block"),
    (dict(shifted_first="dirty"), "shifted_first is one of clean, noisy"),
    (dict(remask=-1), "BlockOptions.remask is -1"),
    (dict(remask=1, shifted_first="noisy"), "needs window 'exact'"),
  ):
    with pytest.raises(ValueError, match=message):
      BlockOptions(**{"block_size": 4, "policy": Confidence(), "mask_id": 23, **change})
  options = BlockOptions(4, Confidence(), model.mask, sub_block=2, window="sub_block")
  with pytest.raises(ValueError, match=r"needs BlockOptions\.shifted_first 'noisy'"):
    decode(model, [4], options, "shifted", max_new_tokens=4)
  options = BlockOptions(4, Confidence(), model.mask)
  with pytest.raises(ValueError, match="at least 4 slots, and 2 blocks"):
    decode(model, [5], options, max_new_tokens=4, context=0)
  with pytest.raises(ValueError, match="max_new_tokens is 0"):
    decode(model, [5], options, max_new_tokens=0)
