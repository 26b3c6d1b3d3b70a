"""Rows of a vocabulary over a tokenizer.json, and the pretrained rows they start from."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffgr_jax.data.pretrained_vocab import NEW_ROW, pretrained_vocabulary, source_rows
from diffgr_jax.data.vocab import Vocabulary, train_vocabulary

TEXTS = ["joining path components", "a path joins a path", "components of paths, joined"] * 3


@pytest.fixture
def vocabulary(tmp_path):
  tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece()
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials))
  tokenizer.save(str(tmp_path / "tokenizer.json"))
  names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
  return pretrained_vocabulary(tmp_path, docid_levels=2, docid_codes=8)


def test_text_and_docids_share_the_rows(vocabulary):
  rows = vocabulary.encode("joining path components")
  assert vocabulary.decode(rows) == "joining path components"
  assert min(rows) >= 5
  assert vocabulary.size == 5 + vocabulary.tokenizer.size + 16
  assert vocabulary.padded_size == 128
  assert vocabulary.piece(vocabulary.docid_token(1, 7)) == "<d1_7>"


def test_it_is_saved_and_loaded(vocabulary, tmp_path):
  vocabulary.save(tmp_path / "saved")
  again = Vocabulary.load(tmp_path / "saved")
  assert again.encode_many(TEXTS) == vocabulary.encode_many(TEXTS)
  assert (source_rows(again) == source_rows(vocabulary)).all()


def test_source_rows_name_the_pretrained_row_of_everything(vocabulary):
  rows = source_rows(vocabulary)
  assert rows[[vocabulary.pad_id, vocabulary.bos_id, vocabulary.sep_id, vocabulary.mask_id]].tolist() == [0, 2, 3, 4]
  text = vocabulary.encode("joining path components")
  assert rows[text].tolist() == vocabulary.tokenizer.encode(["joining path components"])[0]
  assert (rows[-16:] == NEW_ROW).all()
  np.testing.assert_array_equal(rows[5:-16], np.arange(vocabulary.tokenizer.size))
  assert source_rows(vocabulary, mask_piece=7)[vocabulary.mask_id] == 7


def test_another_kind_of_tokenizer_has_no_pretrained_rows():
  trained = train_vocabulary(["join the path"], 300)
  with pytest.raises(ValueError, match=r"over a tokenizer.json has pretrained rows, not over SentencePieceTokenizer"):
    source_rows(trained)
