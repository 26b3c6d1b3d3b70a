"""The two records every corpus is made of, and the error a bad row raises.

    Document  doc_id, title, text           what is indexed and found; the title becomes its linguistic DocID
    Query     query_id, query, doc_ids      what is asked, and the documents that answer it

A `Collection` is a corpus with its queries, by split. Everything above this module sees only these classes: it never
knows whether they came from docstrings or from a folder of JSON lines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
  """One document. `text` is what is indexed; it does not repeat the title."""

  doc_id: str
  title: str
  text: str


@dataclass(frozen=True, slots=True)
class Query:
  """One query and its relevant documents. `grades` stands parallel to `doc_ids`; () means that every grade is 1."""

  query_id: str
  query: str
  doc_ids: tuple[str, ...]
  grades: tuple[int, ...] = ()


@dataclass(frozen=True)
class Collection:
  """A corpus and its queries.

  Attributes:
    name: the data set's name, e.g. `pydocs`.
    documents: all documents, in corpus order.
    queries: the queries of each split, e.g. `train`, `valid`, `test`.
    fingerprint: a hex digest of the content; another content, another fingerprint.
    skipped: how many input rows were left out, by what was wrong with them (empty where nothing was).
  """

  name: str
  documents: Sequence[Document]
  queries: Mapping[str, Sequence[Query]]
  fingerprint: str
  skipped: Mapping[str, int]


class BadRow(ValueError):
  """A row of an input file that is no record. The message is `FILE:LINE: what is wrong; what would be right`.

  Attributes:
    kind: a short name of the fault, under which skipped rows are counted, e.g. `duplicate id`.
  """

  def __init__(self, place: str, kind: str, message: str):
    super().__init__(place, kind, message)  # all three, so that it survives pickling
    self.place, self.kind, self.message = place, kind, message

  def __str__(self) -> str:
    return f"{self.place}: {self.message}"
