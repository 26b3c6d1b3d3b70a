import dataclasses

import numpy as np

from diffgr_jax.decoding.autoregressive import decode_autoregressive_steps
from diffgr_jax.decoding.block import decode_blocks_steps
from diffgr_jax.decoding.block_state import BlockOptions, answers
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.canvas_cache import CanvasCache, decode_canvas_cached_steps
from diffgr_jax.decoding.policies import Confidence, Threshold
from diffgr_jax.decoding.trace import record_autoregressive, record_blocks, record_canvas, trace_decode
from diffgr_jax.models.denoiser import CanvasDenoiser


def traced(toy, constrained):
  prompt, canvas, row_seeds, banned = toy.inputs(0, 4)
  codes = toy.codes(0, 40)[0] if constrained else None
  if constrained:
    canvas[1::2, 2] = codes[3, 2]
  inputs = (toy.params(0), prompt, canvas, row_seeds, banned)
  spec = dict(
    denoise=toy.denoise,
    options=DecodeOptions(Confidence(), toy.mask, remask=2, finish_when_unique=False),
    steps=4,
    codes=codes,
  )
  return trace_decode(*inputs, **spec), decode_canvas(*inputs, **spec), inputs, codes


def test_trace_agrees_with_the_decoder_and_with_itself(toy):
  trace, state, (_, _, canvas, _, _), _ = traced(toy, constrained=False)
  assert (trace.canvas[0] == canvas).all()
  assert (trace.canvas[-1] == np.asarray(state.canvas)).all()
  assert (trace.step_map == np.asarray(state.step_map)).all()
  assert trace.alive is None
  assert trace.canvas.shape[0] == trace.entropy.shape[0] + 1 == int(state.step) + 1
  assert trace.reopened.any()
  last_commit = np.where(trace.committed.any(0), trace.committed.shape[0] - 1 - trace.committed[::-1].argmax(0), -1)
  assert (last_commit == trace.step_map).all()
  assert ((trace.commit_confidence == 0) == trace.masked).all()
  assert trace.steps_of(0) == trace.step_map[0].max() + 1


def test_statistics_are_those_of_the_model(toy):
  trace, _, (params, prompt, _, _, banned), _ = traced(toy, constrained=False)
  producible = ~banned & (np.arange(toy.vocab) != toy.mask)
  for t in range(len(trace.entropy)):
    logits = np.asarray(toy.denoise(params, prompt, trace.canvas[t]), np.float64)[..., producible]
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(trace.confidence[t], probs.max(-1), rtol=1e-4)
    np.testing.assert_allclose(trace.entropy[t], -(probs * np.log(probs)).sum(-1), rtol=1e-4)


def test_alive_counts_the_documents_that_agree(toy):
  trace, _, _, codes = traced(toy, constrained=True)
  agree = ((trace.canvas[:, :, None] == codes[None, None]) | trace.masked[:, :, None]).all(-1)
  assert (trace.alive == agree.sum(-1)).all()
  assert (trace.alive[-1] >= 1).all()


def test_a_finished_canvas_gives_an_empty_trace(toy):
  prompt, canvas, row_seeds, banned = toy.inputs(0, 2)
  canvas[:] = 4
  trace = trace_decode(
    toy.params(0),
    prompt,
    canvas,
    row_seeds,
    banned,
    denoise=toy.denoise,
    options=DecodeOptions(Confidence(), toy.mask),
    steps=3,
  )
  assert trace.canvas.shape == (1, 2, toy.length)
  assert trace.entropy.shape == (0, 2, toy.length)
  assert trace.steps_of(0) == 0


def test_a_block_trace_agrees_with_the_decoder_and_with_its_own_probabilities(model):
  tokens, valid = model.prompts([9, 2, 4])
  options = BlockOptions(4, Threshold(0.3), model.mask)
  inputs = (model.params(), tokens, valid, np.arange(3), model.banned)
  how = dict(config=model.config, options=options, max_new_tokens=6, context=8, blocks=2)
  states = list(decode_blocks_steps(*inputs, **how))
  trace, last = record_blocks(iter(states), options, 6), states[-1][0]
  text, counts = answers(last, 6, mask_id=model.mask, pad_id=0)
  np.testing.assert_array_equal(counts, [6, 6, 6])
  np.testing.assert_array_equal(trace.canvas[-1], text)
  assert (trace.canvas[0] == model.mask).all()
  for row in range(3):
    assert trace.steps_of(row) == int(last.forwards[row])
    begin = int(last.start[row])
    np.testing.assert_array_equal(trace.step_map[row], np.asarray(last.step_map)[row, begin : begin + 6])
    for number, step in enumerate(trace.steps_taken(row)):
      new = trace.committed[step, row]
      assert new.any()
      assert (trace.step_map[row][new] == number).all()
      # greedy: the committed token is the most likely one
      np.testing.assert_allclose(trace.confidence[step, row][new], trace.commit_confidence[-1, row][new], rtol=1e-5)
      assert (trace.entropy[step, row][new] > 0).all()
      first, prompt = int(last.first[row]), int(valid[row].sum())
      blocks = (prompt + np.arange(6)) // 4
      asked = np.isfinite(trace.entropy[step, row])
      assert len(set(blocks[asked])) == 1  # one block a pass
      assert first + prompt == begin
  assert np.isnan(trace.entropy).any()


def test_an_autoregressive_trace_is_one_token_a_step(model):
  tokens, valid = model.prompts([6, 2])
  inputs = (model.params(), tokens, valid, np.arange(2), model.banned)
  how = dict(config=model.config, max_new_tokens=5, pad_id=0, slots=8)
  free = list(decode_autoregressive_steps(*inputs, **how))
  stop = (int(free[-1][0].tokens[0, 1]),)
  steps = list(decode_autoregressive_steps(*inputs, stops=[stop], **how))
  trace, rows = record_autoregressive(iter(steps), model.banned), steps[-1][0]
  assert trace.canvas.shape[0] == int(rows.step) + 1
  for row in range(2):
    length = int(rows.length[row])
    np.testing.assert_array_equal(trace.canvas[-1, row, :length], rows.tokens[row, :length])
    assert (trace.canvas[-1, row, length:] == -1).all()
    np.testing.assert_array_equal(trace.step_map[row, :length], np.arange(length))
    assert trace.steps_of(row) == length
    for t in range(length):
      logits = np.asarray(steps[t][1][row], np.float64)[:22]
      probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
      np.testing.assert_allclose(trace.confidence[t, row, t], probs.max(), rtol=1e-4)
      np.testing.assert_allclose(trace.entropy[t, row, t], -(probs * np.log(probs)).sum(), rtol=1e-3, atol=1e-5)
      assert np.isnan(np.delete(trace.entropy[t, row], t)).all()
  assert int(rows.length[0]) <= 2


def test_a_cached_canvas_is_recorded_by_its_own_twin(model):
  config = dataclasses.replace(model.config, pattern="bidirectional")
  tokens, _ = model.prompts([4, 2])
  canvas = np.full((2, 4), model.mask, np.int32)
  options = DecodeOptions(Confidence(), model.mask, block_length=2)
  steps = decode_canvas_cached_steps(
    model.params(), tokens, canvas, np.arange(2), model.banned, denoiser=CanvasDenoiser(config, 0), options=options,
    cache=CanvasCache("dual"), steps=4,
  )  # fmt: skip
  trace = record_canvas(steps, model.mask)
  assert [trace.steps_of(row) for row in range(2)] == [4, 4]
  np.testing.assert_array_equal(np.isfinite(trace.entropy).sum(axis=(1, 2)), [4, 4, 4, 4])  # a block of each row
