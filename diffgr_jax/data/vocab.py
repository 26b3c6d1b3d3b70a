"""The vocabulary: special tokens, text pieces and DocID tokens in one row space.

    row   0      1      2      3      4       5 ... 5+n-1       5+n ...                 padded_size-1
         [PAD]  [BOS]  [EOS]  [SEP]  [MASK]   text pieces       <d0_0> <d0_1> ...       unused rows

The tokenizer behind it knows only text; special and DocID tokens are added here, so any tokenizer with the five methods
of `Tokenizer` fits. The one trained here is sentencepiece BPE with byte fallback: nothing is unknown to it.

Text is case-folded, and identifiers come apart at dots and underscores, so that `os.path.join` shares its pieces with
the words `os`, `path` and `join`:

    os.path.join  ->  _os  .  _path  .  _join  ->  os.path.join        (`_` is sentencepiece's mark of a word's start)

The joint is a character of the private use area in place of the dot, which is how decoding knows which dots close up.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import io
import json
from pathlib import Path
import re
from typing import Any, Protocol, SupportsIndex, runtime_checkable

from jaxtyping import Bool
import numpy as np
import sentencepiece

from diffgr_jax.data.hf_tokenizer import HfTokenizer

SPECIAL_TOKENS = ("[PAD]", "[BOS]", "[EOS]", "[SEP]", "[MASK]")
ROW_MULTIPLE = 128  # embedding tables are padded to it, for the tensor axis of a mesh
WORD_MARK = "▁"  # sentencepiece's
JOINTS = {".": "\ue000", "_": "\ue001"}  # private use characters: no text holds them, no normalisation touches them
BEFORE_JOINED = re.compile(r"[._](?=\w)")
CASE_CHANGE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@runtime_checkable
class Tokenizer(Protocol):
  """Text to piece numbers 0..size-1 and back. It knows no special tokens."""

  @property
  def size(self) -> int: ...

  def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

  def decode(self, pieces: Sequence[int]) -> str: ...

  def piece(self, number: int) -> str:
    """How one piece is shown; a piece that starts a word begins with `▁`."""
    ...

  def save(self, folder: Path) -> dict[str, Any]:
    """Writes its files and returns what `Vocabulary.load` needs to build it again; the key `kind` names its class."""
    ...


class SentencePieceTokenizer:
  """sentencepiece behind `Tokenizer`. Its processor does not pickle, so it is made when first needed."""

  kind = "sentencepiece"
  file_name = "tokenizer.model"

  def __init__(self, model: bytes, split_case: bool):
    self.model = model
    self.split_case = split_case

  @functools.cached_property
  def processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self.model)

  def __getstate__(self) -> dict[str, Any]:
    return {"model": self.model, "split_case": self.split_case}

  @property
  def size(self) -> int:
    return self.processor.get_piece_size()

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    return self.processor.encode([split_identifiers(text, self.split_case) for text in texts])

  def decode(self, pieces: Sequence[int]) -> str:
    text = self.processor.decode(list(pieces))
    for sign, joint in JOINTS.items():
      text = text.replace(f"{joint} ", sign).replace(joint, sign)
    return text

  def piece(self, number: int) -> str:
    shown = self.processor.id_to_piece(number)
    for sign, joint in JOINTS.items():
      shown = shown.replace(joint, sign)
    return shown

  def save(self, folder: Path) -> dict[str, Any]:
    (folder / self.file_name).write_bytes(self.model)
    return {"kind": self.kind, "split_case": self.split_case}

  @classmethod
  def load(cls, folder: Path, settings: dict[str, Any]) -> "SentencePieceTokenizer":
    return cls((folder / cls.file_name).read_bytes(), settings["split_case"])


TOKENIZERS: dict[str, Callable[[Path, dict[str, Any]], Tokenizer]] = {
  SentencePieceTokenizer.kind: SentencePieceTokenizer.load,
  HfTokenizer.kind: HfTokenizer.load,
}


class Vocabulary:
  """Rows of the embedding table: what each means, and how text becomes rows."""

  pad_id, bos_id, eos_id, sep_id, mask_id = range(len(SPECIAL_TOKENS))

  def __init__(self, tokenizer: Tokenizer, docid_levels: int = 0, docid_codes: int = 0):
    """Adds special tokens before and `docid_levels` x `docid_codes` DocID tokens behind a tokenizer's pieces."""
    if min(docid_levels, docid_codes) < 0 or (docid_levels == 0) != (docid_codes == 0):
      raise ValueError(f"docid_levels {docid_levels} and docid_codes {docid_codes} must both be 0 or both positive")
    self.tokenizer = tokenizer
    self.docid_levels = docid_levels
    self.docid_codes = docid_codes
    self._first_docid = len(SPECIAL_TOKENS) + tokenizer.size

  @property
  def size(self) -> int:
    """Rows in use."""
    return self._first_docid + self.docid_levels * self.docid_codes

  @property
  def padded_size(self) -> int:
    """Rows of the embedding table; those from `size` on mean nothing and must never be sampled."""
    return -(-self.size // ROW_MULTIPLE) * ROW_MULTIPLE

  @functools.cached_property
  def word_start(self) -> Bool[np.ndarray, "V"]:
    """True for the rows in use whose piece starts a word."""
    text = [self.tokenizer.piece(number).startswith(WORD_MARK) for number in range(self.tokenizer.size)]
    starts = np.zeros(self.size, bool)
    starts[len(SPECIAL_TOKENS) : self._first_docid] = text
    return starts

  def encode(self, text: str) -> list[int]:
    """The rows of a text's pieces, without specials."""
    return self.encode_many([text])[0]

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in one call of the tokenizer."""
    first = len(SPECIAL_TOKENS)
    return [[first + piece for piece in pieces] for pieces in self.tokenizer.encode(texts)]

  def decode(self, ids: Iterable[SupportsIndex]) -> str:
    """The text of a sequence of rows; specials are skipped, DocID tokens written out.

    Raises:
      ValueError: a row that is not in use.
    """
    words: list[str] = []
    pieces: list[int] = []
    for row in map(int, ids):
      if not 0 <= row < self.size:
        raise ValueError(f"token {row} is outside the vocabulary of {self.size} rows")
      if row >= self._first_docid:
        words += [self.tokenizer.decode(pieces), self.piece(row)]
        pieces = []
      elif row >= len(SPECIAL_TOKENS):
        pieces.append(row - len(SPECIAL_TOKENS))
    return " ".join(filter(None, [*words, self.tokenizer.decode(pieces)]))

  def piece(self, row: SupportsIndex) -> str:
    """How one row is shown: `[MASK]`, `▁join`, `<d0_17>`; rows not in use as `<unused>`."""
    row = int(row)
    if row < len(SPECIAL_TOKENS):
      return SPECIAL_TOKENS[row]
    if row < self._first_docid:
      return self.tokenizer.piece(row - len(SPECIAL_TOKENS))
    level, code = divmod(row - self._first_docid, max(1, self.docid_codes))
    return f"<d{level}_{code}>" if row < self.size else "<unused>"

  def docid_token(self, level: int, code: int) -> int:
    """The row of code `code` at level `level` of a learnable DocID."""
    if not (0 <= level < self.docid_levels and 0 <= code < self.docid_codes):
      have = f"{self.docid_levels} levels of {self.docid_codes} codes"
      raise ValueError(f"no DocID token for level {level}, code {code}: the vocabulary has {have}")
    return self._first_docid + level * self.docid_codes + code

  def save(self, folder: str | Path) -> None:
    """Writes vocab.json and the tokenizer's files into a folder, made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = self.tokenizer.save(folder)
    settings = {"docid_levels": self.docid_levels, "docid_codes": self.docid_codes, "tokenizer": tokenizer}
    (folder / "vocab.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

  @classmethod
  def load(cls, folder: str | Path) -> "Vocabulary":
    folder = Path(folder)
    settings = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    kind = settings["tokenizer"]["kind"]
    if kind not in TOKENIZERS:
      raise ValueError(f"{folder / 'vocab.json'} names the tokenizer {kind!r}; known are {', '.join(TOKENIZERS)}")
    tokenizer = TOKENIZERS[kind](folder, settings["tokenizer"])
    return cls(tokenizer, settings["docid_levels"], settings["docid_codes"])


def split_identifiers(text: str, split_case: bool) -> str:
  """Opens identifiers for the tokenizer: a space after each joint, and before each capital if `split_case`."""
  if split_case:
    text = CASE_CHANGE.sub(" ", text)
  return BEFORE_JOINED.sub(lambda sign: f"{JOINTS[sign[0]]} ", text)


def train_vocabulary(
  texts: Iterable[str],
  size: int,
  *,
  seed: int = 0,
  split_case: bool = False,
  docid_levels: int = 0,
  docid_codes: int = 0,
  max_lines: int = 2_000_000,
) -> Vocabulary:
  """Trains a sentencepiece BPE tokenizer. Equal texts in equal order give equal models.

  Args:
    texts: the corpus.
    size: rows for special tokens and text pieces together, at most: a small corpus yields fewer.
    seed: decides which lines are used where there are more than `max_lines`.
    split_case: also splits where case changes, ThreadPoolExecutor -> thread pool executor. Good for program names; bad
      for prose that lower-case queries ask about (YouTube, McDonald's).
    docid_levels: levels of learnable DocIDs.
    docid_codes: codes of each level.
    max_lines: lines of text used at most.

  Raises:
    ValueError: no text, or a size too small for the bytes and characters that every vocabulary holds.
  """
  lines = [split_identifiers(line, split_case) for text in texts for line in text.splitlines() if line.strip()]
  if not lines:
    raise ValueError("cannot train a vocabulary: the texts hold no words")
  if len(lines) > max_lines:
    chosen = np.random.default_rng(seed).choice(len(lines), max_lines, replace=False)
    lines = [lines[i] for i in sorted(chosen)]
  model = _train_sentencepiece(lines, size - len(SPECIAL_TOKENS))
  return Vocabulary(SentencePieceTokenizer(model, split_case), docid_levels, docid_codes)


def _train_sentencepiece(lines: list[str], size: int) -> bytes:
  """Returns a model of `size` pieces, or of as many as the lines have merges for."""
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      model_type="bpe",
      vocab_size=size,
      hard_vocab_limit=False,
      character_coverage=0.9995,
      byte_fallback=True,
      split_digits=True,
      normalization_rule_name="nmt_nfkc_cf",
      user_defined_symbols=list(JOINTS.values()),
      max_sentence_length=1 << 20,
      unk_id=0,
      bos_id=-1,
      eos_id=-1,
      pad_id=-1,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    needed = re.search(r"\d+ vs (\d+)", str(error))
    least = f"at least {int(needed[1]) + len(SPECIAL_TOKENS)}" if needed else "more"
    asked = size + len(SPECIAL_TOKENS)
    raise ValueError(f"a vocabulary of {asked} rows is too small; the characters of this text need {least}") from None
  return model.getvalue()
