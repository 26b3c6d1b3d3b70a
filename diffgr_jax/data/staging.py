"""Builds a data set of large source files in parts, so that a build that breaks off goes on where it was.

    sources --reader, line by line--> parts/0000.jsonl, 0001.jsonl, ...   finished ones are not made again
    parts --TFDS builder--> array_record, the parts are removed

A part holds what the reader made of so many lines, a JSON list a line, and is renamed into place as a whole:

    ["document", doc_id, title, text]      ["query", split, query_id, query, [doc_ids], [grades]]
    ["lines", the number of lines read, {fault: rows skipped}]                     the last line

A reader makes records of the lines of all sources in turn. On a new start, the lines of finished parts are only
counted, and the records they gave are handed to the reader (`resume`), which keeps what it must know, such as titles.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.records import BadRow, Document, Query
from diffgr_jax.data.rows import OnBadRow, parse_line
from diffgr_jax.data.sources import Source, read_lines, replace_file

LINES_A_PART = 20_000
_LAST = "last.jsonl"  # when it is there, the parts are complete
Record = Document | tuple[str, Query]  # a query with its split


@runtime_checkable
class Reader(Protocol):
  """What a data set makes of the lines of its sources."""

  streamed: Sequence[Source]  # those that are read line by line, in this order
  skipped: Counter[str]  # rows left out, by fault

  def parse(self, source: Source, line: bytes, place: str) -> Sequence[Record]:
    """The records of one line. Raises BadRow."""
    ...

  def resume(self, record: Record) -> None:
    """Takes note of a record that an earlier, broken-off build has made."""
    ...

  def finish(self) -> Sequence[Record]:
    """The records that are known only behind the last line. Raises BadRow."""
    ...


def write_parts(reader: Reader, folder: Path, on_bad_row: OnBadRow, lines_a_part: int = LINES_A_PART) -> list[Path]:
  """Writes the parts that are missing, and returns all of them.

  Raises:
    BadRow: a bad row, with on_bad_row="error". Parts that are finished stay.
  """
  folder.mkdir(parents=True, exist_ok=True)
  parts, last, done = sorted(folder.glob("[0-9]*.jsonl")), folder / _LAST, 0
  complete = last.exists()
  for part in [*parts, last] if complete else parts:
    for kind, *values in _rows(part):
      if kind == "lines":
        done += values[0]
        reader.skipped.update(values[1])
      else:
        reader.resume(_record(kind, values))
  if complete:
    return [*parts, last]
  read, rows, before = 0, [], Counter(reader.skipped)
  for records in _read_all(reader, on_bad_row, skip=done):
    read += 1
    rows += [_dump(record) for record in records]
    if read == lines_a_part:
      parts.append(folder / f"{len(parts):05}.jsonl")
      _write(parts[-1], rows, read, reader.skipped - before)
      read, rows, before = 0, [], Counter(reader.skipped)
  rows += [_dump(record) for record in reader.finish()]
  _write(last, rows, read, reader.skipped - before)
  return [*parts, last]


def read_parts(parts: Sequence[Path], kind: str) -> Iterator[Any]:
  """The documents (`document`) or the (split, query) pairs (`query`) of the parts, in their order."""
  for part in parts:
    for found, *values in _rows(part):
      if found == kind:
        yield _record(found, values)


@dataclasses.dataclass(eq=False)
class StagedConfig(tfds.core.BuilderConfig):
  """What is built (`part`: corpus or queries) from which parts."""

  part: str = "corpus"
  parts: tuple[Path, ...] = ()
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # sources, options, counts: kept as metadata


def configs(digest: str, parts: Sequence[Path], provenance: dict[str, Any]) -> tuple[StagedConfig, StagedConfig]:
  """The configs of a data set's corpus and of its queries; another digest, another place on disk."""
  make = lambda part: StagedConfig(f"{part}-{digest[:16]}", part=part, parts=tuple(parts), provenance=provenance)
  return make("corpus"), make("queries")


def digest_of(version: int, sources: Sequence[Source], options: dict[str, Any]) -> str:
  """sha256 of the sources' names and contents, and of how they are read."""
  lines = [json.dumps([version, sorted(options.items())])]
  lines += [f"{source.role} {source.path.name} {source.sha256}" for source in sources]
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class StagedBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The corpus (split `documents`), or the queries (a split per query set), of finished parts."""

  @property
  def source(self) -> StagedConfig:
    return cast(StagedConfig, self.builder_config)

  def _info(self) -> tfds.core.DatasetInfo:
    corpus = self.source.part == "corpus"
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__ or "",
      features=storage.corpus_features() if corpus else storage.query_features(),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(self.source.provenance),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # the sources are read already
    if self.source.part == "corpus":
      return {storage.CORPUS_SPLIT: self._generate_examples("")}
    splits = dict.fromkeys(split for split, _ in read_parts(self.source.parts, "query"))
    return {split: self._generate_examples(split) for split in sorted(splits)}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    records = (
      (query for of, query in read_parts(self.source.parts, "query") if of == split)
      if split
      else read_parts(self.source.parts, "document")
    )
    for key, record in enumerate(records):
      yield key, storage.record_example(record)


# --- parts ---


def _read_all(reader: Reader, on_bad_row: OnBadRow, skip: int) -> Iterator[Sequence[Record]]:
  """What each line of the streamed sources gives, behind the first `skip` of them."""
  passed = 0
  for source in reader.streamed:
    try:
      for number, line in read_lines(source.path):
        passed += 1
        if passed > skip:
          parse = lambda line, place, source=source: reader.parse(source, line, place)
          found = parse_line(line, source.path, number, parse, on_bad_row, reader.skipped)
          yield [record for records in found for record in records]
    except BadRow as bad:
      if on_bad_row == "error" or bad.kind != "broken gzip":
        raise
      if passed >= skip:  # else a finished part has counted it
        reader.skipped[bad.kind] += 1


def _rows(part: Path) -> Iterator[list[Any]]:
  with part.open(encoding="utf-8") as lines:
    for line in lines:
      yield json.loads(line)


def _write(part: Path, rows: Sequence[str], lines: int, skipped: Counter[str]) -> None:
  replace_file(part, "\n".join([*rows, json.dumps(["lines", lines, dict(skipped)])]) + "\n")


def _dump(record: Record) -> str:
  if isinstance(record, Document):
    return json.dumps(["document", record.doc_id, record.title, record.text], ensure_ascii=False)
  split, query = record
  grades = list(query.grades)
  return json.dumps(["query", split, query.query_id, query.query, list(query.doc_ids), grades], ensure_ascii=False)


def _record(kind: str, values: list[Any]) -> Record:
  if kind == "document":
    return Document(*values)
  split, query_id, text, doc_ids, grades = values
  return split, Query(query_id, text, tuple(doc_ids), tuple(grades))
