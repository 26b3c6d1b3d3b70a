"""A small causal model, random messages and packed batches of them, for the tests of stages."""

import jax.numpy as jnp
import numpy as np

from diffgr_jax.data.packing import Example, PackedRows, RowShape
from diffgr_jax.models.config import TransformerConfig

CAUSAL = TransformerConfig(
  vocab_size=48, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=16, qk_norm=True,
  alignment="shifted", pattern="causal",
)  # fmt: skip


def messages(count, seed=0):
  rng, made = np.random.default_rng(seed), []
  for _ in range(count):
    sizes = rng.integers(2, 5, 3)
    parts = np.repeat([0, 1, 2, 3], [*sizes, 1]).astype(np.int32)
    made.append(Example(rng.integers(5, 40, len(parts)).astype(np.int32), parts))
  return made


def packed(examples, rows=4, align=1, length=32, targets=24):
  stream = PackedRows(examples, RowShape(length, targets, align, pad_id=0), seed=0)
  batch = [stream[index] for index in range(rows)]
  return {name: jnp.asarray(np.stack([row[name] for row in batch])) for name in batch[0]}
