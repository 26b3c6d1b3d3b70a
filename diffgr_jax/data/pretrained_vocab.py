"""A vocabulary over a pretrained model's tokenizer, and which of the model's embedding rows its rows start from.

tokenizer.json   [PAD] ... [CLS] [SEP] [MASK] ... the  ##ing            pieces 0 .. n-1
Vocabulary       [PAD] [BOS] [EOS] [SEP] [MASK] | pieces 0 .. n-1 | DocID tokens
source_rows        0    101   102   102   103   | 0 .. n-1        | NEW_ROW ...   (BERT's numbers)
"""

from pathlib import Path

from jaxtyping import Int
import numpy as np

from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.data.vocab import SPECIAL_TOKENS, Vocabulary

NEW_ROW = -1  # there is no pretrained row


def pretrained_vocabulary(folder: str | Path, docid_levels: int = 0, docid_codes: int = 0) -> Vocabulary:
  """The vocabulary over the tokenizer.json of a Hugging Face folder, with DocID tokens added.

  Raises:
    FileNotFoundError: the folder has no tokenizer.json.
  """
  return Vocabulary(HfTokenizer(folder), docid_levels, docid_codes)


def source_rows(vocabulary: Vocabulary, *, mask_piece: int | None = None) -> Int[np.ndarray, "V"]:
  """For every row in use, the pretrained row to start from, or `NEW_ROW`: what `remap_embeddings` takes.

  Args:
    vocabulary: over an `HfTokenizer`.
    mask_piece: the MASK of the pretrained model where the tokenizer's files name none (`mask_token_id` of its config).

  Raises:
    ValueError: the vocabulary stands over another kind of tokenizer.
  """
  tokenizer = vocabulary.tokenizer
  if not isinstance(tokenizer, HfTokenizer):
    raise ValueError(
      f"only a vocabulary over a tokenizer.json has pretrained rows, not over {type(tokenizer).__name__}"
    )
  rows = np.full(vocabulary.size, NEW_ROW, np.int32)
  specials = {
    vocabulary.pad_id: tokenizer.special_piece("pad"),
    vocabulary.bos_id: tokenizer.special_piece("bos"),
    vocabulary.eos_id: tokenizer.special_piece("eos"),
    vocabulary.sep_id: tokenizer.special_piece("sep"),
    vocabulary.mask_id: tokenizer.special_piece("mask") if mask_piece is None else mask_piece,
  }
  for row, piece in specials.items():
    rows[row] = NEW_ROW if piece is None else piece
  first = len(SPECIAL_TOKENS)
  rows[first : first + tokenizer.size] = np.arange(tokenizer.size)
  return rows
