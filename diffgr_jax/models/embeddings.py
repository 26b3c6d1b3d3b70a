"""Giving a pretrained model other token rows: DocID codes, a MASK, or the row order of a vocabulary.

    pretrained rows   0 1 2 3 .. V-1                      new rows start at the mean of the pretrained ones (or at small
    another model     3 0 V-1 .. new new new | padding    normal values); padding fills up to a multiple of 128

Every array with a vocabulary axis goes along: the embedding, an untied output matrix, BERT's output bias. Padding rows
have logits like any other: whoever samples bans the rows from `Vocabulary.size` on.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params

ROW_MULTIPLE = 128  # for the tensor axis of a mesh
NEW = -1  # in `source`: a row that the pretrained model does not have


def remap_embeddings(
  params: Params,
  config: TransformerConfig,
  source: Int[np.ndarray, "R"],
  *,
  init: str = "mean",
  key: Key[Array, ""] | None = None,
) -> tuple[Params, TransformerConfig]:
  """Builds token rows out of pretrained ones.

  Args:
    params: pretrained parameters.
    config: of the pretrained model.
    source: for each new row the pretrained row to copy, or `NEW`.
    init: what `NEW` and padding rows hold: "mean" (of the pretrained rows, so that the logits of new tokens start
      average) or "normal" (mean and standard deviation of the pretrained rows, column by column; needs `key`).
    key: for "normal".

  Returns:
    Parameters and config with len(source) rows, rounded up to a multiple of 128.

  Raises:
    ValueError: a source row that does not exist, or an unknown `init`.
  """
  source = np.asarray(source)
  if source.size and not (source.min() >= NEW and source.max() < config.vocab_size):
    wrong = source[(source < NEW) | (source >= config.vocab_size)][0]
    raise ValueError(f"source row {wrong} is not in 0..{config.vocab_size - 1}, the rows of the pretrained model")
  if init not in ("mean", "normal") or (init == "normal" and key is None):
    raise ValueError(f"init is mean, or normal with a key, not {init!r}")
  rows = -(-len(source) // ROW_MULTIPLE) * ROW_MULTIPLE
  padded = np.concatenate([source, np.full(rows - len(source), NEW)]).astype(np.int32)
  draw = None if init == "mean" else key
  out = dict(params)
  out["embed"] = {"embedding": _remap_rows(params["embed"]["embedding"], padded, draw)}
  if "unembed" in params:
    draw = None if draw is None else jax.random.fold_in(draw, 1)
    out["unembed"] = {"embedding": _remap_rows(params["unembed"]["embedding"], padded, draw)}
  if "mlm" in params:
    bias = params["mlm"]["bias"]
    out["mlm"] = {**params["mlm"], "bias": _remap_rows(bias[:, None], padded, None)[:, 0]}
  return out, dataclasses.replace(config, vocab_size=rows)


def _remap_rows(table: Float[Array, "V D"], source: Int[np.ndarray, "R"], key: Key[Array, ""] | None):
  fresh = jnp.mean(table.astype(jnp.float32), axis=0, keepdims=True)
  if key is not None:
    deviation = jnp.std(table.astype(jnp.float32), axis=0, keepdims=True)
    fresh = fresh + deviation * jax.random.normal(key, (len(source), table.shape[1]))
  copied = jnp.take(table, jnp.maximum(source, 0), axis=0)
  return jnp.where((source == NEW)[:, None], fresh.astype(table.dtype), copied)


def grow_embeddings(
  params: Params,
  config: TransformerConfig,
  new_rows: int,
  init: str = "mean",
  *,
  key: Key[Array, ""] | None = None,
) -> tuple[Params, TransformerConfig]:
  """Adds `new_rows` rows behind the pretrained ones, then padding up to a multiple of 128. See `remap_embeddings`."""
  if new_rows < 0:
    raise ValueError(f"new_rows is at least 0, not {new_rows}")
  source = np.concatenate([np.arange(config.vocab_size), np.full(new_rows, NEW)])
  return remap_embeddings(params, config, source, init=init, key=key)
