"""The vocabulary: one row space, text that survives it, and identifiers that share pieces with words."""

import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.data.vocab import (
  SPECIAL_TOKENS,
  SentencePieceTokenizer,
  Vocabulary,
  split_identifiers,
  train_vocabulary,
)

TEXTS = [
  "Join one or more path components. The path is os.path.join of its components.",
  "A thread pool runs a task. The pool is a ThreadPoolExecutor; a task is a thread of the pool.",
  "Split the words of a text, and join the words. The words of path and thread and pool.",
] * 5


@pytest.fixture(scope="module")
def vocab():
  return train_vocabulary(TEXTS, 400, split_case=True, docid_levels=3, docid_codes=4)


def test_rows_are_laid_out_as_drawn(vocab):
  specials = [vocab.pad_id, vocab.bos_id, vocab.eos_id, vocab.sep_id, vocab.mask_id]
  assert specials == [0, 1, 2, 3, 4]
  assert [vocab.piece(row) for row in specials] == ["[PAD]", "[BOS]", "[EOS]", "[SEP]", "[MASK]"]
  docid = [vocab.docid_token(level, code) for level in range(3) for code in range(4)]
  assert docid == list(range(vocab.size - 12, vocab.size))
  assert [vocab.piece(row) for row in docid[:5]] == ["<d0_0>", "<d0_1>", "<d0_2>", "<d0_3>", "<d1_0>"]
  assert vocab.size == len(SPECIAL_TOKENS) + vocab.tokenizer.size + 12
  assert 0 <= vocab.padded_size - vocab.size < 128
  assert vocab.padded_size % 128 == 0
  assert vocab.piece(vocab.size) == "<unused>"


@pytest.mark.parametrize("level, code", [(3, 0), (0, 4), (-1, 0)])
def test_a_docid_token_that_does_not_exist(vocab, level, code):
  with pytest.raises(ValueError, match="3 levels of 4 codes"):
    vocab.docid_token(level, code)


def test_identifiers_share_their_pieces_with_words(vocab):
  def pieces(text):
    return [vocab.piece(row) for row in vocab.encode(text)]

  assert [piece for piece in pieces("path.join_words") if piece not in "._"] == pieces("path join words")
  assert pieces("ThreadPool") == pieces("thread pool")
  assert vocab.decode(vocab.encode("os.path.join")) == "os.path.join"
  assert vocab.decode(vocab.encode("OS.Path.JOIN")) == "os.path.join"
  assert vocab.decode(vocab.encode("__init__ is a.b. _x 3.14 .5 .")) == "__init__ is a.b. _x 3.14 .5 ."
  assert vocab.decode(vocab.encode("ThreadPoolExecutor")) == "thread pool executor"


def test_case_is_split_on_request_only():
  assert split_identifiers("HTMLParser.parseURLNow YouTube", True).count(" ") == 6
  assert split_identifiers("HTMLParser YouTube", False) == "HTMLParser YouTube"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("abcxyz._019", min_size=1), min_size=1).map(" ".join))
def test_lower_case_text_survives(vocab, text):
  assert vocab.decode(vocab.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_nothing_is_unknown(vocab, text):
  unknown = len(SPECIAL_TOKENS)  # sentencepiece's piece 0
  rows = vocab.encode(text)
  assert unknown not in rows
  assert all(len(SPECIAL_TOKENS) <= row < vocab.size - 12 for row in rows)
  vocab.decode(rows)


def test_decode_skips_specials_and_shows_docids(vocab):
  rows = [1, *vocab.encode("join the path"), 3, 4, vocab.docid_token(0, 2), vocab.docid_token(1, 3), 2, 0, 0]
  assert vocab.decode(np.array(rows)) == "join the path <d0_2> <d1_3>"
  with pytest.raises(ValueError, match=f"token {vocab.size} is outside"):
    vocab.decode([vocab.size])


def test_word_starts_are_the_words(vocab):
  rows = np.array(vocab.encode("Join the path components"))
  starts = np.flatnonzero(vocab.word_start[rows])
  words = [vocab.decode(part) for part in np.split(rows, starts[1:])]
  assert words == ["join", "the", "path", "components"]
  assert not vocab.word_start[: len(SPECIAL_TOKENS)].any()


def test_saved_and_pickled_it_is_the_same(vocab, tmp_path):
  vocab.save(tmp_path / "vocab")
  for other in (Vocabulary.load(tmp_path / "vocab"), pickle.loads(pickle.dumps(vocab))):
    assert other.size == vocab.size
    assert other.docid_token(2, 1) == vocab.docid_token(2, 1)
    assert other.encode("os.path.join a ThreadPool") == vocab.encode("os.path.join a ThreadPool")


def test_equal_texts_give_equal_models(vocab):
  again = train_vocabulary(iter(TEXTS), 400, split_case=True)
  assert isinstance(again.tokenizer, SentencePieceTokenizer)
  assert again.tokenizer.model == vocab.tokenizer.model


def test_a_small_corpus_gives_a_small_vocabulary():
  vocab = train_vocabulary(["a few words"], 50_000)
  assert vocab.size < 400
  assert vocab.decode(vocab.encode("quite other words")) == "quite other words"


def test_too_many_lines_are_sampled_by_seed():
  texts = [f"word{chr(97 + i % 26)}{chr(97 + i // 26)} " * 3 for i in range(200)]
  models = [train_vocabulary(texts, 400, seed=seed, max_lines=50).tokenizer.model for seed in (0, 0, 1)]
  assert models[0] == models[1] != models[2]


def test_what_cannot_be_trained_is_said():
  with pytest.raises(ValueError, match="hold no words"):
    train_vocabulary([" ", "\n"], 400)
  with pytest.raises(ValueError, match=r"vocabulary of 100 rows is too small.*at least 2"):
    train_vocabulary(["some words"], 100)
  with pytest.raises(ValueError, match="both be 0 or both positive"):
    train_vocabulary(["some words"], 400, docid_levels=2)
