"""Which attention runs: the reference, Splash on TPU, cuDNN's flash attention on GPU.

    reference   any pattern, layout and dtype: dense scores (attention.py), of every pair unless what is hidden is known
                by its place: documents in order (`aligned`), noisy blocks before a clean stream (`noisy`)
    splash      TPU: a pattern is a rule on indices, computed inside the kernel; tiles without a visible pair are
                skipped, packing goes by segment ids. causal and bidirectional hold for any layout of whole documents
                in order; block_causal and two_stream ask that documents begin at multiples of the block size
                (`aligned`), for the kernel sees indices, not positions; prefix and prefix_causal are not served
    flash       GPU: scores are never stored, but masked tiles are not skipped, and the mask itself is dense;
                bfloat16 only

`auto` takes splash on TPU, flash on GPU in bfloat16, else the reference; and the reference where a kernel cannot serve.
Splash: jax.experimental.pallas.ops.tpu.splash_attention. Its masks are processed on the host, once a trace.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int
import numpy as np

from diffgr_jax.models.attention import (
  Layout,
  attend,
  attend_in_order,
  attend_two_stream,
  attention_mask,
  visible,
)
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.parallel.rules import constrain, partition_spec, split_of

_TILES = (512, 256, 128)  # rows and columns of a tile: the largest that divides the sequence
_BEHIND_PROMPT = ("prefix", "prefix_causal")  # patterns that no kernel serves: their canvases are short
_PAD_SEGMENT = -1  # of the positions that fill a sequence up to whole tiles

Mix = Callable[[Array, Array, Array], Array]  # queries, keys, values -> outputs


def attention_of(
  config: TransformerConfig,
  layout: Layout,
  pattern: str,
  block_size: int = 1,
  aligned: bool = False,
  noisy: int = 0,
) -> Mix:
  """The attention of a pass over whole sequences, as a function of queries, keys and values.

  Args:
    config: its `attention`, dtype and rules.
    layout: of the sequence.
    pattern: attention pattern.
    block_size: of the block patterns.
    aligned: the layout has whole documents in order, and every one begins at a multiple of `block_size` in the sequence
      (in both streams).
    noisy: of two_stream: the first so many tokens are whole noisy blocks, one after another, and the clean stream
      behind them is aligned; 0: nothing is known.

  Raises:
    ValueError: the kernel that the config asks for cannot serve.
  """
  kind = config.attention
  in_blocks = pattern in ("block_causal", "two_stream") and block_size > 1
  if kind == "auto":
    kind = kernel_for(jax.default_backend(), config.compute_dtype, pattern)
    kind = "reference" if kind == "splash" and in_blocks and not aligned else kind
  if kind == "splash":
    if pattern in _BEHIND_PROMPT:
      raise ValueError(f"model.attention 'splash' does not serve {pattern}, whose canvases are short: take 'reference'")
    if in_blocks and not aligned:
      raise ValueError(
        f"model.attention 'splash' serves {pattern} only where every document begins at a multiple of the block size"
        f" ({block_size}): lay documents out so and say aligned=True, or take 'reference'"
      )
    return functools.partial(splash, layout=layout, pattern=pattern, block_size=block_size, rules=config.rules)
  whole = split_of("length", config.rules) == 1  # parts of a sequence that is split would be moved
  if kind == "reference" and pattern == "two_stream" and noisy and whole:
    return functools.partial(attend_two_stream, layout=layout, noisy=noisy, block_size=block_size)
  mask = attention_mask(pattern, layout, layout, block_size)
  mask = constrain(mask, "attention mask", ("batch", "length", None), config.rules)
  if kind == "flash":
    if config.compute_dtype != "bfloat16":
      raise ValueError(f"model.attention 'flash' needs model.compute_dtype bfloat16, not {config.compute_dtype}")
    flash = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return lambda query, key, value: flash(query, key, value, mask=mask[:, None])
  if pattern in ("causal", "block_causal") and aligned and whole:
    return functools.partial(attend_in_order, mask=mask, step=block_size if in_blocks else 1)
  return functools.partial(attend, mask=mask)


def kernel_for(platform: str, compute_dtype: str, pattern: str) -> str:
  """What `auto` means on a platform of JAX: tpu, gpu (also cuda) or cpu."""
  if platform == "tpu":
    return "reference" if pattern in _BEHIND_PROMPT else "splash"
  return "flash" if platform in ("gpu", "cuda") and compute_dtype == "bfloat16" else "reference"


class PatternMask(splash_mask.Mask):
  """A pattern as a rule on indices, which Splash asks for each tile and computes inside partly visible ones."""

  def __init__(self, pattern: str, length: int, padded: int, block_size: int):
    self._rule = (pattern, length, padded, block_size)
    self.q_sequence = np.arange(padded, dtype=np.int32)
    self.mask_function = functools.partial(_visible_by_index, pattern, length, block_size)

  @property
  def shape(self) -> tuple[int, ...]:
    return (self._rule[2], self._rule[2])

  def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
    rows, columns = (self.q_sequence[one] for one in index)
    return np.asarray(self.mask_function(rows[:, None], columns[None, :]))

  def __eq__(self, other: object) -> bool:
    return isinstance(other, PatternMask) and self._rule == other._rule

  def __hash__(self) -> int:
    return hash((type(self), self._rule))


def _visible_by_index(pattern: str, length: int, block_size: int, query: Any, key: Any) -> Any:
  """`visible` where index stands for position; the second stream begins at half of `length`.

  Streams are numbers all the way: of two that come from comparisons Mosaic would compare the bits, which no TPU can.
  """
  if pattern != "two_stream":
    return visible(pattern, query, key, block_size)
  half = length // 2
  stream = lambda index: 1 - (index // half).clip(0, 1)  # what pads the sequence belongs to the second
  position = lambda index: index - half * (1 - stream(index))
  return visible(pattern, position(query), position(key), block_size, stream(query), stream(key))


@functools.lru_cache(maxsize=64)
def pattern_mask(pattern: str, length: int, padded: int, block_size: int) -> PatternMask:
  """One object for equal masks: kernels of equal masks then share a compiled program."""
  return PatternMask(pattern, length, padded, block_size)


def splash(
  query: Float[Array, "B T H K"],
  key: Float[Array, "B T G K"],
  value: Float[Array, "B T G K"],
  *,
  layout: Layout,
  pattern: str,
  block_size: int = 1,
  rules: Any = (),
  interpret: bool = False,
) -> Float[Array, "B T H K"]:
  """Attention by the Splash kernel; on a mesh, every device runs it on its rows, heads and queries.

  Args:
    query, key, value: after RoPE.
    layout: its segments; positions must be those that indices stand for (see the module's text).
    pattern: attention pattern.
    block_size: of the block patterns.
    rules: of the mesh in force.
    interpret: runs the kernel's program on any platform, slowly: for tests.
  """
  length, heads = query.shape[1], query.shape[2]
  parts = split_of("length", rules)
  padded = -(-length // (_TILES[-1] * parts)) * _TILES[-1] * parts
  tile = next(size for size in _TILES if padded % (size * parts) == 0)
  kernel = splash_kernel.make_splash_mha(
    splash_mask.MultiHeadMask([pattern_mask(pattern, length, padded, block_size)] * heads),
    block_sizes=splash_kernel.BlockSizes(**dict.fromkeys(_TILE_NAMES, tile)),
    head_shards=split_of("heads", rules),
    q_seq_shards=parts,
    interpret=interpret,
  )
  fill = ((0, 0), (0, 0), (0, padded - length), (0, 0))
  heads_first = lambda x: jnp.pad(x.transpose(0, 2, 1, 3), fill)
  segment = jnp.pad(layout.segment, fill[:1] + fill[2:3], constant_values=_PAD_SEGMENT)
  scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  arrays = heads_first(scaled), heads_first(key), heads_first(value), segment, segment
  out = _on_mesh(kernel, arrays, rules)
  return out[:, :, :length].transpose(0, 2, 1, 3)


_TILE_NAMES = (
  "block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq",
  "block_kv_dq",
)  # fmt: skip


def _on_mesh(kernel: splash_kernel.SplashAttentionKernel, arrays: tuple[Array, ...], rules: Any) -> Array:
  mesh = jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return _over_rows(kernel, *arrays)
  table = dict(rules)
  axes = (
    ("batch", "heads", "length", None),
    ("batch", "kv_heads", None, None),
    ("batch", "kv_heads", None, None),
    ("batch", "length"),
    ("batch", None),
  )
  specs = tuple(partition_spec(one, table) for one in axes)
  # The kernel carries what it knows of each tile, split as heads and queries are.
  of_kernel = kernel.manual_sharding_spec(
    jax.sharding.NamedSharding(mesh, PartitionSpec(*partition_spec(("heads", "length"), table)))
  )
  mapped = jax.shard_map(_over_rows, in_specs=(of_kernel, *specs), out_specs=specs[0], check_vma=False)
  return mapped(kernel, *arrays)


def _over_rows(
  kernel: splash_kernel.SplashAttentionKernel,
  query: Array,
  key: Array,
  value: Array,
  q_segment: Int[Array, "B Q"],
  k_segment: Int[Array, "B S"],
) -> Array:
  one: Any = lambda q, k, v, asks, answers: kernel(q, k, v, segment_ids=splash_kernel.SegmentIds(asks, answers))
  return jax.vmap(one)(query, key, value, q_segment, k_segment)
