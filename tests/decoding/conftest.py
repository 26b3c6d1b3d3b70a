"""A toy model for the decoders: random tables, so that logits depend on the prompt and on every canvas position."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import abstract_params

VOCAB, LENGTH, MASK, PAD, EOS = 16, 6, 15, 0, 1
SIZE = 14  # rows from here on are padding; MASK is the last row


def denoise(params, prompt, canvas):
  positions = jnp.arange(canvas.shape[1])[None]
  logits = params["canvas"][positions, canvas].sum(axis=1) + params["prompt"][prompt].sum(axis=1)
  return logits.reshape(canvas.shape[0], LENGTH, -1)


def make_params(seed, scale=1.0):
  table, prompt = jax.random.split(jax.random.key(seed))
  width = LENGTH * VOCAB
  return {
    "canvas": scale * jax.random.normal(table, (LENGTH, VOCAB, width)),
    "prompt": scale * jax.random.normal(prompt, (VOCAB, width)),
  }


def make_inputs(seed, rows):
  """Returns prompt, canvas, row seeds and banned tokens; some canvas positions of odd rows are given."""
  rng = np.random.default_rng(seed)
  prompt = rng.integers(2, SIZE, (rows, 3)).astype(np.int32)
  canvas = np.full((rows, LENGTH), MASK, np.int32)
  canvas[1::2, 2] = 5
  banned = np.arange(VOCAB) >= SIZE
  banned[PAD + 2] = True
  return prompt, canvas, rng.integers(0, 1000, rows).astype(np.int32), banned


def make_codes(seed, documents, duplicates=2):
  """Returns DocIDs of varying length, EOS and PAD behind them, some of them equal; and which positions count."""
  rng = np.random.default_rng(seed)
  codes = np.full((documents, LENGTH), PAD, np.int32)
  for row in codes:
    size = rng.integers(2, LENGTH)
    row[:size] = rng.integers(3, 8, size)
    row[size] = EOS
  codes[documents - duplicates :] = codes[:duplicates]
  scored = np.cumsum(codes == EOS, axis=1) - (codes == EOS) == 0
  return codes, scored


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
  """These tests compile many tiny programs: leave out the optimisations, which take most of the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def toy():
  return SimpleNamespace(
    vocab=VOCAB,
    length=LENGTH,
    mask=MASK,
    pad=PAD,
    eos=EOS,
    denoise=denoise,
    params=make_params,
    inputs=make_inputs,
    codes=make_codes,
  )


CONFIG = TransformerConfig(
  vocab_size=24, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=4, d_ff=16, qk_norm=True, pattern="causal"
)


@pytest.fixture(scope="session")
def model():
  """A tiny transformer for the decoders with a cache: config, params, and ragged left-padded prompts."""

  def params(seed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.6, x.shape), jnp.float32), abstract_params(config))

  def prompts(lengths, seed=0, width=None):
    rng = np.random.default_rng(seed)
    width = width or max(lengths)
    tokens = np.zeros((len(lengths), width), np.int32)
    for row, length in zip(tokens, lengths, strict=True):
      row[width - length :] = rng.integers(1, 20, length)
    return tokens, np.arange(width)[None] >= width - np.array(lengths)[:, None]

  banned = np.arange(24) >= 22
  return SimpleNamespace(config=CONFIG, params=params, prompts=prompts, banned=banned, mask=23)
