"""A key/value cache of fixed size: what was computed for tokens that no later token can change.

    slot        0  1  2  3  4  5  6  7        rows are left-padded to one width: all write at the same slots
    row 0       .  a  b  c  d  e              segment 0 marks padding and slots not written yet: nothing valid sees them
    row 1       p  q  r  s  t  u              position counts valid tokens only, whatever the padding

A pass (`inference.extend`) writes the keys of its tokens and then reads all slots. Slots are written again where tokens
still change: a block being denoised is replaced at each pass, and stands once a pass was over its final tokens.
The cache is exact for causal and block_causal attention: no token there depends on one that comes later.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from diffgr_jax.models.attention import Layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.parallel.rules import constrain, split_of

AXES = (("batch", "kv_heads"), None, None)  # of keys and values


@struct.dataclass
class KVCache:
  """S slots a row: keys (after RoPE) and values of every layer, and what stands in them.

  Rows and key heads are one dimension, BG = B x G: XLA on CPU then updates the arrays in place inside a loop (with two
  dimensions it copies each of them four times a pass). On a mesh that splits rows over R devices and heads over H,
  every device keeps one run of that dimension: the rows and heads of device (0, 0), then those of (0, 1), and so on
  (`merge`). Nothing but the order changes, and a device writes and reads its own run only.
  """

  keys: tuple[Float[Array, "BG S K"], ...]
  values: tuple[Float[Array, "BG S K"], ...]
  layout: Layout

  @property
  def length(self) -> Int[Array, "B"]:
    """Valid tokens in each row."""
    return jnp.sum(self.layout.segment > 0, axis=-1)


def init_cache(config: TransformerConfig, batch: int, slots: int) -> KVCache:
  """An empty cache, in the compute dtype."""
  shape = (batch * config.n_kv_heads, slots, config.head_dim)
  zero = lambda: constrain(jnp.zeros(shape, config.compute_dtype), "key/value cache", AXES, config.rules)
  zeros = lambda: tuple(zero() for _ in range(config.n_layers))
  empty = jnp.zeros((batch, slots), jnp.int32)
  return KVCache(zeros(), zeros(), Layout(empty, jnp.zeros_like(empty), jnp.zeros_like(empty)))


def cache_split(config: TransformerConfig) -> tuple[int, int]:
  """Over how many devices the mesh in force splits the rows, and the key heads: (1, 1) without a mesh."""
  return split_of("batch", config.rules), split_of("kv_heads", config.rules)


def merge(x: Shaped[Array, "B G *rest"], split: tuple[int, int] = (1, 1)) -> Shaped[Array, "BG *rest"]:
  """Rows and heads as one dimension, device after device: each device's part of it is what it holds of `x`.

  Raises:
    ValueError: rows or heads that the mesh does not divide.
  """
  (rows, heads), (batch, groups, *rest) = split, x.shape
  if batch % rows or groups % heads:
    raise ValueError(
      f"key/value cache: its {batch} rows and {groups} key heads cannot be split over {rows} and {heads} devices"
    )
  x = x.reshape(rows, batch // rows, heads, groups // heads, *rest)
  return x.swapaxes(1, 2).reshape(batch * groups, *rest)


def unmerge(x: Shaped[Array, "BG *rest"], batch: int, split: tuple[int, int] = (1, 1)) -> Shaped[Array, "B G *rest"]:
  """`merge`, undone."""
  (rows, heads), rest = split, x.shape[1:]
  groups = x.shape[0] // batch
  x = x.reshape(rows, heads, batch // rows, groups // heads, *rest)
  return x.swapaxes(1, 2).reshape(batch, groups, *rest)


def put(
  held: Float[Array, "BG S K"],
  fresh: Float[Array, "B G T K"],
  offset: Int[Array, ""] | Int[Array, "B"] | int,
  writes: Bool[Array, "B T"] | None = None,
  split: tuple[int, int] = (1, 1),
) -> Float[Array, "BG S K"]:
  """Puts the keys or values of T tokens into slots offset .. offset + T - 1.

  Args:
    held: what the slots hold; donate it (or use it no more) and the write is in place.
    fresh: of the tokens.
    offset: first slot; one number for all rows (the quick way), or one a row.
    writes: False where a slot keeps what it holds.
    split: see `cache_split`.
  """
  rows = fresh.shape[:2]
  offset = jnp.asarray(offset, jnp.int32)
  if offset.ndim:
    offset = merge(jnp.broadcast_to(offset[:, None], rows), split)
  if writes is not None:
    writes = merge(jnp.broadcast_to(writes[:, None], (*rows, *writes.shape[1:])), split)[..., None]
  return _write(held, merge(fresh, split).astype(held.dtype), offset, writes)


def put_layout(
  held: Layout, fresh: Layout, offset: Int[Array, ""] | Int[Array, "B"] | int, writes: Bool[Array, "B T"] | None = None
) -> Layout:
  """The same for what stands in the slots."""
  return jax.tree.map(lambda old, new: _write(old, new, jnp.asarray(offset, jnp.int32), writes), held, fresh)


def _write(held: Array, fresh: Array, offset: Array, writes: Array | None) -> Array:
  """Writes rows of `fresh` along axis 1 of `held`."""
  if writes is not None:
    fresh = jnp.where(writes, fresh, _read(held, offset, fresh.shape[1]))
  if offset.ndim == 0:
    return jax.lax.dynamic_update_slice_in_dim(held, fresh, offset, axis=1)
  return jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0))(held, fresh, offset)


def _read(held: Array, offset: Array, length: int) -> Array:
  if offset.ndim == 0:
    return jax.lax.dynamic_slice_in_dim(held, offset, length, axis=1)
  return jax.vmap(lambda old, at: jax.lax.dynamic_slice_in_dim(old, at, length, axis=0))(held, offset)
