"""The DocID index as a value: what it scores, what it says of itself, and that it survives a save."""

import numpy as np
import pytest

from diffgr_jax.docid.index import DocIdIndex

PAD, EOS = 0, 2


@pytest.fixture
def index():
  codes = np.array([[7, 8, EOS, PAD], [9, EOS, PAD, PAD], [5, 6, 7, EOS]], np.int32)
  return DocIdIndex(codes, ("a", "b", "c"), ("Seven eight", "Nein", "Čapek"), EOS, PAD, told_apart=1)


def test_scored_is_tokens_and_eos(index):
  assert index.scored.tolist() == [[True, True, True, False], [True, True, False, False], [True] * 4]
  assert index.canvas_length == 4


def test_summary_is_one_line_of_figures(index):
  assert index.summary() == (
    "DocID index: 3 documents, canvas of 4 tokens, 3.0 used on average, 1 told apart by an ordinal"
  )


def test_saved_and_loaded_it_is_the_same(index, tmp_path):
  index.save(tmp_path / "docid")
  loaded = DocIdIndex.load(tmp_path / "docid")
  assert (loaded.codes == index.codes).all()
  assert loaded.codes.dtype == np.int32
  for name in ("doc_ids", "titles", "eos_id", "pad_id", "told_apart"):
    assert getattr(loaded, name) == getattr(index, name)


def test_rows_ids_and_titles_must_match(index):
  with pytest.raises(ValueError, match="3 rows, 2 ids, 3 titles"):
    DocIdIndex(index.codes, ("a", "b"), index.titles, EOS, PAD)


def test_log_frequency_is_the_share_of_documents_with_a_token_at_a_position():
  codes = np.array([[5, 6, 2, 0], [5, 7, 2, 0], [8, 2, 0, 0], [5, 6, 9, 2]], np.int32)
  index = DocIdIndex(codes, tuple("abcd"), tuple("abcd"), eos_id=2, pad_id=0)
  table = index.log_frequency(10)
  assert table.shape == (4, 10)
  for place in range(4):
    for token in range(10):
      share = np.mean(codes[:, place] == token)
      np.testing.assert_allclose(table[place, token], np.log(share) if share else 0.0, rtol=1e-6)
