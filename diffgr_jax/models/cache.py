"""A key/value cache of fixed size: what was computed for tokens that no later token can change.

    slot        0  1  2  3  4  5  6  7        rows are left-padded to one width: all write at the same slots
    row 0       .  a  b  c  d  e              segment 0 marks padding and slots not written yet: nothing valid sees them
    row 1       p  q  r  s  t  u              position counts valid tokens only, whatever the padding

The model reads the cache and never writes it: `Transformer.extend` attends to [cache | its own tokens] and returns its
tokens' keys and values apart; `write` keeps those that are final. A denoising pass over a block that still changes
therefore leaves the cache as it is, and committing a block is one `dynamic_update_slice`.

The cache is exact for causal and block_causal attention: a token there depends on nothing that comes later.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.models.attention import Layout
from diffgr_jax.models.config import TransformerConfig


@struct.dataclass
class KeyValues:
  """Keys (after RoPE) and values of T tokens, in all N layers (or, inside a layer, in that one)."""

  keys: Float[Array, "*N B T G K"]
  values: Float[Array, "*N B T G K"]


@struct.dataclass
class KVCache:
  """S slots a row, and what stands in them."""

  held: KeyValues
  layout: Layout

  @property
  def length(self) -> Int[Array, "B"]:
    """Valid tokens in each row."""
    return jnp.sum(self.layout.segment > 0, axis=-1)


def init_cache(config: TransformerConfig, batch: int, slots: int) -> KVCache:
  """An empty cache, in the compute dtype."""
  shape = (config.n_layers, batch, slots, config.n_kv_heads, config.head_dim)
  zeros = lambda: jnp.zeros(shape, config.compute_dtype)
  empty = jnp.zeros((batch, slots), jnp.int32)
  return KVCache(KeyValues(zeros(), zeros()), Layout(empty, jnp.zeros_like(empty), jnp.zeros_like(empty, bool)))


def write(cache: KVCache, fresh: KeyValues, layout: Layout, offset: Int[Array, ""] | Int[Array, "B"] | int) -> KVCache:
  """Puts the keys and values of T tokens into slots offset .. offset + T - 1.

  Args:
    cache: the cache; donate it (or use it no more) and the write is in place.
    fresh: what `Transformer.extend` returned, or a slice of it.
    layout: the layout of these tokens; padding stays invisible.
    offset: first slot; one number for all rows (the quick way), or one a row.
  """
  offset = jnp.asarray(offset, jnp.int32)

  def put(old: Array, new: Array, batch_axis: int) -> Array:
    new = new.astype(old.dtype)
    if offset.ndim == 0:
      return jax.lax.dynamic_update_slice_in_dim(old, new, offset, axis=batch_axis + 1)
    row = lambda o, n, start: jax.lax.dynamic_update_slice_in_dim(o, n, start, axis=batch_axis)
    return jax.vmap(row, in_axes=(batch_axis, batch_axis, 0), out_axes=batch_axis)(old, new, offset)

  held = jax.tree.map(lambda old, new: put(old, new, 1), cache.held, fresh)
  return KVCache(held, jax.tree.map(lambda old, new: put(old, new, 0), cache.layout, layout))
