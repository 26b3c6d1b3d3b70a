"""The DocID index: which identifiers exist, as one matrix of tokens.

    codes      row of  os.path.join      _os  .  _path  .  _join  EOS  PAD  PAD
    scored                                1   1    1    1    1     1    .    .

A row is a document, in corpus order. Every position of the canvas is generated and trained (PAD too), but a document's
score sums only what `scored` marks: its tokens and EOS.
"""

from dataclasses import dataclass
import json
from pathlib import Path

from jaxtyping import Bool, Float, Int
import numpy as np


@dataclass(frozen=True, eq=False)
class DocIdIndex:
  """The identifiers of a corpus.

  Attributes:
    codes: the tokens of each document's DocID, EOS, then PAD.
    doc_ids: the documents' ids, in the order of the rows.
    titles: their titles as written, for people.
    eos_id: the token that ends a DocID.
    pad_id: the token that fills the rest of the canvas.
    told_apart: how many documents got an ordinal because another one had their identifier.
  """

  codes: Int[np.ndarray, "N L"]
  doc_ids: tuple[str, ...]
  titles: tuple[str, ...]
  eos_id: int
  pad_id: int
  told_apart: int = 0

  def __post_init__(self):
    if not len(self.codes) == len(self.doc_ids) == len(self.titles):
      counts = f"{len(self.codes)} rows, {len(self.doc_ids)} ids, {len(self.titles)} titles"
      raise ValueError(f"a DocID index needs one row, one id and one title a document; got {counts}")

  @property
  def canvas_length(self) -> int:
    """L: how many tokens a DocID is generated in."""
    return self.codes.shape[1]

  @property
  def scored(self) -> Bool[np.ndarray, "N L"]:
    """The positions that a document's score sums: the tokens and EOS."""
    return self.codes != self.pad_id

  def log_frequency(self, rows: int) -> Float[np.ndarray, "L {rows}"]:
    """log of the share of documents that have a token at a position: what a model says that has not read the query.

    Args:
      rows: of the vocabulary. A token that no document has at a position gets 0; no document asks for it.
    """
    counts = np.zeros((self.canvas_length, rows), np.float32)
    np.add.at(counts, (np.arange(self.canvas_length)[None, :], self.codes), 1.0)
    return np.log(np.where(counts > 0, counts / max(len(self.codes), 1), 1.0), dtype=np.float32)

  def summary(self) -> str:
    """One line: documents, canvas length, mean length, how many were told apart."""
    mean = self.scored.sum(axis=1).mean() if len(self.codes) else 0.0
    return (
      f"DocID index: {len(self.codes)} documents, canvas of {self.canvas_length} tokens, "
      f"{mean:.1f} used on average, {self.told_apart} told apart by an ordinal"
    )

  def save(self, folder: str | Path) -> None:
    """Writes docid_codes.npy and docid_index.json into a folder, made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "docid_codes.npy", self.codes)
    names = {"eos_id": self.eos_id, "pad_id": self.pad_id, "told_apart": self.told_apart}
    names |= {"doc_ids": self.doc_ids, "titles": self.titles}
    (folder / "docid_index.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")

  @classmethod
  def load(cls, folder: str | Path) -> "DocIdIndex":
    names = json.loads((Path(folder) / "docid_index.json").read_text(encoding="utf-8"))
    names["doc_ids"], names["titles"] = tuple(names["doc_ids"]), tuple(names["titles"])
    return cls(codes=np.load(Path(folder) / "docid_codes.npy"), **names)
