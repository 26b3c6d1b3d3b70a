"""The cached decoder against uncached passes, and what batches, buckets, stops and seeds may not change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import autoregressive
from diffgr_jax.decoding.autoregressive import decode_autoregressive, decode_autoregressive_steps, pad_prompts
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind


def run(model, lengths, seeds=None, width=None, **how):
  tokens, valid = model.prompts(lengths, width=width)
  seeds = np.arange(len(lengths)) if seeds is None else seeds
  how = dict(config=model.config, pad_id=0, max_new_tokens=8) | how
  return decode_autoregressive(model.params(), tokens, valid, seeds, model.banned, **how)


@functools.partial(jax.jit, static_argnames=("config",))
def uncached(params, tokens, config):
  bound = bind(config, params)
  return bound.logits(bound(tokens, padded_layout(jnp.ones(tokens.shape, bool)), pattern="causal"))


def test_greedy_tokens_and_their_probabilities_are_those_of_uncached_passes(model):
  lengths = [6, 2, 4]
  rows = run(model, lengths)
  prompt, valid = model.prompts(lengths)
  for row, length in enumerate(lengths):
    text = np.zeros(14, np.int32)
    text[:length] = prompt[row][valid[row]]
    text[length : length + 8] = rows.tokens[row]
    logits = np.asarray(uncached(model.params(), jnp.asarray(text)[None], model.config)[0], np.float64)
    logits = logits[length - 1 : length + 7, :22]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_array_equal(rows.tokens[row], log_probs.argmax(-1))
    np.testing.assert_allclose(rows.log_prob[row], log_probs.max(-1), atol=2e-5)


def test_loop_and_steps_agree_and_rows_are_independent(model):
  how = dict(sampling=make_sampling(1.5, 10, 0.9), stops=[(3,), (5, 7)])
  whole = run(model, [6, 2, 4], **how)
  tokens, valid = model.prompts([6, 2, 4])
  *_, (last, _) = decode_autoregressive_steps(
    model.params(), tokens, valid, np.arange(3), model.banned, config=model.config, pad_id=0, max_new_tokens=8, **how
  )
  np.testing.assert_array_equal(whole.tokens, last.tokens)
  np.testing.assert_array_equal(whole.length, last.length)
  alone = decode_autoregressive(
    model.params(),
    tokens[1:2],
    valid[1:2],
    np.array([1]),
    model.banned,
    config=model.config,
    pad_id=0,
    max_new_tokens=8,
    **how,
  )
  np.testing.assert_array_equal(whole.tokens[1], alone.tokens[0])
  bucket, is_token = pad_prompts([row[v].tolist() for row, v in zip(tokens, valid, strict=True)], 0, width=9, rows=4)
  padded = decode_autoregressive(
    model.params(), bucket, is_token, np.arange(4), model.banned, config=model.config, pad_id=0, max_new_tokens=8,
    slots=11, **how,
  )  # fmt: skip
  np.testing.assert_array_equal(padded.tokens[:3, :8], whole.tokens)
  assert int(padded.length[3]) == 0
  same_prompt, seeds = [1, 1, 1], np.array([1, 9, 1])
  drawn = decode_autoregressive(
    model.params(), tokens[same_prompt], valid[same_prompt], seeds, model.banned, config=model.config, pad_id=0,
    max_new_tokens=8, **how,
  ).tokens  # fmt: skip
  np.testing.assert_array_equal(drawn[0], whole.tokens[1])
  np.testing.assert_array_equal(drawn[2], whole.tokens[1])
  assert not (drawn[0] == drawn[1]).all()


def test_stops_end_their_row_and_then_the_decoding(model):
  free = np.asarray(run(model, [6, 2]).tokens)
  one, pair = (int(free[0, 2]),), tuple(int(t) for t in free[1, 1:3])
  rows = run(model, [6, 2], stops=[one, pair])
  for row in range(2):
    ends = [i + 1 for i in range(8) if free[row, i] == one[0] or (i and (free[row, i - 1], free[row, i]) == pair)]
    end = min(ends, default=8)
    assert int(rows.length[row]) == end
    np.testing.assert_array_equal(rows.tokens[row], np.where(np.arange(8) < end, free[row], 0))
  assert int(rows.step) == int(rows.length.max()) < 8


def test_inside_a_bucket_nothing_is_compiled_anew(model):
  counts = []
  for lengths, budget, heat in (([6, 2], 3, 0.0), ([1, 5], 8, 1.0)):
    run(model, lengths, width=6, max_new_tokens=budget, slots=8, sampling=make_sampling(heat, 3, 0.5))
    counts.append(autoregressive._decode_loop._cache_size())
  assert counts[0] == counts[1]


def test_what_does_not_fit_is_named(model):
  with pytest.raises(ValueError, match=r"max_new_tokens is 9; it must be in 1..8"):
    run(model, [3], max_new_tokens=9, slots=8)
  with pytest.raises(ValueError, match="2 prompts of up to 3 tokens do not fit a bucket of 1 rows of 3"):
    pad_prompts([[1, 2, 3], [1]], 0, rows=1)
  tokens, valid = model.prompts([2, 3])
  with pytest.raises(ValueError, match="left-padded"):
    decode_autoregressive(
      model.params(),
      tokens,
      valid[:, ::-1],
      np.arange(2),
      model.banned,
      config=model.config,
      pad_id=0,
      max_new_tokens=2,
    )
