"""Reads a corpus in the BEIR shape, row by row, and says exactly where a row is wrong.

    FOLDER/corpus.jsonl           {"doc_id" or "_id", "title", "text"}             one document a line
    FOLDER/queries.SPLIT.jsonl    {"query_id" or "_id", "query" or "text", "doc_ids"}   queries with their answers, or
    FOLDER/queries.jsonl          the same without doc_ids, with
    FOLDER/qrels.tsv              query-id <tab> corpus-id <tab> score              split "test", or
    FOLDER/qrels/SPLIT.tsv        one file a split

Other files and other keys are ignored. A judgement counts from score 1 up, and its score is kept as the grade. An empty
title is allowed: the document is then titled by its first words. So is an empty text, for old collections have gaps and
their judgements count them: the document is kept, and counted as without text; without a title either it is called by
its id. Blank lines are passed over.

With `on_bad_row="error"` the first bad row raises BadRow, `FILE:LINE: ...`; with "skip" bad rows are left out and
counted.
"""

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
import re
from typing import Any

from diffgr_jax.data.records import BadRow, Document, Query
from diffgr_jax.data.rows import (
  NO_TEXT,
  TITLE_WORDS,
  OnBadRow,
  claim,
  decode_line,
  existing,
  identifier,
  parse_object,
  read_rows,
  string_field,
)

Judgements = dict[str, dict[str, int]]  # query id -> document id -> grade, as far as it is relevant

NO_ANSWER = "query without a relevant document"
UNKNOWN_QUERY = "judgement of an unknown query"
EXPECTED = "corpus.jsonl (doc_id, title, text), and queries.SPLIT.jsonl or queries.jsonl with qrels.tsv"


def read_corpus(file: str | Path, on_bad_row: OnBadRow = "error") -> tuple[Iterator[Document], Counter[str]]:
  """Streams the documents of a corpus.jsonl.

  Returns:
    The documents, and the counts of skipped rows by fault, complete once the documents are read to the end. Documents
    without text are counted there too, but kept.

  Raises:
    BadRow: while reading, with on_bad_row="error".
    FileNotFoundError: at once, where there is no such file.
  """
  path, skipped, seen = existing(file), Counter[str](), set[str]()

  def parse(line: bytes, place: str) -> Document:
    row = parse_object(line, place)
    doc_id = identifier(row, ("doc_id", "_id"), place)
    title, text = string_field(row, "title", place), string_field(row, "text", place)
    if row.get("text") is None:
      raise BadRow(
        place, "no text", f"document {doc_id!r} has no key 'text'; give it one, \"\" where there are no words"
      )
    claim(doc_id, seen, "doc_id", place)
    if not text:
      skipped[NO_TEXT] += 1
    return Document(doc_id, title or " ".join(text.split()[:TITLE_WORDS]) or doc_id, text)

  return read_rows(path, parse, on_bad_row, skipped), skipped


def read_queries(
  file: str | Path, on_bad_row: OnBadRow = "error", doc_ids: Container[str] | None = None
) -> tuple[Iterator[Query], Counter[str]]:
  """Streams the queries of a JSON lines file whose rows name their answers under `doc_ids`.

  Args:
    file: the queries, {"query_id" or "_id", "query" or "text", "doc_ids": [...]} a line.
    on_bad_row: "error" or "skip".
    doc_ids: the documents that exist; a query that names another is a bad row. None: not checked.

  Returns:
    The queries, and the counts of skipped rows by fault, complete once the queries are read to the end. A query with an
    empty list of answers is left out and counted, not an error.
  """
  path, skipped, seen = existing(file), Counter[str](), set[str]()

  def parse(line: bytes, place: str) -> Query | None:
    row = parse_object(line, place)
    query_id, text = _question(row, seen, place)
    answers = row.get("doc_ids")
    if not isinstance(answers, list) or any(isinstance(a, bool) or not isinstance(a, str | int) for a in answers):
      raise BadRow(place, "no doc_ids", f"query {query_id!r} needs 'doc_ids', a list of document ids")
    answers = tuple(dict.fromkeys(str(answer) for answer in answers))
    for answer in answers:
      _check_document(answer, doc_ids, place)
    if not answers:
      skipped[NO_ANSWER] += 1
      return None
    return Query(query_id, text, answers)

  return read_rows(path, parse, on_bad_row, skipped), skipped


def read_judged_queries(
  file: str | Path, judgements: Mapping[str, Judgements], on_bad_row: OnBadRow = "error"
) -> tuple[dict[str, list[Query]], Counter[str]]:
  """Reads a BEIR queries.jsonl into the splits whose judgements name a relevant document for the query.

  Returns:
    The queries of each split, and the counts of skipped rows by fault. A query that no split answers, and a judgement
    of a query that the file does not have, are counted, not errors.
  """
  path, skipped, seen = existing(file), Counter[str](), set[str]()

  def parse(line: bytes, place: str) -> tuple[str, str]:
    return _question(parse_object(line, place), seen, place)

  splits: dict[str, list[Query]] = {split: [] for split in judgements}
  for query_id, text in read_rows(path, parse, on_bad_row, skipped):
    answers = {split: graded[query_id] for split, graded in judgements.items() if query_id in graded}
    for split, grades in answers.items():
      splits[split].append(Query(query_id, text, tuple(grades), tuple(grades.values())))
    skipped[NO_ANSWER] += not answers
  skipped[UNKNOWN_QUERY] += sum(len(graded.keys() - seen) for graded in judgements.values())
  return splits, +skipped


def read_judgements(
  file: str | Path, on_bad_row: OnBadRow = "error", doc_ids: Container[str] | None = None
) -> tuple[Judgements, Counter[str]]:
  """Reads a qrels file: three columns set apart by tabs, with or without BEIR's header line.

  Judgements below 1 say that a document is not relevant: they are left out, and their documents need not exist.
  """
  path, skipped = existing(file), Counter[str]()

  def parse(line: bytes, place: str) -> tuple[str, str, int] | None:
    fields = [field.strip() for field in decode_line(line, place).rstrip("\r\n").split("\t")]
    if place.endswith(":1") and fields[-1].lower() == "score":
      return None
    if len(fields) != 3 or not all(fields) or not fields[2].removeprefix("-").isdecimal():
      what = "a judgement is query-id, corpus-id and a whole number, set apart by tabs"
      raise BadRow(place, "broken judgement", f"{what}, not {' '.join(fields)[:60]!r}")
    query_id, doc_id, grade = fields[0], fields[1], int(fields[2])
    if grade < 1:
      return None
    _check_document(doc_id, doc_ids, place)
    return query_id, doc_id, grade

  judgements: Judgements = {}
  for query_id, doc_id, grade in read_rows(path, parse, on_bad_row, skipped):
    judgements.setdefault(query_id, {})[doc_id] = grade
  return judgements, skipped


def query_files(folder: str | Path) -> dict[str, tuple[Path, Path | None]]:
  """Maps each split of a folder, sorted, to its queries and, where the answers stand apart, to its judgements.

  Raises:
    ValueError: two files give one split.
  """
  folder = Path(folder)
  found: list[tuple[str, Path, Path | None]] = []
  shared = folder / "queries.jsonl"
  if shared.is_file():
    apart = [(path.stem, path) for path in (folder / "qrels").glob("*.tsv")]
    if (folder / "qrels.tsv").is_file():
      apart.append(("test", folder / "qrels.tsv"))
    found += [(split, shared, qrels) for split, qrels in apart] or [("test", shared, None)]
  for path in folder.glob("queries.*.jsonl"):
    found.append((path.name.removeprefix("queries.").removesuffix(".jsonl"), path, None))
  files: dict[str, tuple[Path, Path | None]] = {}
  for stem, queries, qrels in sorted(found, key=lambda item: item[0]):
    split = _split_name(stem)
    if split in files:
      raise ValueError(f"{folder} gives the split {split!r} twice; keep one of {qrels or queries} and its namesake")
    files[split] = (queries, qrels)
  return files


def _split_name(stem: str) -> str:
  """A name that TFDS takes: word characters, a letter first, and not its keyword `all`: `dev-small` is `dev_small`."""
  name = re.sub(r"\W", "_", stem, flags=re.ASCII)
  return name if name[:1].isalpha() and name.lower() != "all" else f"split_{name}"


def corpus_file(folder: str | Path) -> Path:
  """The corpus.jsonl of a folder.

  Raises:
    FileNotFoundError: there is no such folder or no corpus.jsonl in it; one line that says what is expected.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder; a corpus is a folder with {EXPECTED}")
  if not (folder / "corpus.jsonl").is_file():
    raise FileNotFoundError(f"{folder} has no corpus.jsonl; a corpus is a folder with {EXPECTED}")
  return folder / "corpus.jsonl"


def read_splits(folder: str | Path, on_bad_row: OnBadRow = "error") -> tuple[dict[str, list[Query]], Counter[str]]:
  """Reads all queries of a folder, checked against its corpus; splits without any query are left out."""
  documents, _ = read_corpus(corpus_file(folder), on_bad_row)
  doc_ids = {document.doc_id for document in documents}
  splits: dict[str, list[Query]] = {}
  total: Counter[str] = Counter()
  judged: dict[str, Judgements] = {}
  for split, (queries_file, qrels_file) in query_files(folder).items():
    if qrels_file is None:
      queries, skipped = read_queries(queries_file, on_bad_row, doc_ids)
      splits[split] = list(queries)
    else:
      judged[split], skipped = read_judgements(qrels_file, on_bad_row, doc_ids)
    total += skipped
  if judged:
    answered, skipped = read_judged_queries(Path(folder) / "queries.jsonl", judged, on_bad_row)
    splits |= answered
    total += skipped
  return {split: queries for split, queries in sorted(splits.items()) if queries}, total


# --- one line ---


def _question(row: dict[str, Any], seen: set[str], place: str) -> tuple[str, str]:
  query_id = identifier(row, ("query_id", "_id"), place)
  text = string_field(row, "query", place) or string_field(row, "text", place)
  if not text:
    raise BadRow(place, "empty text", f"query {query_id!r} has no words; give its key 'query' or 'text' some")
  claim(query_id, seen, "query_id", place)
  return query_id, text


def _check_document(doc_id: str, doc_ids: Container[str] | None, place: str) -> None:
  if doc_ids is not None and doc_id not in doc_ids:
    raise BadRow(place, "unknown document", f"no document {doc_id!r} in the corpus; correct or remove the row")
