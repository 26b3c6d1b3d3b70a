"""The TFDS builder of `folder`: a user's own corpus, read once and kept as array_record.

The configs are made for the input at hand, `corpus-FINGERPRINT` and `queries-FINGERPRINT`: a folder whose files change
gets another fingerprint, hence another place on disk, and is built anew.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, cast

import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.folder import reader
from diffgr_jax.data.records import Document, Query
from diffgr_jax.data.rows import NO_TEXT, OnBadRow

READER_VERSION = 1
# Raise a mode's number when the reader's rules change what that mode builds: it is part of the fingerprint.
RULES: dict[OnBadRow, int] = {"error": 1, "skip": 2}


@dataclasses.dataclass(eq=False)
class FolderConfig(tfds.core.BuilderConfig):
  """What is read (`part`: corpus or queries), from where, and what is done about bad rows."""

  path: str = ""
  part: str = "corpus"
  on_bad_row: OnBadRow = "error"
  fingerprint: str = ""


def configs(path: str | Path, on_bad_row: OnBadRow) -> tuple[FolderConfig, FolderConfig]:
  """The configs of a folder's corpus and of its queries.

  Raises:
    FileNotFoundError: there is no such folder, or no corpus.jsonl in it.
  """
  digest = fingerprint(path, on_bad_row)
  corpus, queries = (
    FolderConfig(f"{part}-{digest[:16]}", path=str(path), part=part, on_bad_row=on_bad_row, fingerprint=digest)
    for part in ("corpus", "queries")
  )
  return corpus, queries


def fingerprint(path: str | Path, on_bad_row: OnBadRow) -> str:
  """sha256 of the names and bytes of the files that would be read, and of how they would be."""
  files = {reader.corpus_file(path)}
  for pair in reader.query_files(path).values():
    files |= {file for file in pair if file}
  digest = hashlib.sha256(f"{RULES[on_bad_row]} {on_bad_row}".encode())
  for file in sorted(files):
    with file.open("rb") as stream:
      content = hashlib.file_digest(stream, "sha256").hexdigest()
    digest.update(f"\n{file.relative_to(path)} {content}".encode())
  return digest.hexdigest()


class Builder(tfds.core.GeneratorBasedBuilder):
  """The corpus (split `documents`), or the queries (a split per query set), of one folder."""

  VERSION = tfds.core.Version(f"{READER_VERSION}.0.0")

  @property
  def source(self) -> FolderConfig:
    return cast(FolderConfig, self.builder_config)

  def _info(self) -> tfds.core.DatasetInfo:
    corpus = self.source.part == "corpus"
    return tfds.core.DatasetInfo(
      builder=self,
      description=f"The {self.source.part} of a folder in the BEIR shape.",
      features=storage.corpus_features() if corpus else storage.query_features(),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(skipped={}),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    if self.source.part == "corpus":
      return {storage.CORPUS_SPLIT: self._generate_examples(self._documents())}
    splits, skipped = reader.read_splits(self.source.path, self.source.on_bad_row)
    storage.metadata(self)["skipped"] = dict(skipped)
    return {name: self._generate_examples(queries) for name, queries in splits.items()}

  def _generate_examples(self, records: Iterable[Document | Query]) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, record in enumerate(records):
      yield key, storage.record_example(record)

  def _documents(self) -> Iterator[Document]:
    """Streams the corpus; what was skipped is known, and kept, at its end."""
    file = reader.corpus_file(self.source.path)
    documents, skipped = reader.read_corpus(file, self.source.on_bad_row)
    count = 0
    for document in documents:
      count += 1
      yield document
    if not count:
      raise ValueError(f"{file} has no documents")
    if skipped[NO_TEXT] == count:
      raise ValueError(f"{file}: none of its {count} documents has words under 'text'; nothing could be indexed")
    storage.metadata(self)["skipped"] = dict(skipped)
