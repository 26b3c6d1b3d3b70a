import numpy as np

from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.policies import Confidence
from diffgr_jax.decoding.trace import trace_decode


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
