"""The one transformer (Flax NNX): every family the project knows is a `TransformerConfig` of it.

Layers are created stacked ([layers, ...] on every weight) and run by `lax.scan`, so a program's size and compile time
do not grow with depth; `config.remat` says what the backward pass keeps. Parameters travel as a nested dict of arrays:

    params = init_params(config, key)                          # {"embed": {"embedding": ...}, "blocks": {...}, ...}
    hidden = bind(config, params)(tokens, layout, pattern="bidirectional")
    logits = bind(config, params).logits(hidden)               # float32

Decoders run the same model against a cache: inference.py.

Every weight carries its logical axes ("embed", "heads", "mlp", "vocab", ...); parallel/rules.py maps them to a mesh.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffgr_jax.models.attention import Layout, rope
from diffgr_jax.models.code_head import CodeHead
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.kernels import Mix, attention_of
from diffgr_jax.models.lora import LoraLinear
from diffgr_jax.parallel.rules import constrain

Params = dict[str, Any]  # a nested dict of arrays

_EMBED_STD = 0.02
_HIDDEN = ("batch", "length", "features")
_REMAT_POLICIES = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "full": None}


# --- parts ---


def _linear(
  config: TransformerConfig, shape, axes, *, bias: bool, rngs: nnx.Rngs, residual: bool = False, name: str = ""
) -> nnx.Linear:
  """A projection; those that write into the residual stream start smaller by sqrt(2 * layers) (GPT-2).

  `name` is what `config.lora_targets` may call it.
  """
  scale = 1.0 / (2 * config.n_layers) if residual else 1.0
  how: dict[str, Any] = dict(
    use_bias=bias,
    dtype=config.compute_dtype,
    param_dtype=config.param_dtype,
    kernel_init=nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal"),
    rngs=rngs,
    kernel_metadata={"axes": axes},
    bias_metadata={"axes": axes[1:]},
  )
  if name in config.lora_targets:
    return LoraLinear(config, shape[0], shape[1], axes, **how)
  return nnx.Linear(*shape, **how)


def _norm(config: TransformerConfig, size: int, *, rngs: nnx.Rngs, kind: str | None = None) -> nnx.Module:
  common: dict[str, Any] = dict(
    epsilon=config.norm_epsilon,
    dtype=config.compute_dtype,
    param_dtype=config.param_dtype,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits that a parity check sees
    rngs=rngs,
    scale_metadata={"axes": ("norm",)},
  )
  if (kind or config.norm) == "rmsnorm":
    return nnx.RMSNorm(size, **common)
  return nnx.LayerNorm(size, bias_metadata={"axes": ("norm",)}, **common)


class Attention(nnx.Module):
  """Grouped-query self-attention with optional biases and QK-norm."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    query_width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    project = lambda name, width, axis: _linear(
      config, (config.d_model, width), ("embed", axis), bias=config.qkv_bias, rngs=rngs, name=name
    )
    self.query = project("query", query_width, "heads")
    self.key = project("key", kv_width, "kv_heads")
    self.value = project("value", kv_width, "kv_heads")
    self.out = _linear(
      config,
      (query_width, config.d_model),
      ("heads", "embed"),
      bias=config.out_bias,
      rngs=rngs,
      residual=True,
      name="out",
    )
    if config.qk_norm:
      self.query_norm = _norm(config, config.head_dim, rngs=rngs, kind="rmsnorm")
      self.key_norm = _norm(config, config.head_dim, rngs=rngs, kind="rmsnorm")

  def __call__(self, x: Float[Array, "B T D"], position: Int[Array, "B T"], mix: Mix) -> Float[Array, "B T D"]:
    config, (batch, length, _) = self.config, x.shape
    place = lambda what, x, axes: constrain(x, f"attention {what}", ("batch", *axes, None), config.rules)
    query = self.query(x).reshape(batch, length, config.n_heads, config.head_dim)
    key = self.key(x).reshape(batch, length, config.n_kv_heads, config.head_dim)
    value = self.value(x).reshape(batch, length, config.n_kv_heads, config.head_dim)
    if config.qk_norm:
      query, key = self.query_norm(query), self.key_norm(key)
    if config.position_encoding == "rope":
      query, key = rope(query, position, config.rope_theta), rope(key, position, config.rope_theta)
    query = place("queries", query, ("length", "heads"))
    key, value = place("keys", key, (None, "kv_heads")), place("values", value, (None, "kv_heads"))
    mixed = place("outputs", mix(query, key, value), ("length", "heads"))
    return self.out(mixed.reshape(batch, length, -1))


class Mlp(nnx.Module):
  """SwiGLU (down(silu(gate x) * up x), arXiv 2002.05202) or the plain GELU of BERT."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.gated, self.rules = config.mlp == "swiglu", config.rules
    wide, how = (config.d_model, config.d_ff), dict[str, Any](bias=config.mlp_bias, rngs=rngs)
    if self.gated:
      self.gate = _linear(config, wide, ("embed", "mlp"), name="gate", **how)
    self.up = _linear(config, wide, ("embed", "mlp"), name="up", **how)
    self.down = _linear(config, wide[::-1], ("mlp", "embed"), residual=True, name="down", **how)

  def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    wide = self.up(x)
    wide = jax.nn.silu(self.gate(x)) * wide if self.gated else jax.nn.gelu(wide, approximate=False)
    return self.down(constrain(wide, "MLP activations", ("batch", "length", "mlp"), self.rules))


class Block(nnx.Module):
  """One layer: attention and MLP, each with a residual; the norm before the part (pre) or after the sum (post)."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.pre, self.rules = config.norm_position == "pre", config.rules
    self.attention_norm = _norm(config, config.d_model, rngs=rngs)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = _norm(config, config.d_model, rngs=rngs)
    self.mlp = Mlp(config, rngs=rngs)

  def __call__(self, x: Float[Array, "B T D"], position: Int[Array, "B T"], mix: Mix) -> Float[Array, "B T D"]:
    if self.pre:
      x = x + self.attention(self.attention_norm(x), position, mix)
      x = x + self.mlp(self.mlp_norm(x))
    else:
      x = self.attention_norm(x + self.attention(x, position, mix))
      x = self.mlp_norm(x + self.mlp(x))
    return constrain(x, "hidden states", _HIDDEN, self.rules)


class MlmTransform(nnx.Module):
  """BERT's output transform: dense, GELU, LayerNorm, and a bias over the vocabulary for the tied output."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.dense = _linear(config, (config.d_model, config.d_model), ("embed", "embed_out"), bias=True, rngs=rngs)
    self.norm = _norm(config, config.d_model, rngs=rngs)
    self.bias = nnx.Param(jnp.zeros((config.vocab_size,), config.param_dtype), axes=("vocab",))

  def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return self.norm(jax.nn.gelu(self.dense(x), approximate=False))


# --- the model ---


class Transformer(nnx.Module):
  """Token ids in, hidden states out; logits are asked for apart, only where they are needed."""

  def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.embed = self._table(config.vocab_size, "vocab", rngs)
    if config.position_encoding == "learned":
      self.position_embed = self._table(config.max_positions, "position", rngs)
    if config.token_types:
      self.type_embed = self._table(config.token_types, "position", rngs)
    if config.norm_position == "post":
      self.embed_norm = _norm(config, config.d_model, rngs=rngs)

    @nnx.split_rngs(splits=config.n_layers)
    @nnx.vmap(in_axes=0, out_axes=0)
    def stacked_blocks(rngs: nnx.Rngs) -> Block:
      return Block(config, rngs=rngs)

    self.blocks = stacked_blocks(rngs)
    if config.norm_position == "pre":
      self.final_norm = _norm(config, config.d_model, rngs=rngs)
    if config.head == "mlm":
      self.mlm = MlmTransform(config, rngs=rngs)
    if config.head == "linear" and not config.tie_embeddings:
      self.unembed = self._table(config.vocab_size, "vocab", rngs)
    if config.code_levels:
      self.code_head = CodeHead(config)

  def _table(self, rows: int, axis: str, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(
      rows,
      self.config.d_model,
      dtype=self.config.compute_dtype,
      param_dtype=self.config.param_dtype,
      embedding_init=nnx.initializers.normal(_EMBED_STD),
      rngs=rngs,
      embedding_metadata={"axes": (axis, "embed")},
    )

  def __call__(
    self,
    tokens: Int[Array, "B T"],
    layout: Layout,
    *,
    pattern: str | None = None,
    block_size: int = 1,
    token_types: Int[Array, "B T"] | None = None,
    aligned: bool = False,
    noisy: int = 0,
  ) -> Float[Array, "B T D"]:
    """Hidden states after the last norm, in the compute dtype.

    Args:
      tokens: ids below `config.vocab_size`.
      layout: position, segment and stream of every token.
      pattern: attention pattern; None takes the one of the config.
      block_size: tokens a block, for the block patterns.
      token_types: BERT's segment ids; None means all 0. Ignored by models without the table.
      aligned, noisy: what is known of the layout, which kernels make use of (kernels.attention_of).
    """
    return self._layers(tokens, layout, pattern, block_size, token_types, aligned, noisy)[0]

  def hidden_states(
    self,
    tokens: Int[Array, "B T"],
    layout: Layout,
    *,
    pattern: str | None = None,
    block_size: int = 1,
    token_types: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "M B T D"]:
    """What goes into the first layer and what leaves each one (M = layers + 1; the last entry after the last norm)."""
    last, first, outputs = self._layers(tokens, layout, pattern, block_size, token_types, keep=True)
    assert outputs is not None
    return jnp.concatenate([first[None], outputs[:-1], last[None]])

  def _embedded(self, tokens, layout, token_types):
    """What goes into the first layer."""
    config = self.config
    tokens = constrain(tokens, "tokens", ("lookup", "length"), config.rules)
    x = constrain(self.embed(tokens), "embedded tokens", ("lookup", "length", "embed"), config.rules)
    x = constrain(x, "embedded tokens", _HIDDEN, config.rules)
    if config.position_encoding == "learned":
      x = x + self.position_embed(layout.position)
    if config.token_types:
      x = x + self.type_embed(jnp.zeros_like(tokens) if token_types is None else token_types)
    return self.embed_norm(x) if config.norm_position == "post" else x

  def _layers(self, tokens, layout, pattern, block_size, token_types, aligned=False, noisy=0, keep=False):
    """The hidden states after the last norm, before the first layer, and (with `keep`) after every layer."""
    config = self.config
    x = self._embedded(tokens, layout, token_types)
    mix = attention_of(config, layout, pattern or config.pattern, block_size, aligned, noisy)
    definition, stacked = nnx.split(self.blocks)

    def layer(x, weights):
      x = nnx.merge(definition, weights)(x, layout.position, mix)
      return x, (x if keep else None)

    if config.remat != "none":
      layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[config.remat], prevent_cse=False)
    last, outputs = jax.lax.scan(layer, x, stacked)
    return self.final_norm(last) if config.norm_position == "pre" else last, x, outputs

  def output_features(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """What is multiplied with `unembedding()`: the hidden state itself, or BERT's transform of it."""
    return self.mlm(hidden) if self.config.head == "mlm" else hidden

  def unembedding(self) -> tuple[Float[Array, "V D"], Float[Array, "V"] | None]:
    """The output matrix and its bias.

    Raises:
      ValueError: the model has no output head.
    """
    if self.config.head == "none":
      raise ValueError("this model is an encoder without an output head (model.head is 'none'): it has no logits")
    table = self.embed if self.config.tie_embeddings else self.unembed
    bias = self.mlm.bias.get_value() if self.config.head == "mlm" else None
    return table.embedding.get_value(), bias

  def logits(self, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Float32 logits over all `config.vocab_size` rows, padding rows included."""
    return self.project(self.output_features(hidden))

  def project(self, features: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Float32 logits of `output_features`."""
    matrix, bias = self.unembedding()
    logits = jnp.einsum("...d,vd->...v", features, matrix.astype(features.dtype), preferred_element_type=jnp.float32)
    if logits.ndim == 3:
      logits = constrain(logits, "logits", ("batch", "canvas", "vocab"), self.config.rules)
    return logits if bias is None else logits + bias.astype(jnp.float32).reshape((1,) * (logits.ndim - 1) + (-1,))


# --- parameters as a plain nested dict ---


@functools.lru_cache(maxsize=64)
def _abstract(config: TransformerConfig) -> tuple[nnx.GraphDef, nnx.State]:
  model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))
  definition, state, _ = nnx.split(model, nnx.Param, ...)
  return definition, state


def abstract_params(config: TransformerConfig) -> Params:
  """Shapes and dtypes of the parameters; nothing is allocated."""
  return nnx.to_pure_dict(_abstract(config)[1])


def logical_axes(config: TransformerConfig) -> dict[str, Any]:
  """Every parameter's logical axes, as tuples in the tree of `abstract_params`; stacked ones begin with "layers"."""

  def names(variable: nnx.Variable) -> tuple[str, ...]:
    axes = variable.get_metadata("axes")
    return ("layers",) * (len(variable.shape) - len(axes)) + tuple(axes)

  state = _abstract(config)[1]
  return nnx.to_pure_dict(jax.tree.map(names, state, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def init_params(config: TransformerConfig, key: Key[Array, ""]) -> Params:
  """Fresh parameters. Jit it with output shardings to create them sharded, never whole on one device."""
  model = Transformer(config, rngs=nnx.Rngs(params=key))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def bind(config: TransformerConfig, params: Params) -> Transformer:
  """The model with these parameters: cheap, meant to be called inside a jitted function."""
  definition, state = _abstract(config)
  state = jax.tree.map(lambda x: x, state)  # a copy: the cached one stays abstract
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(definition, state)


def count_params(config: TransformerConfig) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
