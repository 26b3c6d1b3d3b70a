"""The TFDS builder of `pydocs`: documentation of the running Python, found by what it is for.

A document is one docstring of the standard library without its summary; a query is the summary.

    os.path.join   "Join two or more pathname components, inserting '/' as needed."      the query
                   "If any component is an absolute path, all previous path ..."         the indexed text

All documents are indexed. Their summaries are divided among train (70%), valid (10%) and test (20%) by a hash of the
document, so a test query is the never-seen summary of a document whose other sentences were indexed. A summary that
several documents share is one query that all of them answer, in one split. Summaries of fewer than three words are no
queries.
"""

from collections.abc import Iterator
import functools
import hashlib
import json
import platform
import sys
from typing import Any, cast

import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.pydocs import harvest
from diffgr_jax.data.records import Document, Query

# Who changes how splits or queries are made must raise HARVEST_VERSION, so that they are built anew.
SPLITS = (("train", 0.7), ("valid", 0.1), ("test", 0.2))
SPLIT_SEED = "diffgr_jax.pydocs"
MIN_QUERY_WORDS = 3


@functools.cache
def harvested() -> tuple[harvest.Entry, ...]:
  """The entries of the running Python, harvested once a process."""
  return tuple(harvest.harvest())


def make_documents(entries: tuple[harvest.Entry, ...]) -> list[Document]:
  """One document an entry; the qualified name is both its id and its title."""
  return [Document(entry.title, entry.title, entry.text) for entry in entries]


def make_queries(entries: tuple[harvest.Entry, ...]) -> dict[str, list[Query]]:
  """Turns the summaries into queries, by split."""
  sharing: dict[str, list[harvest.Entry]] = {}
  for entry in entries:
    if len(entry.summary.split()) >= MIN_QUERY_WORDS:
      sharing.setdefault(" ".join(entry.summary.split()).rstrip(".").casefold(), []).append(entry)
  queries: dict[str, list[Query]] = {name: [] for name, _ in SPLITS}
  for group in sharing.values():
    first = group[0]  # entries are sorted by title, so neither order nor luck decides the split
    query = Query(f"q-{first.title}", first.summary, tuple(entry.title for entry in group))
    queries[split_of(first.title)].append(query)
  return queries


def split_of(doc_id: str) -> str:
  """The split of a document's summary: a hash of its id, uniform in [0, 1), against the splits' shares."""
  digest = hashlib.sha256(f"{SPLIT_SEED}:{doc_id}".encode()).digest()
  draw = int.from_bytes(digest[:8], "big") / 2**64
  for name, share in SPLITS[:-1]:
    if draw < share:
      return name
    draw -= share
  return SPLITS[-1][0]


def content_hash(entries: tuple[harvest.Entry, ...]) -> str:
  """sha256 of titles, summaries and texts: equal for equal content."""
  rows = [[entry.title, entry.summary, entry.text] for entry in entries]
  return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def describe(num_documents: int, fingerprint: str) -> str:
  """The line that a build prints."""
  python = f"{platform.python_implementation()} {platform.python_version()}"
  return f"pydocs: {num_documents} documents of the standard library of {python}, sha256 {fingerprint[:12]}"


class Builder(tfds.core.GeneratorBasedBuilder):
  """Configs `corpus` and `queries` of the embedded corpus. Another Python, another version."""

  VERSION = tfds.core.Version(
    f"{harvest.HARVEST_VERSION}.{sys.version_info.major * 100 + sys.version_info.minor}.{sys.version_info.micro}"
  )
  BUILDER_CONFIGS = (
    tfds.core.BuilderConfig(name="corpus", description="docstrings without their summary"),
    tfds.core.BuilderConfig(name="queries", description="the summaries"),
  )

  @property
  def holds_corpus(self) -> bool:
    return cast(tfds.core.BuilderConfig, self.builder_config).name == "corpus"

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Docstrings of the running Python's standard library.",
      features=storage.corpus_features() if self.holds_corpus else storage.query_features(),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # nothing is downloaded
    entries = harvested()
    storage.metadata(self)["fingerprint"] = content_hash(entries)
    if self.holds_corpus:
      return {storage.CORPUS_SPLIT: self._generate_examples(make_documents(entries))}
    return {split: self._generate_examples(queries) for split, queries in make_queries(entries).items()}

  def _generate_examples(self, records: list[Document] | list[Query]) -> Iterator[tuple[int, dict[str, Any]]]:
    for key, record in enumerate(records):
      yield key, storage.record_example(record)
