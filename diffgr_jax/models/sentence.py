"""A sentence encoder out of its folder: texts in, vectors out (MiniLM: at most 128 pieces, "title. text")."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
import numpy as np

from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.models.encoder import encode_texts
from diffgr_jax.models.hf_weights import load_hf

PIECES = 128  # what MiniLM was trained with


class SentenceEncoder:
  """An encoder and its tokenizer, read from a Hugging Face folder."""

  def __init__(self, folder: str | Path):
    self._spec, self._params = load_hf(folder)
    self._tokenizer = HfTokenizer(folder)

  def vectors(self, texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Vectors of length 1."""
    return encode_texts(self._params, self._spec.config, self._tokenizer, list(texts), max_length=PIECES)

  def documents(self, titles: Sequence[str], texts: Sequence[str]) -> Float[np.ndarray, "N D"]:
    """Vectors of documents."""
    return self.vectors([f"{title}. {text}" for title, text in zip(titles, texts, strict=True)])
