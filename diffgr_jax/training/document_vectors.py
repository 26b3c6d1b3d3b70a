"""The vector of every document, by name of what makes it: what a quantiser is fitted to.

lsa          TF-IDF and truncated SVD of the corpus itself (data/lsa.py): no download; the space is the corpus' own
minilm       sentence vectors of MiniLM, or of the Hugging Face folder that is named
FILE.npy     a row a document, in corpus order
"""

from collections.abc import Sequence

import numpy as np

from diffgr_jax.data.lsa import fit_lsa
from diffgr_jax.data.records import Document
from diffgr_jax.docid.vectors import read_vectors
from diffgr_jax.models.sentence import SentenceEncoder
from diffgr_jax.training.start import pretrained_folder

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
