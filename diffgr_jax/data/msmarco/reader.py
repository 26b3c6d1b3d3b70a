"""Reads MS MARCO: a collection of documents or passages, questions, and judgements, as tab-separated files.

    documents   msmarco-docs.tsv                  docid <tab> url <tab> title <tab> body
                msmarco-doctrain-queries.tsv      qid <tab> text             and msmarco-docdev-queries.tsv
                msmarco-doctrain-qrels.tsv        qid 0 docid grade          and msmarco-docdev-qrels.tsv
    passages    collection.tsv                    pid <tab> text
                queries.train.tsv, qrels.train.tsv, and queries.dev.tsv, qrels.dev.tsv (or dev.small)

Each may be gzip. The splits are `train` and `validation` (dev). A question is kept with the judged documents that are
in the collection; one without any is left out and counted.

A subset of `limit` documents (300,000 in the literature, which draws it in several ways) is chosen so: the judged
documents of dev, then those of train, each in the order of the judgements, then documents in the order of the
collection until the limit is reached. Whatever is kept stands in the order of the collection.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from diffgr_jax.data.records import BadRow, Document, Query
from diffgr_jax.data.rows import NO_TEXT, TITLE_WORDS, OnBadRow, decode_line, parse_line
from diffgr_jax.data.sources import Source, read_lines
from diffgr_jax.data.staging import Record

URL = "https://msmarco.z22.web.core.windows.net/msmarcoranking"
PARTS = ("documents", "passages")
SPLITS = {"train": "train", "dev": "validation"}
NO_ANSWER = "query without a relevant document"
UNKNOWN_QUERY = "judgement of an unknown query"
OUTSIDE = "judgement of a document outside the subset"


def _both(*names: str) -> tuple[str, ...]:
  return tuple(file for name in names for file in (f"{name}.gz", name))


_KINDS = [(kind, of) for of in SPLITS for kind in ("queries", "qrels")]
# part -> role -> names of its file
FILES = {
  "documents": {"collection": _both("msmarco-docs.tsv")}
  | {f"{kind}.{of}": _both(f"msmarco-doc{of}-{kind}.tsv") for kind, of in _KINDS},
  "passages": {"collection": _both("collection.tsv")}
  | {f"{kind}.{of}": _both(f"{kind}.{of}.tsv", f"{kind}.{of}.small.tsv") for kind, of in _KINDS},
}


class MarcoReader:
  """The documents of a collection, chosen by judgements and limit, and behind them the questions."""

  def __init__(self, sources: Sequence[Source], part: str, words: int, limit: int, on_bad_row: OnBadRow):
    """Reads judgements and questions.

    Args:
      sources: of the roles in `FILES[part]`.
      part: documents or passages.
      words: of a text that are kept; 0: all.
      limit: of the subset; 0: all documents.
      on_bad_row: of these files.

    Raises:
      BadRow: with on_bad_row="error".
    """
    self.streamed: Sequence[Source] = [source for source in sources if source.role == "collection"]
    self.skipped: Counter[str] = Counter()
    self.part, self.words, self.limit = part, words, limit
    self.on_bad_row: OnBadRow = on_bad_row
    # (split, query, document, grade, place), in the order in which documents are chosen
    self.judgements: list[tuple[str, str, str, int, str]] = []
    self.questions: dict[tuple[str, str], str] = {}
    by_role = {source.role: source.path for source in sources}
    for of in reversed(SPLITS):  # dev first: what is evaluated on is kept
      if f"qrels.{of}" in by_role:
        self._read_judgements(by_role[f"qrels.{of}"], SPLITS[of])
    judged = {(split, query) for split, query, *_ in self.judgements}
    for of, split in SPLITS.items():
      if f"queries.{of}" in by_role:
        self._read_questions(by_role[f"queries.{of}"], split, judged)
    ids = dict.fromkeys(document for _, _, document, _, _ in self.judgements)
    self.chosen = set(list(ids)[: limit or None])
    self.room = limit - len(self.chosen) if limit else -1  # for documents that nobody judged; -1: any number
    self.kept: set[str] = set()

  def parse(self, source: Source, line: bytes, place: str) -> Sequence[Record]:
    columns = _columns(line, place, 4 if self.part == "documents" else 2)
    doc_id, title, body = columns[0], "" if self.part == "passages" else columns[2], columns[-1]
    if doc_id not in self.chosen and not self.room:
      return ()
    if doc_id in self.kept:
      raise BadRow(place, "duplicate id", f"duplicate document {doc_id!r}; ids must be unique in a collection")
    text = " ".join(body.split(maxsplit=self.words)[: self.words] if self.words else body.split())
    if not text:
      self.skipped[NO_TEXT] += 1
    document = Document(doc_id, " ".join(title.split()) or " ".join(text.split()[:TITLE_WORDS]) or doc_id, text)
    self.resume(document)
    return (document,)

  def resume(self, record: Record) -> None:
    if isinstance(record, Document):
      self.kept.add(record.doc_id)
      if record.doc_id not in self.chosen and self.room > 0:
        self.room -= 1

  def finish(self) -> Sequence[Record]:
    """The questions with the judged documents that were kept, in the order of the judgements, train first."""
    answers: dict[tuple[str, str], dict[str, int]] = {}
    for split, query, document, grade, place in self.judgements:
      if document not in self.chosen:
        self.skipped[OUTSIDE] += 1
      elif document not in self.kept:
        self._bad(BadRow(place, "unknown document", f"no document {document!r} in the collection; remove the row"))
      elif (split, query) not in self.questions:
        self.skipped[UNKNOWN_QUERY] += 1
      else:
        answers.setdefault((split, query), {})[document] = grade
    self.skipped[NO_ANSWER] += len(self.questions) - len(answers)
    records: list[Record] = []
    for (split, query), grades in sorted(answers.items(), key=lambda item: item[0][0]):
      records.append((split, Query(query, self.questions[split, query], tuple(grades), tuple(grades.values()))))
    return records

  # --- parts ---

  def _read_judgements(self, path: Path, split: str) -> None:
    def parse(line: bytes, place: str):
      columns = decode_line(line, place).split()  # the public files have tabs or single spaces
      if len(columns) != 4 or not columns[3].removeprefix("-").isdecimal():
        what = "a judgement is query, 0, document and a whole number"
        raise BadRow(place, "broken judgement", f"{what}, not {' '.join(columns)[:60]!r}")
      grade = int(columns[3])
      return (split, columns[0], columns[2], grade, place) if grade > 0 else None

    self.judgements += self._rows(path, parse)

  def _read_questions(self, path: Path, split: str, judged: set[tuple[str, str]]) -> None:
    """Keeps the questions that are judged; of others there may be many more."""

    def parse(line: bytes, place: str):
      query, text = _columns(line, place, 2)
      if not text.strip():
        raise BadRow(place, "empty text", f"query {query!r} has no words")
      if (split, query) in self.questions:
        raise BadRow(place, "duplicate id", f"duplicate query {query!r}; ids must be unique in a file")
      if (split, query) in judged:
        self.questions[split, query] = " ".join(text.split())
      return None

    self._rows(path, parse)

  def _rows(self, path: Path, parse) -> list:
    rows = []
    try:
      for number, line in read_lines(path):
        rows += parse_line(line, path, number, parse, self.on_bad_row, self.skipped)
    except BadRow as bad:
      if bad.kind != "broken gzip":
        raise
      self._bad(bad)
    return rows

  def _bad(self, bad: BadRow) -> None:
    if self.on_bad_row == "error":
      raise bad
    self.skipped[bad.kind] += 1


def _columns(line: bytes, place: str, count: int) -> list[str]:
  columns = decode_line(line, place).rstrip("\r\n").split("\t")
  if len(columns) != count or not columns[0].strip():
    what = f"a row has {count} columns set apart by tabs, the first one an id, not {len(columns)}"
    raise BadRow(place, "broken columns", f"{what}: {' '.join(columns)[:60]!r}")
  columns[0] = columns[0].strip()
  return columns
