"""The vector of every document, by name of what makes it: what a quantiser is fitted to.

lsa          TF-IDF and truncated SVD of the corpus itself (data/lsa.py): no download; the space is the corpus' own
minilm       sentence vectors of MiniLM, or of the Hugging Face folder that is named
FILE.npy     a row a document, in corpus order

A text's vector says little of how its document is called, which is what questions are often about: `with_titles` adds a
share of the title's own vector.
"""

from collections.abc import Sequence

import numpy as np

from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.data.lsa import fit_lsa
from diffgr_jax.data.records import Document
from diffgr_jax.docid.vectors import read_vectors
from diffgr_jax.models.sentence import SentenceEncoder
from diffgr_jax.training.start import MINILM, pretrained_folder

LSA = "lsa"


def document_vectors(source: str, documents: Sequence[Document], *, width: int = 256, seed: int = 0) -> np.ndarray:
  """Vectors of a corpus: float32, or what the .npy holds (mapped, not read).

  Args:
    source: lsa, minilm, a Hugging Face folder, or a .npy.
    documents: the corpus, in order.
    width: of lsa's vectors, at most.
    seed: of lsa.

  Raises:
    ValueError: a corpus without words, or a .npy that is no matrix of one finite row a document.
    FileNotFoundError: no such file or folder.
  """
  if source.endswith(".npy"):
    vectors = read_vectors(source)
    if len(vectors) != len(documents):
      raise ValueError(f"{source} has {len(vectors)} rows, but the corpus {len(documents)} documents")
    return vectors
  titles, texts = [document.title for document in documents], [document.text for document in documents]
  if source == LSA:
    return fit_lsa(titles, texts, width=width, seed=seed).documents.astype(np.float32)
  return SentenceEncoder(pretrained_folder(source)).documents(titles, texts)


def with_titles(vectors: np.ndarray, source: str, documents: Sequence[Document], weight: float) -> np.ndarray:
  """Unit vectors of documents plus `weight` times the unit vectors of their titles, of length 1 again.

  Args:
    vectors: of `document_vectors`, a row a document.
    source: what made them: minilm or a Hugging Face folder, which then reads the titles too; a .npy is taken to be
      MiniLM's.
    documents: the corpus, in order.
    weight: of the title's vector.

  Raises:
    ValueError: lsa has no encoder of titles, or the encoder is of another width than the vectors.
  """
  if source == LSA:
    raise ValueError("--title_weight needs --vectors of a sentence encoder, not lsa, whose vectors hold the title")
  encoder = SentenceEncoder(pretrained_folder(MINILM if source.endswith(".npy") else source))
  titles = encoder.vectors([document.title for document in documents])
  if titles.shape != vectors.shape:
    raise ValueError(f"{source} has {vectors.shape[1]} columns, the encoder of the titles {titles.shape[1]}")
  return _of_length_one(_of_length_one(np.asarray(vectors, np.float32)) + weight * _of_length_one(titles))


def document_pieces(source: str, documents: Sequence[Document]) -> tuple[list[list[int]], list[list[int]], int]:
  """Word pieces of every title, of every title and text, and how many pieces the tokenizer has.

  Args:
    source: minilm or a Hugging Face folder, whose tokenizer it is; a .npy is taken to be MiniLM's.
    documents: the corpus, in order.
  """
  tokenizer = HfTokenizer(pretrained_folder(MINILM if source.endswith(".npy") else source))
  titles = tokenizer.encode([document.title for document in documents])
  return titles, tokenizer.encode([f"{document.title}. {document.text}" for document in documents]), tokenizer.size


def _of_length_one(rows: np.ndarray) -> np.ndarray:
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
