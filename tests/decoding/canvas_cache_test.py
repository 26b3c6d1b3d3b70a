"""The approximate caches against explicit stale keys and values in NumPy, and against the exact decoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import canvas_cache
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.canvas_cache import CanvasCache, decode_canvas_cached, decode_canvas_cached_steps
from diffgr_jax.decoding.policies import Threshold
from diffgr_jax.models.denoiser import CanvasDenoiser

LENGTH, SIZE, TAU = 12, 4, 0.4
PAD = 0


def setting(model, alignment, lengths=(5, 2, 3), seed=0):
  """Inputs of the decoder. The pad id is one that no prompt holds."""
  denoiser = CanvasDenoiser(dataclasses.replace(model.config, alignment=alignment, pattern="bidirectional"), PAD)
  tokens, _ = model.prompts(list(lengths), seed=seed, width=5)
  canvas = np.full((len(lengths), LENGTH), model.mask, np.int32)
  canvas[1, 5] = 7  # given
  inputs = (model.params(), tokens, canvas, np.arange(len(lengths)), model.banned)
  return inputs, denoiser, DecodeOptions(Threshold(TAU), model.mask, block_length=SIZE)


# --- a transformer and its decoding in NumPy, float64 ---


def rms(x, scale, epsilon):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def turned(x, position, theta):
  half = x.shape[-1] // 2
  angle = position[:, None] * theta ** (-np.arange(half) / half)
  cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
  a, b = x[..., :half], x[..., half:]
  return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def numpy_pass(config, params, tokens, window, stale):
  """Hidden states of the positions in `window`; keys and values of all: fresh inside it, stale outside."""
  place, kept = np.arange(*window), []
  x = params["embed"]["embedding"][tokens[place]]
  for layer in range(config.n_layers):
    weights = jax.tree.map(lambda w, layer=layer: w[layer], params["blocks"])
    mine, h = weights["attention"], rms(x, weights["attention_norm"]["scale"], config.norm_epsilon)
    heads = lambda name, h=h, mine=mine: (h @ mine[name]["kernel"]).reshape(len(place), -1, config.head_dim)
    query = rms(heads("query"), mine["query_norm"]["scale"], config.norm_epsilon)
    key = rms(heads("key"), mine["key_norm"]["scale"], config.norm_epsilon)
    query, key = (turned(y, place, config.rope_theta) for y in (query, key))
    keys, values = (np.zeros((len(tokens), *key.shape[1:])) for _ in "kv") if stale is None else stale[layer]
    keys, values = keys.copy(), values.copy()
    keys[place], values[place] = key, heads("value")
    kept.append((keys, values))
    share = config.n_heads // config.n_kv_heads
    scores = np.einsum("qhk,shk->hqs", query, keys.repeat(share, 1)) / np.sqrt(config.head_dim)
    weight = np.exp(scores - scores.max(-1, keepdims=True))
    weight /= weight.sum(-1, keepdims=True)
    mixed = np.einsum("hqs,shk->qhk", weight, values.repeat(share, 1)).reshape(len(place), -1)
    x = x + mixed @ mine["out"]["kernel"]
    h, mlp = rms(x, weights["mlp_norm"]["scale"], config.norm_epsilon), weights["mlp"]
    gate = h @ mlp["gate"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
  return rms(x, params["final_norm"]["scale"], config.norm_epsilon), kept


def reference(model, config, kind, refresh, prompt, canvas, steps):
  """One row, decoded with explicit stale keys: tokens, confidences, and how many passes it took."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params())
  text, begin_canvas = np.concatenate([prompt, canvas]), len(prompt)
  confidence, passes = (text != model.mask).astype(float), 0
  for begin in range(begin_canvas, len(text), SIZE):
    own = np.arange(begin, begin + SIZE)
    for step in range(steps):
      masked = text[own] == model.mask
      if not masked.any():
        break
      passes += 1
      if step == 0 or (refresh and step % refresh == 0):
        hidden, kept = numpy_pass(config, params, text, (0, len(text)), None)
        before, hidden = hidden[begin - 1 : begin], hidden[own]
      else:
        hidden, _ = numpy_pass(config, params, text, (begin, begin + SIZE if kind == "dual" else len(text)), kept)
        hidden = hidden[:SIZE]
      if config.alignment == "shifted":
        hidden = np.concatenate([before, hidden[:-1]])
      logits = (hidden @ params["embed"]["embedding"].T)[:, :22]
      probs = np.exp(logits - logits.max(-1, keepdims=True))
      probs /= probs.sum(-1, keepdims=True)
      sure = np.where(masked, probs.max(-1), -1)
      chosen = masked & ((sure > TAU) | (np.arange(SIZE) == sure.argmax()) | (step == steps - 1))
      text[own[chosen]], confidence[own[chosen]] = probs.argmax(-1)[chosen], sure[chosen]
  return text[begin_canvas:], confidence[begin_canvas:], passes


@pytest.mark.parametrize(
  "kind, alignment, refresh",
  [("prefix", "same_position", 0), ("dual", "same_position", 2), ("prefix", "shifted", 0), ("dual", "shifted", 0)],
)
def test_agrees_with_explicit_stale_keys(model, kind, alignment, refresh):
  inputs, denoiser, options = setting(model, alignment)
  how = dict(denoiser=denoiser, options=options, cache=CanvasCache(kind, refresh), steps=9)
  state = decode_canvas_cached(*inputs, **how)
  _, tokens, canvas, seeds, banned = inputs
  passes = []
  for row, length in enumerate((5, 2, 3)):
    text, confidence, spent = reference(
      model, denoiser.config, kind, refresh, tokens[row, 5 - length :], canvas[row].copy(), 3
    )
    np.testing.assert_array_equal(state.canvas[row], text)
    np.testing.assert_allclose(state.confidence[row], confidence, atol=2e-5)
    passes.append(spent)
  assert int(state.step) == max(passes)
  assert min(passes) > 3  # windows were used
  *_, (last, stats) = decode_canvas_cached_steps(*inputs, **how)
  np.testing.assert_array_equal(state.canvas, last.canvas)
  np.testing.assert_array_equal(state.step_map, last.step_map)
  assert 0 < np.isnan(stats.entropy).sum() < stats.entropy.size
  order = np.array([2, 1, 1])  # other neighbours, other places
  moved = decode_canvas_cached(inputs[0], tokens[order], canvas[order], seeds[order], banned, **how)
  np.testing.assert_array_equal(moved.canvas, np.asarray(state.canvas)[order])
  np.testing.assert_array_equal(moved.step_map, np.asarray(state.step_map)[order])


@pytest.mark.parametrize("kind, alignment", [("prefix", "same_position"), ("dual", "shifted")])
def test_with_a_full_pass_every_step_it_is_the_exact_decoder(model, kind, alignment):
  inputs, denoiser, options = setting(model, alignment)
  exact = decode_canvas(*inputs, denoise=denoiser, options=options, steps=9, temperature=1.3)
  how = dict(denoiser=denoiser, options=options, steps=9)
  refreshed = decode_canvas_cached(*inputs, cache=CanvasCache(kind, 1), temperature=1.3, **how)
  np.testing.assert_array_equal(exact.canvas, refreshed.canvas)
  np.testing.assert_array_equal(exact.step_map, refreshed.step_map)
  np.testing.assert_allclose(exact.confidence, refreshed.confidence, atol=2e-5)
  compiled = canvas_cache._decode_loop._cache_size()
  decode_canvas_cached(*inputs, cache=CanvasCache(kind, 1), denoiser=denoiser, options=options, steps=6, top_k=3)
  assert canvas_cache._decode_loop._cache_size() == compiled  # another budget, another sampling


def test_what_does_not_fit_is_named(model):
  inputs, denoiser, options = setting(model, "same_position")
  how = dict(denoiser=denoiser, options=options, cache=CanvasCache("dual"), steps=9)
  with pytest.raises(ValueError, match=r"CanvasCache\.kind is one of prefix, dual, not 'both'"):
    CanvasCache("both")
  with pytest.raises(ValueError, match=r"CanvasCache\.refresh is -1"):
    CanvasCache("dual", -1)
  with pytest.raises(ValueError, match="block_length is 5; a cache needs blocks that divide the canvas of 12"):
    decode_canvas_cached(*inputs, **how | {"options": dataclasses.replace(options, block_length=5)})
  with pytest.raises(ValueError, match=r"slots is True"):
    decode_canvas_cached(*inputs, **how | {"denoiser": dataclasses.replace(denoiser, slots=True)})
  shifted = dataclasses.replace(denoiser, config=dataclasses.replace(denoiser.config, alignment="shifted"))
  with pytest.raises(ValueError, match="every prompt needs at least 1 token"):
    decode_canvas_cached(inputs[0], jnp.zeros((3, 0), jnp.int32), *inputs[2:], **how | {"denoiser": shifted})
