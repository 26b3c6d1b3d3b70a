"""Vectors of documents and of their titles, against sums written out."""

import numpy as np
import pytest

from diffgr_jax.data.records import Document
from diffgr_jax.training import document_vectors as module
from diffgr_jax.training.document_vectors import document_vectors, with_titles

_DOCUMENTS = [Document(doc_id=f"d{i}", title=f"title {i}", text=f"words of text {i}") for i in range(4)]


class _Encoder:
  """Draws the vector of a text from its letters."""

  def __init__(self, folder):
    self.folder = folder

  def vectors(self, texts):
    return np.stack([np.random.default_rng(list(text.encode())).normal(size=6) for text in texts])


@pytest.fixture
def encoder(monkeypatch):
  monkeypatch.setattr(module, "SentenceEncoder", _Encoder)
  monkeypatch.setattr(module, "pretrained_folder", lambda name: name)
  return _Encoder("")


def test_titles_are_added_by_weight_between_unit_vectors(encoder):
  texts = np.random.default_rng().normal(size=(4, 6)).astype(np.float32)
  got = with_titles(texts, "minilm", _DOCUMENTS, 0.3)
  for row, document in enumerate(_DOCUMENTS):
    title = encoder.vectors([document.title])[0]
    expected = texts[row] / np.linalg.norm(texts[row]) + 0.3 * title / np.linalg.norm(title)
    np.testing.assert_allclose(got[row], expected / np.linalg.norm(expected), rtol=1e-5, atol=1e-6)


def test_titles_of_another_width_or_without_an_encoder_are_refused(encoder):
  with pytest.raises(ValueError, match=r"v\.npy has 5 columns, the encoder of the titles 6"):
    with_titles(np.ones((4, 5), np.float32), "v.npy", _DOCUMENTS, 0.3)
  with pytest.raises(ValueError, match="title_weight"):
    with_titles(np.ones((4, 6), np.float32), "lsa", _DOCUMENTS, 0.3)


def test_a_file_must_have_a_row_for_every_document(tmp_path):
  np.save(tmp_path / "v.npy", np.ones((3, 6), np.float32))
  with pytest.raises(ValueError, match=r"3 rows, but the corpus 4 documents"):
    document_vectors(str(tmp_path / "v.npy"), _DOCUMENTS)
