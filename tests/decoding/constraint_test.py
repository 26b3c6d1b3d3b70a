"""The reference is a decoder in plain Python and float64 numpy, which enumerates the documents."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import constraint
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas, decode_canvas_steps, forwards_per_row
from diffgr_jax.decoding.constraint import used_rows
from diffgr_jax.decoding.policies import Confidence, Entropy, Margin, Random, Threshold


def urgency(policy, probs):
  falling = np.append(np.sort(list(probs.values()))[::-1], 0.0)
  if isinstance(policy, Entropy):
    return sum(p * np.log(p) for p in probs.values())
  return falling[0] - falling[1] if isinstance(policy, Margin) else falling[0]


def reference_decode(logits_of, canvas, codes, toy, policy, steps, remask, max_reopen, finish_when_unique):
  """Decodes one row greedily; returns its canvas, step map and commit confidences."""
  canvas, step_map = list(canvas), [-1] * len(canvas)
  sure, reopened = [0.0] * len(canvas), [0] * len(canvas)
  possible = lambda: [d for d in codes if all(c in (toy.mask, t) for c, t in zip(canvas, d, strict=True))]
  for step in range(steps):
    masked = [i for i, c in enumerate(canvas) if c == toy.mask]
    if not masked:
      break
    logits = logits_of(canvas)
    earlier = [i for i, s in enumerate(step_map) if s >= 0 and reopened[i] < max_reopen]
    quota, base, going, turn = -(-len(masked) // (steps - step)), 0, True, 0
    extra = lambda base, masked=masked, earlier=earlier: min(remask, len(earlier), len(masked) - base)
    while toy.mask in canvas:
      options = {}
      for i in (i for i, c in enumerate(canvas) if c == toy.mask):
        tokens = {d[i] for d in possible()}
        weights = {t: np.exp(logits[i][t] - max(logits[i][t] for t in tokens)) for t in tokens}
        options[i] = {t: w / sum(weights.values()) for t, w in weights.items()}
      place = max(options, key=lambda i: urgency(policy, options[i]))
      if isinstance(policy, Threshold):
        going = going and (turn == 0 or urgency(policy, options[place]) > policy.tau or step == steps - 1)
      else:
        going = going and turn < quota
      base += going
      if not (going or turn < base + extra(base)):
        break
      canvas[place] = max(options[place], key=options[place].get)
      sure[place], step_map[place], turn = options[place][canvas[place]], step, turn + 1
    back = extra(base)
    if finish_when_unique and len({tuple(d) for d in possible()}) == 1:
      back = 0
      for i, token in enumerate(possible()[0]):
        if canvas[i] == toy.mask:
          canvas[i], step_map[i], sure[i] = token, step, 1.0
    for i in sorted(earlier, key=lambda i: sure[i])[:back]:
      canvas[i], step_map[i], sure[i], reopened[i] = toy.mask, -1, 0.0, reopened[i] + 1
  return canvas, step_map, sure


@pytest.mark.parametrize(
  "policy, remask, finish",
  [
    (Confidence(), 0, True),
    (Confidence(), 2, False),
    (Margin(), 2, False),
    (Entropy(), 1, True),
    (Threshold(0.4), 2, False),
  ],
)
def test_decodes_as_a_plain_python_reference(toy, policy, remask, finish):
  options = DecodeOptions(policy, toy.mask, remask=remask, finish_when_unique=finish)
  for seed in range(4):
    params = toy.params(seed)
    prompt, canvas, row_seeds, _ = toy.inputs(seed, 4)
    codes, _ = toy.codes(seed, 40)
    canvas[1::2, 2] = codes[0, 2]
    for steps in (1, 3, 6):
      state = decode_canvas(
        params,
        prompt,
        canvas,
        row_seeds,
        np.zeros(toy.vocab, bool),
        denoise=toy.denoise,
        options=options,
        steps=steps,
        codes=codes,
      )
      for b in range(4):
        logits_of = lambda row, b=b, params=params, prompt=prompt: np.asarray(
          toy.denoise(params, prompt[b : b + 1], jnp.asarray([row]))[0], np.float64
        )
        found, step_map, sure = reference_decode(
          logits_of, canvas[b], codes.tolist(), toy, policy, steps, remask, 1, finish
        )
        assert state.canvas[b].tolist() == found
        assert state.step_map[b].tolist() == step_map
        np.testing.assert_allclose(state.confidence[b], np.where(np.array(step_map) < 0, 1, sure), rtol=1e-4)


@pytest.mark.parametrize("policy, remask", [(Random(), 2), (Confidence(), 0)])
def test_the_result_is_always_a_row_of_codes(toy, policy, remask):
  options = DecodeOptions(policy, toy.mask, remask=remask, finish_when_unique=remask == 0)
  prompt, _, row_seeds, banned = toy.inputs(0, 4)
  canvas = np.full((4, toy.length), toy.mask)
  for seed in range(20):
    codes, _ = toy.codes(seed, 40)
    for steps in (1, 2, 4):
      state = decode_canvas(
        toy.params(seed),
        prompt,
        canvas,
        row_seeds + seed,
        banned,
        denoise=toy.denoise,
        options=options,
        steps=steps,
        temperature=3.0,
        codes=codes,
      )
      rows = {tuple(row) for row in codes.tolist()}
      assert all(tuple(row) in rows for row in state.canvas.tolist())
      equal = (np.asarray(state.canvas)[:, None] == codes[None]).all(-1)
      assert (np.asarray(state.alive) == equal).all()  # those that collide stay alive together


@pytest.mark.parametrize("policy, temperature", [(Confidence(), 0.0), (Entropy(), 0.0), (Margin(), 2.0)])
def test_statistics_over_the_rows_in_use_change_nothing(toy, policy, temperature):
  options = DecodeOptions(policy, toy.mask, remask=1, finish_when_unique=False)
  for seed in range(6):
    codes, _ = toy.codes(seed, 40)
    prompt, _, row_seeds, banned = toy.inputs(seed, 4)
    rows = used_rows(codes)
    assert len(rows) < toy.vocab
    assert rows.tolist() == sorted(set(codes.reshape(-1).tolist()))
    inputs = (toy.params(seed), prompt, np.full((4, toy.length), toy.mask), row_seeds, banned)
    spec = dict(denoise=toy.denoise, options=options, steps=3, temperature=temperature, codes=codes)
    plain, quick = decode_canvas(*inputs, **spec), decode_canvas(*inputs, rows=rows, **spec)
    for state in (quick, [state for state, _ in decode_canvas_steps(*inputs, rows=rows, **spec)][-1]):
      np.testing.assert_array_equal(state.canvas, plain.canvas)
      np.testing.assert_array_equal(state.step_map, plain.step_map)
      np.testing.assert_array_equal(state.alive, plain.alive)
      np.testing.assert_allclose(state.confidence, plain.confidence, rtol=1e-5)


def test_every_state_on_the_way_can_still_become_a_document(toy):
  codes, _ = toy.codes(1, 40)
  prompt, _, row_seeds, banned = toy.inputs(1, 4)
  canvas = np.full((4, toy.length), toy.mask)
  options = DecodeOptions(Confidence(), toy.mask, remask=2, finish_when_unique=False)
  for state, _ in decode_canvas_steps(
    toy.params(1), prompt, canvas, row_seeds, banned, denoise=toy.denoise, options=options, steps=5, codes=codes
  ):
    now = np.asarray(state.canvas)
    agree = ((now[:, None] == codes[None]) | (now[:, None] == toy.mask)).all(-1)
    assert agree.any(-1).all()
    assert (np.asarray(state.alive) == agree).all()


def test_finishing_a_unique_document_saves_forwards(toy):
  codes, _ = toy.codes(2, 40)
  prompt, _, row_seeds, banned = toy.inputs(2, 4)
  inputs = (toy.params(2), prompt, np.full((4, toy.length), toy.mask), row_seeds, banned)
  spec = dict(denoise=toy.denoise, steps=toy.length, codes=codes)
  at_once = decode_canvas(*inputs, options=DecodeOptions(Confidence(), toy.mask), **spec)
  slowly = decode_canvas(*inputs, options=DecodeOptions(Confidence(), toy.mask, finish_when_unique=False), **spec)
  assert (forwards_per_row(at_once) <= forwards_per_row(slowly)).all()
  assert forwards_per_row(at_once).sum() < forwards_per_row(slowly).sum() == 4 * toy.length
  assert (at_once.canvas == slowly.canvas).all()  # the model had no say any more
  saved = np.asarray(at_once.step_map != slowly.step_map)
  assert (np.asarray(at_once.confidence)[saved] == 1).all()


def test_given_tokens_that_no_document_has_leave_the_row_alone(toy):
  codes, _ = toy.codes(0, 40)
  prompt, canvas, row_seeds, banned = toy.inputs(0, 4)
  canvas[:] = toy.mask
  canvas[1, 0] = 13
  state = decode_canvas(
    toy.params(0),
    prompt,
    canvas,
    row_seeds,
    banned,
    denoise=toy.denoise,
    options=DecodeOptions(Confidence(), toy.mask),
    steps=6,
    codes=codes,
  )
  assert (np.asarray(state.canvas[1]) == canvas[1]).all()
  assert not state.alive[1].any()
  assert not (np.delete(np.asarray(state.canvas), 1, axis=0) == toy.mask).any()


def test_documents_with_a_banned_token_are_never_decoded(toy):
  codes, _ = toy.codes(0, 40)
  prompt, canvas, row_seeds, banned = toy.inputs(0, 4)
  banned[codes[3, 0]] = True
  left = codes[~banned[codes].any(-1)]
  assert 0 < len(left) < 40
  state = decode_canvas(
    toy.params(0),
    prompt,
    np.full_like(canvas, toy.mask),
    row_seeds,
    banned,
    denoise=toy.denoise,
    options=DecodeOptions(Confidence(), toy.mask),
    steps=6,
    codes=codes,
  )
  rows = {tuple(row) for row in left.tolist()}
  assert all(tuple(row) in rows for row in state.canvas.tolist())


def test_a_sampled_token_follows_the_renormalised_distribution(toy):
  rows = 4000
  codes = np.array([[3, 4, 5, 1, 0, 0], [6, 4, 5, 1, 0, 0], [7, 9, 5, 1, 0, 0], [7, 9, 5, 1, 0, 0]])
  prompt, canvas, _, banned = toy.inputs(0, 1)
  prompt, canvas = np.repeat(prompt, rows, 0), np.full((rows, toy.length), toy.mask)
  canvas[:, 1:] = toy.mask
  params = toy.params(0, scale=0.3)
  state = decode_canvas(
    params,
    prompt,
    canvas,
    np.arange(rows),
    banned,
    denoise=toy.denoise,
    options=DecodeOptions(Margin(), toy.mask, finish_when_unique=False),
    steps=1,
    temperature=1.5,
    codes=codes,
  )
  logits = np.asarray(toy.denoise(params, prompt[:1], jnp.asarray(canvas[:1]))[0], np.float64)
  # Positions 2 to 5 are decided; of 0 and 1, the one with the larger margin is drawn first and leads the other.
  weight = lambda i, token, t: np.exp(logits[i][token] / t)
  soft = lambda i, tokens, t: {k: weight(i, k, t) / sum(weight(i, j, t) for j in tokens) for k in tokens}
  gap = lambda p: np.sort(list(p.values()))[-1] - np.sort(list(p.values()))[-2]
  first = 0 if gap(soft(0, (3, 6, 7), 1.0)) > gap(soft(1, (4, 9), 1.0)) else 1
  if first == 0:
    expected = soft(0, (3, 6, 7), 1.5)
  else:
    second, after = soft(1, (4, 9), 1.5), soft(0, (3, 6), 1.5)
    expected = {3: second[4] * after[3], 6: second[4] * after[6], 7: second[9]}
  for token, probability in expected.items():
    assert abs(float((state.canvas[:, 0] == token).mean()) - probability) < 4 * np.sqrt(0.25 / rows)


def test_allowed_tokens_against_sets(toy):
  rng = np.random.default_rng(0)
  codes, _ = toy.codes(0, 20)
  alive = rng.random((3, 20)) < 0.2
  allowed = constraint.allowed_tokens(jnp.asarray(alive), jnp.asarray(codes), toy.vocab)
  for b in range(3):
    for i in range(toy.length):
      assert set(np.flatnonzero(allowed[b, i])) == {codes[n, i] for n in np.flatnonzero(alive[b])}


def test_matching_stops_at_eos_and_finds_every_collision(toy):
  codes, scored = toy.codes(3, 15)
  canvas = np.where(scored, codes, 12)  # nonsense after EOS does not matter
  canvas = np.concatenate([canvas, np.full((1, toy.length), 9)])
  match = constraint.matching_documents(jnp.asarray(canvas), jnp.asarray(codes), jnp.asarray(scored))
  expected = (codes[:, None] == codes[None]).all(-1)
  assert (np.asarray(match[:-1]) == expected).all()
  assert expected.sum() > 15  # some collide
  assert not match[-1].any()
