"""A Hugging Face tokenizer.json behind the `Tokenizer` protocol of vocab.py.

Its pieces keep their numbers, its own special tokens among them; which piece plays which role (the pad, the mask) is
read from the files beside it. Where the pieces stand in a `Vocabulary` and in pretrained embeddings is the matter of
pretrained_vocab.py. The tokenizers library is loaded when first needed, and an object pickles as its path alone.
"""

from collections.abc import Sequence
import functools
import json
from pathlib import Path
import shutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  import tokenizers

WORD_MARK = "▁"
_FILE = "tokenizer.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# role -> the fields that may name its token, best first
_ROLES = {
  "pad": ("pad_token", "eos_token"),
  "bos": ("bos_token", "cls_token", "eos_token"),
  "eos": ("eos_token", "sep_token"),
  "sep": ("sep_token", "eos_token"),
  "mask": ("mask_token",),
}


class HfTokenizer:
  """Text to piece numbers and back. Settings of the file that cut or pad texts are turned off."""

  kind = "hf"

  def __init__(self, path: str | Path):
    """Takes a tokenizer.json, or the folder that holds one.

    Raises:
      FileNotFoundError: there is none.
    """
    path = Path(path)
    self.path = path / _FILE if path.is_dir() else path
    if not self.path.exists():
      raise FileNotFoundError(f"{self.path}: there is no such tokenizer; a Hugging Face folder holds a {_FILE}")

  def __getstate__(self) -> dict[str, Any]:
    return {"path": self.path}

  @functools.cached_property
  def processor(self) -> "tokenizers.Tokenizer":
    import tokenizers  # imported late: workers that never tokenize do not pay for it

    processor = tokenizers.Tokenizer.from_file(str(self.path))
    processor.no_padding()
    processor.no_truncation()
    return processor

  @property
  def size(self) -> int:
    return self._size

  @functools.cached_property
  def _size(self) -> int:
    return max(self.processor.get_vocab(with_added_tokens=True).values()) + 1

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    return [found.ids for found in self.processor.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, pieces: Sequence[int]) -> str:
    return self.processor.decode(list(pieces), skip_special_tokens=False)

  def piece(self, number: int) -> str:
    token = self.processor.id_to_token(number)
    if token is None:
      return "<unused>"
    if number in self.processor.get_added_tokens_decoder():
      return token
    if token.startswith("##"):
      return token[2:]
    if self._marks_words:
      return token if token.startswith(WORD_MARK) else self._readable(number, token)
    return WORD_MARK + token

  @functools.cached_property
  def _marks_words(self) -> bool:
    """Whether pieces say where words begin (byte-level or sentencepiece); WordPiece says where they go on."""
    return json.loads(self.path.read_text(encoding="utf-8"))["model"]["type"] != "WordPiece"

  def _readable(self, number: int, token: str) -> str:
    """A byte-level piece as text, its leading space as the mark of a word's start."""
    text = self.processor.decode([number], skip_special_tokens=False)
    if token.startswith("Ġ"):
      return WORD_MARK + text.removeprefix(" ")
    return text or token

  def save(self, folder: Path) -> dict[str, Any]:
    """Copies tokenizer.json and what names its special tokens."""
    for name in (_FILE, *_SETTINGS):
      source = self.path.with_name(name)
      if source.exists() and source.resolve() != (folder / name).resolve():
        shutil.copyfile(source, folder / name)
    return {"kind": self.kind}

  @classmethod
  def load(cls, folder: Path, settings: dict[str, Any]) -> "HfTokenizer":
    return cls(folder)

  # --- its own special tokens ---

  def special_piece(self, role: str) -> int | None:
    """The piece that plays a role (pad, bos, eos, sep, mask), as the files beside tokenizer.json name it; or None."""
    for field in _ROLES[role]:
      for settings in self._settings:
        token = settings.get(field)
        token = token["content"] if isinstance(token, dict) else token
        if token is not None and (number := self.processor.token_to_id(token)) is not None:
          return number
    return None

  @functools.cached_property
  def _settings(self) -> list[dict[str, Any]]:
    paths = [self.path.with_name(name) for name in _SETTINGS]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]

  def _needed(self, role: str) -> int:
    number = self.special_piece(role)
    if number is None:
      raise ValueError(f"{self.path.parent}: no {role} token is named in {' or '.join(_SETTINGS)}")
    return number

  @property
  def pad_id(self) -> int:
    return self._needed("pad")

  @property
  def bos_id(self) -> int:
    return self._needed("bos")

  @property
  def sep_id(self) -> int:
    return self._needed("sep")
