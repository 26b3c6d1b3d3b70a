"""Codes that name words, against the heaviest piece found by looking at each."""

import math

import numpy as np
import pytest

from diffgr_jax.docid.words import WordCoder, fit_word_coder, piece_codes

PIECES, LEVELS, CODES = 40, 3, 6


def drawn_documents(seed=None, count=30):
  rng = np.random.default_rng(seed)
  titles = [rng.integers(0, PIECES, rng.integers(0, 4)).tolist() for _ in range(count)]
  return titles, [[*title, *rng.integers(0, PIECES, rng.integers(0, 12)).tolist()] for title in titles]


def test_a_code_is_that_of_the_heaviest_piece_of_its_level():
  titles, texts = drawn_documents()
  coder = fit_word_coder(texts, PIECES, LEVELS, CODES)
  got = coder.encode(titles, texts)
  mean = sum(map(len, texts)) / len(texts)
  having = [sum(piece in text for text in texts) for piece in range(PIECES)]
  idf = [math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for n in having]
  for row, (title, text) in enumerate(zip(titles, texts, strict=True)):
    for level in range(LEVELS):
      weights = {}
      for piece in sorted({piece for piece in text if piece % LEVELS == level}):
        count = text.count(piece)
        saturated = count / (count + 0.9 * (1 - 0.4 + 0.4 * len(text) / mean))
        weights[piece] = idf[piece] * (saturated + (piece in title))
      best = max(weights.values(), default=0.0)
      allowed = {1 + piece // LEVELS % (CODES - 1) for piece, weight in weights.items() if weight >= best - 1e-6}
      assert got[row, level] in (allowed or {0})


def test_every_code_of_every_level_but_none_has_its_share_of_the_pieces():
  level, code = piece_codes(np.arange(PIECES), LEVELS, CODES)
  found = set(zip(level.tolist(), code.tolist(), strict=True))
  assert found == {(level, code) for level in range(LEVELS) for code in range(1, CODES)}
  counts = np.bincount(level * CODES + code)
  assert set(counts[counts > 0].tolist()) <= {2, 3}


def test_a_piece_of_the_title_wins_over_one_as_rare():
  coder = WordCoder(1, 50, np.ones(PIECES, np.float32), 4.0)
  assert coder.encode([[7]], [[7, 3, 3, 3]]).tolist() == [[8]]
  assert coder.encode([[]], [[7, 3, 3, 3]]).tolist() == [[4]]
  assert coder.encode([[]], [[]]).tolist() == [[0]]


def test_other_documents_get_codes_by_the_same_counts_and_arrays_keep_them():
  coder = fit_word_coder(drawn_documents(1)[1], PIECES, LEVELS, CODES)
  titles, texts = drawn_documents(2)
  again = WordCoder.from_arrays(coder.arrays())
  np.testing.assert_array_equal(again.encode(titles, texts), coder.encode(titles, texts))
  np.testing.assert_array_equal(again.encode(titles[3:5], texts[3:5]), coder.encode(titles, texts)[3:5])


def test_what_cannot_be_coded_is_said():
  with pytest.raises(ValueError, match="there are none"):
    fit_word_coder([], PIECES, LEVELS, CODES)
  with pytest.raises(ValueError, match="piece 40 is not among the tokenizer's 40"):
    fit_word_coder([[40]], PIECES, LEVELS, CODES)
  with pytest.raises(ValueError, match="not 0 levels of 6"):
    fit_word_coder([[1]], PIECES, 0, CODES)
  with pytest.raises(ValueError, match="2 codes a level, not 3 levels of 1"):
    fit_word_coder([[1]], PIECES, LEVELS, 1)
  coder = fit_word_coder([[1]], PIECES, LEVELS, CODES)
  with pytest.raises(ValueError, match="a title a document, not 1 of 2"):
    coder.encode([[1]], [[1], [2]])
