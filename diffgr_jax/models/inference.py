"""The transformer as decoders run it: against a cache, layer after layer, features first.

`Transformer` (transformer.py) is laid out for training: stacked layers under a scan, token-major activations. A decoder
reads all weights to produce a few tokens, so here everything serves the reading:

    layers      a tuple of trees, unrolled: a scan copies each layer's slice out of the stack before it multiplies
    kernels     [out, in], and activations [features, tokens]: for 2 to 64 tokens a matrix product W x of this shape
                takes half the time of x W on a CPU (docs/decoding.md), and elsewhere the layout is free
    cache       the tokens' keys are written first, then one attention reads all slots: XLA updates in place

`decoding_params` lays parameters out so; every function here takes those, and the values are those of `Transformer`, to
float32 rounding (tests/models/inference_test.py holds them to it in every family).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.models.attention import Layout, attention_mask, rope_angles, rotate_features
from diffgr_jax.models.cache import AXES, KVCache, cache_split, merge, put, put_layout, unmerge
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.lora import merge as merge_adapters
from diffgr_jax.models.lora import without_adapters
from diffgr_jax.models.transformer import Params, logical_axes
from diffgr_jax.parallel.rules import constrain

_FEATURES_FIRST_TO = 32  # tokens; above it, turning their logits around costs more than it saves (measured on a CPU)

_HIDDEN = ("features", "batch")  # of [D, M]: rows outermost, so that the mesh splits M as it splits them

DecodingParams = dict[str, Any]  # Params with "blocks" as a tuple of layers, and kernels as [out, in]


def decoding_params(config: TransformerConfig, params: Params | DecodingParams) -> DecodingParams:
  """Lays parameters out for decoding: a copy of them, adapters merged. What is laid out already is returned as it is.

  Decoders call this themselves, once a call, inside their jit. Who decodes the same weights often calls it once, under
  `jax.jit`, and passes the result wherever a decoder takes parameters.
  """
  if is_laid_out(params):
    return params
  params = merge_adapters(config, params)
  layers = tuple(jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(config.n_layers))
  turn = lambda path, x: x.T if path[-1] == jax.tree_util.DictKey("kernel") else x
  return jax.tree_util.tree_map_with_path(turn, {**params, "blocks": layers})


def decoding_axes(config: TransformerConfig) -> DecodingParams:
  """Logical axes of every parameter, laid out by `decoding_params`."""
  axes = logical_axes(without_adapters(config))
  names = lambda change, tree: jax.tree_util.tree_map_with_path(change, tree, is_leaf=lambda x: isinstance(x, tuple))
  layer = names(lambda _, names: names[1:], axes["blocks"])
  turn = lambda path, names: names[::-1] if path[-1] == jax.tree_util.DictKey("kernel") else names
  return {**names(turn, {**axes, "blocks": None}), "blocks": (names(turn, layer),) * config.n_layers}


def is_laid_out(params: Params | DecodingParams) -> bool:
  return isinstance(params["blocks"], tuple)


def extend(
  config: TransformerConfig,
  params: DecodingParams,
  tokens: Int[Array, "B T"],
  layout: Layout,
  cache: KVCache,
  offset: Int[Array, ""] | Int[Array, "B"] | int,
  *,
  pattern: str | None = None,
  block_size: int = 1,
  mask: Bool[Array, "B T S"] | None = None,
  writes: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache]:
  """Hidden states of tokens that follow a cache, and the cache with their keys and values in it.

  Slots that are written again are replaced, so a block that still changes is written at each of its passes; a caller
  that must not change the cache goes on with its own.

  Args:
    config: of the model.
    params: laid out by `decoding_params`.
    tokens: ids below `config.vocab_size`.
    layout: position and segment of every token.
    cache: keys and values of what came before; donate it (or use it no more) and the update is in place.
    offset: slot of the first token; one number for all rows (the quick way), or one a row.
    pattern: attention pattern; None takes the config's.
    block_size: tokens a block, for block_causal.
    mask: which slots each token sees, its own among them; None: what the pattern says of all slots written so far.
    writes: False where a slot keeps what it holds; None: all tokens are written.
  """
  (batch, length), post, split = tokens.shape, config.norm_position == "post", cache_split(config)
  stored = lambda x: constrain(x, "key/value cache", AXES, config.rules)
  written = put_layout(cache.layout, layout, offset, writes)
  if mask is None:
    mask = attention_mask(pattern or config.pattern, layout, written, block_size)
  turned = rope_angles(layout.position.reshape(-1), config.head_dim, config.rope_theta)
  x = _embedded(config, params, tokens, layout)
  keys, values = [], []
  for layer, old_keys, old_values in zip(params["blocks"], cache.keys, cache.values, strict=True):
    heads = _heads(config, layer["attention"], x if post else _norm(config, layer["attention_norm"], x), turned, batch)
    query, key, value = heads
    keys.append(stored(put(old_keys, key, offset, writes, split)))
    values.append(stored(put(old_values, value, offset, writes, split)))
    mixed = _linear(config, layer["attention"]["out"], attend(query, keys[-1], values[-1], mask, split))
    if post:
      x = _norm(config, layer["attention_norm"], x + mixed)
      x = _norm(config, layer["mlp_norm"], x + _mlp(config, layer["mlp"], x))
    else:
      x = x + mixed
      x = x + _mlp(config, layer["mlp"], _norm(config, layer["mlp_norm"], x))
    x = constrain(x, "hidden states", _HIDDEN, config.rules)
  x = x if post else _norm(config, params["final_norm"], x)
  return x.reshape(-1, batch, length).transpose(1, 2, 0), KVCache(tuple(keys), tuple(values), written)


def logits(config: TransformerConfig, params: DecodingParams, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
  """Float32 logits over all `config.vocab_size` rows, padding rows included.

  Raises:
    ValueError: the model has no output head.
  """
  if config.head == "none":
    raise ValueError("this model is an encoder without an output head (model.head is 'none'): it has no logits")
  batch, length, width = hidden.shape
  x, bias = hidden.transpose(2, 0, 1).reshape(width, -1), None
  if config.head == "mlm":
    mlm = params["mlm"]
    x = _norm(config, mlm["norm"], jax.nn.gelu(_linear(config, mlm["dense"], x), approximate=False))
    bias = mlm["bias"]
  matrix = params["embed" if config.tie_embeddings else "unembed"]["embedding"]
  how: dict[str, Any] = dict(preferred_element_type=jnp.float32)
  # The barriers keep XLA from folding a transposition into the product, which then takes up to ten times as long.
  if batch * length > _FEATURES_FIRST_TO:
    out = jnp.einsum("md,vd->mv", jax.lax.optimization_barrier(x.T), matrix.astype(x.dtype), **how)
  else:
    out = jax.lax.optimization_barrier(jnp.einsum("vd,dm->vm", matrix.astype(x.dtype), x, **how)).T
  if bias is not None:
    out = out + bias.astype(jnp.float32)[None]
  return constrain(out.reshape(batch, length, -1), "logits", ("batch", None, "vocab"), config.rules)


def code_logits(
  params: DecodingParams, query: Float[Array, "B D"], hidden: Float[Array, "B T D"], level: Int[Array, ""] | int
) -> Float[Array, "B T K"]:
  """Float32 logits of the codes of one level, by the code head (code_head.py).

  Args:
    params: of a model with a code head.
    query: of length 1.
    hidden: what each logit is read from.
    level: of the DocID.
  """
  head = params["code_head"]
  of_level = lambda name: jax.lax.dynamic_index_in_dim(head[name], level, keepdims=False).astype(hidden.dtype)
  how: dict[str, Any] = dict(preferred_element_type=jnp.float32)
  dense = jnp.einsum("bd,kd->bk", query.astype(hidden.dtype), of_level("centroids"), **how)
  scale = head["scale"].astype(jnp.float32)[:, None, None]
  return scale * dense[:, None] + jnp.einsum("btd,kd->btk", hidden, of_level("rows"), **how)


# --- parts; x is [features, tokens], tokens row after row ---


def _linear(config: TransformerConfig, weights: Params, x: Float[Array, "I M"]) -> Float[Array, "O M"]:
  dtype = config.compute_dtype
  out = jnp.einsum("oi,im->om", weights["kernel"].astype(dtype), x.astype(dtype))
  return out + weights["bias"].astype(dtype)[:, None] if "bias" in weights else out


def _norm(config: TransformerConfig, weights: Params, x: Array, axis: int = 0) -> Array:
  """RMSNorm or LayerNorm (the one that has a bias) over one axis, statistics in float32."""
  along = lambda weight: weight.astype(jnp.float32).reshape((1,) * axis + (-1,) + (1,) * (x.ndim - axis - 1))
  x = x.astype(jnp.float32)
  if "bias" in weights:
    x = x - x.mean(axis=axis, keepdims=True)
  x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=axis, keepdims=True) + config.norm_epsilon) * along(weights["scale"])
  return (x + along(weights["bias"]) if "bias" in weights else x).astype(config.compute_dtype)


def _mlp(config: TransformerConfig, weights: Params, x: Float[Array, "D M"]) -> Float[Array, "D M"]:
  wide = _linear(config, weights["up"], x)
  if config.mlp == "swiglu":
    wide = jax.nn.silu(_linear(config, weights["gate"], x)) * wide
  else:
    wide = jax.nn.gelu(wide, approximate=False)
  return _linear(config, weights["down"], constrain(wide, "MLP activations", ("mlp", "batch"), config.rules))


def _embedded(config: TransformerConfig, params: DecodingParams, tokens, layout: Layout) -> Float[Array, "D M"]:
  rows = lambda name, index: jnp.take(params[name]["embedding"], index.reshape(-1), axis=0)
  x = rows("embed", constrain(tokens, "tokens", ("lookup", None), config.rules)).astype(config.compute_dtype)
  if config.position_encoding == "learned":
    x = x + rows("position_embed", layout.position).astype(x.dtype)
  if config.token_types:
    x = x + params["type_embed"]["embedding"][:1].astype(x.dtype)
  return _norm(config, params["embed_norm"], x.T) if config.norm_position == "post" else x.T


def _heads(
  config: TransformerConfig, weights: Params, x: Float[Array, "D M"], angles: tuple[Array, Array], batch: int
) -> tuple[Float[Array, "B G Q K"], Float[Array, "B G T K"], Float[Array, "B G T K"]]:
  """Queries (Q: the heads of a group, T tokens each), keys and values, normalised and rotated."""
  groups, width, length = config.n_kv_heads, config.head_dim, x.shape[1] // batch

  def project(part: str, heads: int) -> Float[Array, "H K M"]:
    out = _linear(config, weights[part], x).reshape(heads, width, -1)
    return _norm(config, weights[f"{part}_norm"], out, axis=1) if f"{part}_norm" in weights else out

  turn = (lambda x: rotate_features(x, angles)) if config.position_encoding == "rope" else (lambda x: x)
  query = turn(project("query", config.n_heads)).reshape(groups, -1, width, batch, length)
  rows_first = lambda x: x.reshape(groups, width, batch, length).transpose(2, 0, 3, 1)
  key, value = rows_first(turn(project("key", groups))), rows_first(project("value", groups))
  query = query.transpose(3, 0, 1, 4, 2).reshape(batch, groups, -1, width)
  place = lambda what, x: constrain(x, f"attention {what}", ("batch", "kv_heads", None, None), config.rules)
  return place("queries", query), place("keys", key), place("values", value)


def attend(
  query: Float[Array, "B G Q K"],
  keys: Float[Array, "BG S K"],
  values: Float[Array, "BG S K"],
  mask: Bool[Array, "B T S"],
  split: tuple[int, int] = (1, 1),
) -> Float[Array, "F M"]:
  """`attention.attend` over all slots of a cache, heads' outputs as features (F = heads x K)."""
  (batch, groups, queries, width), (_, length, slots) = query.shape, mask.shape
  query = merge(query, split)
  scores = jnp.einsum("nqk,nsk->nqs", query, keys, preferred_element_type=jnp.float32) * width**-0.5
  scores = unmerge(scores, batch, split).reshape(batch, groups, -1, length, slots)
  scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = merge(weights.sum(axis=-1).reshape(batch, groups, queries, 1), split)
  weights = merge(weights.reshape(batch, groups, queries, slots), split).astype(values.dtype)
  out = jnp.einsum("nqs,nsk->nqk", weights, values, preferred_element_type=jnp.float32) / total
  out = unmerge(out, batch, split).reshape(batch, groups, -1, length, width).transpose(1, 2, 4, 0, 3)
  return out.reshape(-1, batch * length).astype(query.dtype)
