"""The transformer against a float64 numpy model, and what its options promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.transformer import abstract_params, bind, count_params, init_params, logical_axes

TINY = TransformerConfig(
  vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=24, qk_norm=True, qkv_bias=True
)


def random_params(config, seed=0):
  """Parameters without zeros or ones, so that every weight matters."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(rng.normal(1.0 if leaf.ndim <= 1 else 0.0, 0.3, leaf.shape), leaf.dtype),
    abstract_params(config),
  )


def logits_of(config, params, tokens, valid=None, **options):
  layout = padded_layout(jnp.ones(tokens.shape, bool) if valid is None else valid)
  model = bind(config, params)
  return model.logits(model(tokens, layout, **options))


def numpy_logits(config, params, tokens):
  """Pre-norm, RMSNorm, RoPE, grouped queries, QK-norm, SwiGLU, tied output: written apart, in float64, row by row."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rms = lambda x, scale: x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale

  def rotate(x):  # [T, H, K]
    half = config.head_dim // 2
    angle = np.arange(len(x))[:, None] * config.rope_theta ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angle)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)

  x = params["embed"]["embedding"][tokens]
  for i in range(config.n_layers):
    w = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    att, h = w["attention"], rms(x, w["attention_norm"]["scale"])
    project = lambda part, heads: (h @ att[part]["kernel"] + att[part]["bias"]).reshape(len(x), heads, -1)  # noqa: B023
    q = rotate(rms(project("query", config.n_heads), att["query_norm"]["scale"]))
    k = rotate(rms(project("key", config.n_kv_heads), att["key_norm"]["scale"]))
    v = project("value", config.n_kv_heads)
    heads = []
    for head in range(config.n_heads):
      group = head * config.n_kv_heads // config.n_heads
      scores = q[:, head] @ k[:, group].T / np.sqrt(config.head_dim)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, group])
    x = x + np.concatenate(heads, -1) @ att["out"]["kernel"]
    h, mlp = rms(x, w["mlp_norm"]["scale"]), w["mlp"]
    gate = h @ mlp["gate"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * (h @ mlp["up"]["kernel"])) @ mlp["down"]["kernel"]
  return rms(x, params["final_norm"]["scale"]) @ params["embed"]["embedding"].T


def test_agrees_with_a_float64_numpy_model():
  params, tokens = random_params(TINY), np.random.default_rng(1).integers(0, 32, (3, 7))
  expected = np.stack([numpy_logits(TINY, params, row) for row in tokens])
  np.testing.assert_allclose(logits_of(TINY, params, jnp.asarray(tokens)), expected, atol=2e-4)


def test_left_padding_changes_nothing():
  params, rng = random_params(TINY), np.random.default_rng(2)
  tokens = rng.integers(1, 32, (2, 5))
  padded = np.concatenate([rng.integers(1, 32, (2, 3)), tokens], axis=1)  # what stands in the padding must not matter
  valid = np.arange(8) >= 3
  plain = logits_of(TINY, params, jnp.asarray(tokens))
  shifted = logits_of(TINY, params, jnp.asarray(padded), jnp.asarray(np.tile(valid, (2, 1))))
  np.testing.assert_allclose(shifted[:, 3:], plain, atol=2e-5)


@pytest.mark.parametrize("pattern", ["causal", "block_causal"])
def test_the_future_does_not_reach_the_past(pattern):
  params, tokens = random_params(TINY), jnp.asarray(np.random.default_rng(3).integers(0, 32, (1, 8)))
  changed = tokens.at[:, 4:].set((tokens[:, 4:] + 7) % 32)
  options = dict(pattern=pattern, block_size=4)
  before, after = (logits_of(TINY, params, x, **options) for x in (tokens, changed))
  np.testing.assert_array_equal(before[:, :4], after[:, :4])
  assert not np.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
  params, tokens = random_params(TINY), jnp.asarray(np.random.default_rng(4).integers(0, 32, (2, 5)))
  gradient = lambda config: jax.grad(lambda p: logits_of(config, p, tokens).var())(params)
  plain, remade = gradient(TINY), gradient(dataclasses.replace(TINY, remat=remat))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), plain, remade)


def test_bfloat16_compute_keeps_float32_logits_and_parameters():
  config = dataclasses.replace(TINY, compute_dtype="bfloat16")
  params, tokens = init_params(config, jax.random.key(0)), jnp.arange(10).reshape(2, 5)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  half, full = logits_of(config, params, tokens), logits_of(TINY, params, tokens)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, full, atol=0.05)
  assert not np.array_equal(half, full)


def test_post_norm_encoder_and_untied_head_have_the_parts_they_name():
  bert = dataclasses.replace(
    TINY, norm="layernorm", norm_position="post", mlp="gelu", position_encoding="learned", max_positions=9,
    token_types=2, out_bias=True, mlp_bias=True, qk_norm=False, head="mlm",
  )  # fmt: skip
  assert {"position_embed", "type_embed", "embed_norm", "mlm"} <= set(abstract_params(bert))
  assert "final_norm" not in abstract_params(bert)
  tokens = jnp.arange(6).reshape(1, 6)
  assert logits_of(bert, random_params(bert), tokens).shape == (1, 6, 32)
  assert "unembed" in abstract_params(dataclasses.replace(TINY, tie_embeddings=False))
  encoder = dataclasses.replace(bert, head="none", tie_embeddings=False)
  with pytest.raises(ValueError, match="no logits"):
    logits_of(encoder, random_params(encoder), tokens)


def test_every_parameter_has_as_many_axes_as_dimensions():
  shapes, axes = abstract_params(TINY), logical_axes(TINY)
  jax.tree.map(lambda leaf, names: pytest.fail(f"{leaf} {names}") if leaf.ndim != len(names) else None, shapes, axes)
  assert axes["blocks"]["mlp"]["up"]["kernel"] == ("layers", "embed", "mlp")
  assert count_params(TINY) == sum(x.size for x in jax.tree.leaves(init_params(TINY, jax.random.key(1))))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(n_kv_heads=3), "multiple of model.n_kv_heads"),
    (dict(norm="batchnorm"), "model.norm is one of"),
    (dict(head_dim=5), "even for rope"),
    (dict(d_model=0), "model.d_model is at least 1"),
    (dict(position_encoding="learned"), "model.max_positions must be set"),
  ],
)
def test_impossible_configs_are_named(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TINY, **change)
  with pytest.raises(ValueError, match="model has no field depth"):
    TransformerConfig.from_dict(TINY.to_dict() | {"depth": 3})


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_denoiser_reads_the_canvas_logits_of_the_whole_sequence(alignment):
  config = dataclasses.replace(TINY, alignment=alignment)
  params, rng = random_params(config), np.random.default_rng(5)
  prompt, canvas = jnp.asarray(rng.integers(1, 32, (2, 4))).at[0, :2].set(0), jnp.asarray(rng.integers(1, 32, (2, 3)))
  whole = jnp.concatenate([prompt, canvas], axis=1)
  expected = logits_of(config, params, whole, whole != 0)
  expected = expected[:, 3:6] if alignment == "shifted" else expected[:, 4:7]
  np.testing.assert_allclose(CanvasDenoiser(config, pad_id=0)(params, prompt, canvas), expected, atol=1e-5)
  assert hash(CanvasDenoiser(config, 0)) == hash(CanvasDenoiser(dataclasses.replace(config), 0))


def test_a_learned_position_table_gives_a_place_of_the_canvas_one_position_whatever_the_query():
  config = dataclasses.replace(TINY, position_encoding="learned", max_positions=16)
  params = random_params(config)
  prompt, canvas = jnp.asarray([[0, 0, 7, 8], [9, 5, 7, 8]]), jnp.full((2, 3), 4)
  tokens = jnp.concatenate([prompt, canvas], axis=1)
  layout = padded_layout(tokens != 0)
  layout = dataclasses.replace(layout, position=jnp.asarray([[0, 0, 0, 1, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]))
  model = bind(config, params)
  expected = model.logits(model(tokens, layout))[:, 4:]
  np.testing.assert_allclose(CanvasDenoiser(config, 0)(params, prompt, canvas), expected, atol=1e-5)


def test_slots_tell_the_places_of_an_all_masked_canvas_apart():
  config = dataclasses.replace(TINY, token_types=4)
  params = random_params(config)
  prompt, canvas = jnp.asarray([[0, 7, 8]]), jnp.full((1, 3), 4)
  slots, plain = CanvasDenoiser(config, 0, slots=True), CanvasDenoiser(config, 0)
  zeroed = params | {"type_embed": {"embedding": params["type_embed"]["embedding"].at[1:].set(0.0)}}
  by_hand = bind(config, params)(
    jnp.concatenate([prompt, canvas], axis=1),
    padded_layout(jnp.asarray([[False, True, True, True, True, True]])),
    token_types=jnp.asarray([[0, 0, 0, 1, 2, 3]]),
  )
  expected = bind(config, params).logits(by_hand)[:, 3:]
  np.testing.assert_allclose(slots(params, prompt, canvas), expected, atol=1e-5)
  assert not np.allclose(slots(params, prompt, canvas), plain(params, prompt, canvas), atol=1e-3)
  assert not np.allclose(slots(params, prompt, canvas), slots(zeroed, prompt, canvas), atol=1e-3)
