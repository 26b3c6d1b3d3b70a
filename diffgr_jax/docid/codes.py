"""Learned DocIDs in a file: each document's codes, and the quantiser that gave them.

    FILE.npz   meta.json    format, kind of quantiser, codes per level, how it was built and what was measured
               doc_ids.json titles.json
               codes        Int32[N, L]
               q_...        the quantiser's arrays (codebooks among them); none for random codes and imports
               w_...        of codes that name words (words.py), the last levels: what gave them

and the published form, which has the codes alone: {"item": ["<a_1>", "<b_2>", "<c_3>"], ...}, a letter a level.

The trainer reads the .npz: the canvas is the L levels, each position holds a code of its level, and all DocIDs are
equally long, so that none needs an EOS. To the model, code c of level l is the vocabulary's DocID token <dl_c>.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass, field
import io
import json
from pathlib import Path
import re
from typing import Any
import zipfile

from jaxtyping import Int
import numpy as np

from diffgr_jax.data.records import Document
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.docid.collisions import in_collision, resolve
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.product_quantizer import ProductQuantizer
from diffgr_jax.docid.quantizer import Quantizer
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer
from diffgr_jax.docid.rqvae import Rqvae
from diffgr_jax.docid.words import WordCoder

_FORMAT = 1
_KINDS = {cls.kind: cls for cls in (ResidualQuantizer, ProductQuantizer, Rqvae)}
_TOKEN = re.compile(r"<([a-z]+)_(\d+)>")
_LARGEST_CODE = 10**6


@dataclass(frozen=True, eq=False)
class CodeIndex:
  """The codes of a corpus.

  Attributes:
    codes: of each document, level by level.
    level_sizes: how many codes each level has.
    doc_ids: the documents' ids, in the order of the rows.
    titles: their titles, for people; "" where none is known.
    quantizer: what gives codes to vectors; None for random codes and imports.
    settings: how the index was built and what was measured, plain values.
    words: what gave the last levels, where these name words.
  """

  codes: Int[np.ndarray, "N L"]
  level_sizes: tuple[int, ...]
  doc_ids: tuple[str, ...]
  titles: tuple[str, ...]
  quantizer: Quantizer | None = None
  settings: dict[str, Any] = field(default_factory=dict)
  words: WordCoder | None = None

  def __post_init__(self):
    if not len(self.codes) == len(self.doc_ids) == len(self.titles):
      counts = f"{len(self.codes)} rows, {len(self.doc_ids)} ids, {len(self.titles)} titles"
      raise ValueError(f"an index of codes needs one row, one id and one title a document; got {counts}")
    if not self.codes.size or self.codes.shape[1] != len(self.level_sizes):
      raise ValueError(f"codes of shape {self.codes.shape} do not have the {len(self.level_sizes)} levels named")
    if len(set(self.doc_ids)) < len(self.doc_ids):
      raise ValueError("an index of codes names a document twice")
    if self.codes.min() < 0 or (self.codes.max(axis=0) >= np.asarray(self.level_sizes)).any():
      raise ValueError(f"a code lies outside its level; the levels have {self.level_sizes} codes")

  @property
  def levels(self) -> int:
    return self.codes.shape[1]

  def save(self, path: str | Path) -> None:
    """Writes the .npz, under another name until it is whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {"codes": self.codes}
    for letter, made_by in (("q", self.quantizer), ("w", self.words)):
      arrays |= {f"{letter}_{name}": array for name, array in (made_by.arrays() if made_by else {}).items()}
    meta = {"format": _FORMAT, "quantizer": None if self.quantizer is None else self.quantizer.kind}
    meta |= {"level_sizes": self.level_sizes, "settings": self.settings}
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
      for name, value in (("meta", meta), ("doc_ids", self.doc_ids), ("titles", self.titles)):
        archive.writestr(f"{name}.json", json.dumps(value, ensure_ascii=False))
      for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
          np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)
    partial.replace(path)

  @classmethod
  def load(cls, path: str | Path) -> "CodeIndex":
    """Reads a file that `save` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such a file, or not whole.
    """
    if not Path(path).is_file():
      raise FileNotFoundError(f"{path}: no such DocID index of codes; python -m diffgr_jax.index build makes one")
    try:
      with zipfile.ZipFile(path) as archive:
        texts = {name: json.loads(archive.read(f"{name}.json")) for name in ("meta", "doc_ids", "titles")}
        arrays = {
          name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
          for name in archive.namelist()
          if name.endswith(".npy")
        }
      meta = texts["meta"]
      if meta["format"] != _FORMAT:
        raise ValueError(f"it has format {meta['format']}, and this version reads {_FORMAT}")
      kind = meta["quantizer"]
      own = lambda letter: {name[2:]: array for name, array in arrays.items() if name.startswith(f"{letter}_")}
      return cls(
        arrays["codes"],
        tuple(meta["level_sizes"]),
        tuple(texts["doc_ids"]),
        tuple(texts["titles"]),
        None if kind is None else _KINDS[kind].from_arrays(own("q")),
        meta["settings"],
        WordCoder.from_arrays(words) if (words := own("w")) else None,
      )
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
      what = str(error.args[0]).splitlines()[0] if error.args else type(error).__name__
      raise ValueError(f"{path} is no DocID index of codes (python -m diffgr_jax.index build): {what}") from None


def docid_index(index: CodeIndex, documents: Sequence[Document], vocab: Vocabulary, name: str) -> DocIdIndex:
  """The DocIDs of a corpus as canvases of codes (models/denoiser.py): level l's column holds codes of level l.

  There is no EOS and no PAD among codes: both are -1.

  Args:
    index: codes; it may hold more documents than the corpus.
    documents: the corpus, in order.
    vocab: with the `docid_levels` and at least the `docid_codes` of `vocabulary_size`.
    name: of the index, for errors.

  Raises:
    ValueError: a document of the corpus that the index does not have, or a vocabulary of other levels or fewer codes.
  """
  levels, codes = vocabulary_size(index)
  if vocab.docid_levels != levels or vocab.docid_codes < codes:
    have = f"{vocab.docid_levels} levels of {vocab.docid_codes} codes"
    raise ValueError(f"{name} has {levels} levels of up to {codes} codes, but the vocabulary has {have}")
  place = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
  if missing := [document.doc_id for document in documents if document.doc_id not in place]:
    raise ValueError(
      f"{name} has no codes for {len(missing)} of {len(documents)} documents, such as {missing[0]!r}:"
      " build the index from the same corpus"
    )
  rows = index.codes[[place[document.doc_id] for document in documents]]
  return DocIdIndex(
    codes=rows.astype(np.int32),
    doc_ids=tuple(document.doc_id for document in documents),
    titles=tuple(document.title for document in documents),
    eos_id=-1,
    pad_id=-1,
  )


def code_tokens(codes: Int[np.ndarray, "N L"], vocab: Vocabulary) -> Int[np.ndarray, "N L"]:
  """Codes as tokens of a vocabulary."""
  first_of_level = vocab.docid_token(0, 0) + vocab.docid_codes * np.arange(codes.shape[1])
  return (first_of_level[None] + codes).astype(np.int32)


def vocabulary_size(index: CodeIndex) -> tuple[int, int]:
  """`docid_levels` and `docid_codes` of a vocabulary for the index: every level gets as many rows as the largest."""
  return index.levels, max(index.level_sizes)


# --- the published form ---


def level_name(level: int) -> str:
  """a, b, ... z, aa, ab, ..."""
  name = ""
  level += 1
  while level:
    level, rest = divmod(level - 1, 26)
    name = chr(ord("a") + rest) + name
  return name


def published_tokens(codes: Int[np.ndarray, "N L"]) -> list[list[str]]:
  """Every document's codes as ["<a_1>", "<b_2>", ...]."""
  letters = [level_name(level) for level in range(codes.shape[1])]
  return [[f"<{letter}_{code}>" for letter, code in zip(letters, row, strict=True)] for row in codes.tolist()]


def export_json(index: CodeIndex, path: str | Path) -> None:
  """Writes {"item": ["<a_1>", "<b_2>", ...], ...}."""
  rows = dict(zip(index.doc_ids, published_tokens(index.codes), strict=True))
  Path(path).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def import_json(path: str | Path) -> CodeIndex:
  """Reads {"item": ["<a_1>", "<b_2>", ...], ...}; a level has as many codes as its largest one needs.

  Raises:
    ValueError: not such a file; names the item and what is wrong with it.
  """
  try:
    rows = json.loads(Path(path).read_text(encoding="utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no JSON: {error}") from None
  if not isinstance(rows, dict) or not rows:
    raise ValueError(f'{path}: an index is an object {{"item": ["<a_1>", "<b_2>", ...], ...}} with an item at least')
  levels: int | None = None
  codes = []
  for item, tokens in rows.items():
    codes.append(_read_codes(tokens, f"{path}: item {item!r}"))
    levels = levels or len(codes[-1])
    if len(codes[-1]) != levels:
      raise ValueError(f"{path}: item {item!r} has {len(codes[-1])} codes, the items before it {levels}")
  matrix = np.asarray(codes, np.int32)
  sizes = tuple(int(size) for size in matrix.max(axis=0) + 1)
  return CodeIndex(matrix, sizes, tuple(rows), ("",) * len(rows), settings={"imported from": Path(path).name})


def named_by_place(index: CodeIndex, documents: Sequence[Document], name: str) -> CodeIndex:
  """An imported index whose items are called 0, 1, 2 ... by their place in a corpus, with the corpus' own names.

  Args:
    index: as it was imported, in any order.
    documents: the corpus, in order.
    name: of the index, for errors.

  Raises:
    ValueError: items that are not called 0 to N-1, one for each document.
  """
  places = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
  if places.keys() != {str(place) for place in range(len(documents))}:
    raise ValueError(
      f"{name} has {len(places)} items, such as {index.doc_ids[0]!r}; by place in the corpus they would be called"
      f" 0 to {len(documents) - 1}"
    )
  rows = [places[str(place)] for place in range(len(documents))]
  return dataclasses.replace(
    index,
    codes=index.codes[rows],
    doc_ids=tuple(document.doc_id for document in documents),
    titles=tuple(document.title for document in documents),
  )


def told_apart(index: CodeIndex, rule: str, seed: int = 0) -> CodeIndex:
  """An imported index in which documents with the same codes are told apart; its settings say how many there were.

  Args:
    index: without a quantiser.
    rule: none, extra_level or random (collisions.py).
    seed: of the random draws.

  Raises:
    ValueError: `optimal`, which needs a quantiser, or more documents behind a prefix than the last level has codes.
  """
  codes, sizes = resolve(rule, index.codes, index.level_sizes, seed=seed)
  measured = {"in_collision_before": in_collision(index.codes), "in_collision": in_collision(codes)}
  settings = index.settings | {"build": {"collisions": rule, "seed": seed}, "measured": measured}
  return dataclasses.replace(index, codes=codes, level_sizes=sizes, settings=settings)


def _read_codes(tokens: Any, where: str) -> list[int]:
  if not isinstance(tokens, list) or not tokens:
    raise ValueError(f'{where} has no list of codes, such as ["<a_1>", "<b_2>"]')
  codes = []
  for level, token in enumerate(tokens):
    match = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if match is None or match[1] != level_name(level) or int(match[2]) > _LARGEST_CODE:
      raise ValueError(f"{where}: code {level} is <{level_name(level)}_NUMBER>, not {token!r}")
    codes.append(int(match[2]))
  return codes
