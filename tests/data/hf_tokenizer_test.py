"""A tokenizer.json behind our protocol: a WordPiece and a byte-level one, made here."""

import json
import pickle

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffgr_jax.data.hf_tokenizer import HfTokenizer

TEXTS = ["joining path components", "a path joins a path", "components of paths, joined"] * 3


@pytest.fixture
def wordpiece(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wordpiece")
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials))
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=4)
  tokenizer.save(str(folder / "tokenizer.json"))
  names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": {"content": "[MASK]"}}
  (folder / "tokenizer_config.json").write_text(json.dumps(names))
  return HfTokenizer(folder)


@pytest.fixture
def bytelevel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("bytelevel")
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  tokenizer.train_from_iterator(
    TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
  )
  tokenizer.save(str(folder / "tokenizer.json"))
  (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
  return HfTokenizer(folder)


def test_long_texts_are_neither_cut_nor_padded(wordpiece):
  short, long = wordpiece.encode(["path", "path joins path components of a path"])
  assert len(short) == 1
  assert len(long) > 4
  assert wordpiece.decode(long) == "path joins path components of a path"


def test_pieces_show_where_words_start(wordpiece, bytelevel):
  for tokenizer in (wordpiece, bytelevel):
    text = " joining paths"
    shown = "".join(tokenizer.piece(number) for number in tokenizer.encode([text])[0])
    assert shown == "▁joining▁paths"
  assert wordpiece.piece(2) == "[CLS]"
  assert wordpiece.piece(10_000) == "<unused>"


def test_bytes_come_back_exactly(bytelevel):
  text = "Größe → 寸法\n\tjoin"
  assert bytelevel.decode(bytelevel.encode([text])[0]) == text


def test_special_tokens_by_role(wordpiece, bytelevel):
  roles = ("pad", "bos", "eos", "sep", "mask")
  assert [wordpiece.special_piece(role) for role in roles] == [0, 2, 3, 3, 4]


def test_one_token_may_play_several_roles(bytelevel):
  assert [bytelevel.special_piece(role) for role in ("pad", "bos", "eos", "sep", "mask")] == [0, 0, 0, 0, None]


def test_it_pickles_small_and_works_again(wordpiece):
  wordpiece.encode(["path"])
  data = pickle.dumps(wordpiece)
  assert len(data) < 300
  assert pickle.loads(data).encode(TEXTS) == wordpiece.encode(TEXTS)


def test_it_saves_what_it_needs(wordpiece, tmp_path):
  again = HfTokenizer.load(tmp_path, wordpiece.save(tmp_path))
  assert again.encode(TEXTS) == wordpiece.encode(TEXTS)
  assert again.special_piece("mask") == 4


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"there is no such tokenizer"):
    HfTokenizer(tmp_path)
