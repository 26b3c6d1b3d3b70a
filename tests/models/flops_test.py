"""FLOPs by our rule against two independent counts: the masks themselves, and the products of a traced program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.attention import attention_mask, padded_layout, two_stream_layout
from diffgr_jax.models.config import PATTERNS, TransformerConfig
from diffgr_jax.models.flops import (
  attention_pairs,
  forward_flops,
  matmul_flops,
  ragged_train_step_flops,
  train_step_flops,
)
from diffgr_jax.models.transformer import abstract_params, bind

MODEL = TransformerConfig(vocab_size=40, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=20)
BERT = dataclasses.replace(
  MODEL, n_kv_heads=4, mlp="gelu", head="mlm", norm="layernorm", norm_position="post", position_encoding="learned",
  max_positions=16,
)  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length, block", [(1, 1), (8, 2), (9, 4), (5, 7), (12, 3)])
def test_pairs_are_the_ones_of_the_mask(pattern, length, block):
  layout = padded_layout(jnp.ones((1, length), bool))
  if pattern == "two_stream":
    layout = two_stream_layout(layout)
  if pattern.startswith("prefix"):  # the canvas is as long as a block
    layout = dataclasses.replace(layout, stream=(jnp.arange(length)[None] >= length - block).astype(jnp.int32))
  assert attention_pairs(length, pattern, block, canvas=min(block, length)) == int(
    attention_mask(pattern, layout, layout, block).sum()
  )


def traced_flops(jaxpr, times=1):
  """Two operations for every multiply-add of every dot_general, those of a scan as often as it runs."""
  total = 0
  for equation in jaxpr.eqns:
    if equation.primitive.name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
      total += times * 2 * depth * math.prod(equation.outvars[0].aval.shape)
    inside = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
      value = getattr(value, "jaxpr", value)
      if hasattr(value, "eqns"):
        total += traced_flops(value, inside)
  return total


@pytest.mark.parametrize("config", [MODEL, dataclasses.replace(MODEL, tie_embeddings=False), BERT])
def test_a_traced_program_multiplies_as_much_where_nothing_is_masked(config):
  tokens = jax.ShapeDtypeStruct((2, 7), jnp.int32)

  def loss(params, tokens):
    model = bind(config, params)
    return model.logits(model(tokens, padded_layout(jnp.ones(tokens.shape, bool)))[:, :5]).sum()

  forward = jax.make_jaxpr(loss)(abstract_params(config), tokens)
  backward = jax.make_jaxpr(jax.value_and_grad(loss))(abstract_params(config), tokens)
  assert traced_flops(forward.jaxpr) == forward_flops(config, 2, 7, logits_positions=5)
  assert traced_flops(backward.jaxpr) == train_step_flops(config, 2, 7, logits_positions=5)


def test_flops_are_twice_the_weights_that_are_multiplied():
  config = TransformerConfig(vocab_size=40, d_model=16, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=6, d_ff=24)
  shapes = abstract_params(config)
  kernels = [x.size for path, x in jax.tree_util.tree_leaves_with_path(shapes) if path[-1].key == "kernel"]
  assert matmul_flops(config) == (2 * sum(kernels), 2 * shapes["embed"]["embedding"].size)


def test_two_streams_pass_twice_the_positions_and_ask_for_logits_once():
  body, head = matmul_flops(MODEL)
  plain = forward_flops(MODEL, 1, 8, "block_causal", block_size=4)
  assert forward_flops(MODEL, 1, 8, "two_stream", block_size=4) == 2 * plain - 8 * head
  assert forward_flops(MODEL, 3, 8, "bidirectional", logits_positions=0) == 3 * (8 * body + 4 * 3 * 4 * 6 * 64)


def test_rows_of_several_lengths_add_up():
  lengths = np.array([3, 5, 3, 9])
  one_by_one = [train_step_flops(MODEL, 1, int(length), logits_positions=2) for length in lengths]
  assert ragged_train_step_flops(MODEL, lengths, logits_positions=2) == sum(one_by_one)


def test_a_pattern_or_a_size_that_there_is_not_is_refused():
  with pytest.raises(ValueError, match=r"attention pattern is one of causal, .* not 'full'"):
    forward_flops(MODEL, 1, 8, "full")
  with pytest.raises(ValueError, match="at least 1, not 8 and 0"):
    attention_pairs(8, "block_causal", 0)
