"""Adapters: nothing at first, the only thing that is trained, and the same when they are merged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.inference import decoding_axes, decoding_params
from diffgr_jax.models.lora import join, merge, split_adapters, without_adapters
from diffgr_jax.models.transformer import abstract_params, bind, init_params, logical_axes
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES
from diffgr_jax.stages.docid import DocIdStage
from diffgr_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffgr_jax.training.state import create_state, state_shardings, train_step

BASE = TransformerConfig(vocab_size=32, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=24)
CONFIG = dataclasses.replace(BASE, lora_rank=3, lora_alpha=6.0, lora_targets=("query", "out", "gate", "down"))
TOKENS = jax.random.randint(jax.random.key(5), (2, 6), 0, 32)
LAYOUT = padded_layout(jnp.ones((2, 6), bool))


def params_of(config, filled=False):
  params = init_params(config, jax.random.key(0))
  noise = lambda x: 0.1 * jax.random.normal(jax.random.key(x.size), x.shape)
  draw = lambda path, x: x + noise(x) if path[-1].key == "lora_out" else x
  return jax.tree_util.tree_map_with_path(draw, params) if filled else params


def logits(config, params):
  model = bind(config, params)
  return model.logits(model(TOKENS, LAYOUT))


def test_fresh_adapters_add_nothing():
  params = params_of(CONFIG)
  adapters, base = split_adapters(params)
  assert sorted(adapters["blocks"]) == ["attention", "mlp"]
  assert jax.tree.structure(base) == jax.tree.structure(abstract_params(BASE))
  assert jax.tree.structure(join(base, adapters)) == jax.tree.structure(params)
  np.testing.assert_array_equal(logits(CONFIG, params), logits(BASE, base))


def test_merged_is_unmerged():
  params = params_of(CONFIG, filled=True)
  merged = merge(CONFIG, params)
  np.testing.assert_allclose(logits(CONFIG, params), logits(BASE, merged), atol=1e-5)
  assert np.abs(logits(BASE, merged) - logits(BASE, split_adapters(params)[1])).max() > 0.01
  assert without_adapters(CONFIG) == BASE
  # Decoders with a cache run the merged weights.
  laid_out, expected = decoding_params(CONFIG, params), decoding_params(BASE, merged)
  jax.tree.map(np.testing.assert_array_equal, laid_out, expected)
  assert decoding_axes(CONFIG)["blocks"][1]["mlp"]["up"] == {"kernel": ("mlp", "embed")}


def test_only_adapters_change_and_only_they_have_moments():
  mesh = make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
  model = dataclasses.replace(CONFIG, rules=TRAIN_RULES)
  schedule = learning_rate_schedule(1e-2, warmup_steps=1, steps=10)
  optimizer = make_optimizer(schedule, b1=0.9, b2=0.98, weight_decay=0.1, clip_norm=1.0)
  stage = DocIdStage(CanvasDenoiser(model, pad_id=0), make_process("all_masked"), mask_id=4, valid_size=32)
  state = create_state(model, optimizer, state_shardings(model, optimizer, mesh, TRAIN_RULES), seed=0)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  assert size(state.opt_state) < 0.5 * size(state.params)
  before = jax.tree.map(np.asarray, state.params)
  batch = {"prompt": TOKENS, "docid": TOKENS[:, :4], "doc_index": jnp.arange(2)}
  with jax.set_mesh(mesh):
    for _ in range(3):
      state, _ = train_step(state, batch, {}, jnp.int32(0), stage=stage, optimizer=optimizer)
  (adapters, base), (old_adapters, old_base) = split_adapters(state.params), split_adapters(before)
  jax.tree.map(np.testing.assert_array_equal, base, old_base)
  jax.tree.map(lambda new, old: np.testing.assert_array_less(0.0, np.abs(new - old).max()), adapters, old_adapters)


def test_what_cannot_be_adapted_is_named():
  with pytest.raises(ValueError, match=r"lora_targets are some of query, .* not embed with rank 2"):
    dataclasses.replace(BASE, lora_rank=2, lora_targets=("embed",))
  with pytest.raises(ValueError, match="not none with rank 2"):
    dataclasses.replace(BASE, lora_rank=2)
  assert TransformerConfig.from_dict({**CONFIG.to_dict(), "lora_targets": list(CONFIG.lora_targets)}) == CONFIG
  assert logical_axes(CONFIG)["blocks"]["mlp"]["down"]["lora_in"] == ("layers", "mlp", "rank")
