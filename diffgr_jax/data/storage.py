"""How records lie on disk: array_record files that tensorflow-datasets writes and reads, without TensorFlow.

Every data set is a TFDS builder with two configs, `corpus` (one split, `documents`) and `queries` (a split per query
set); their features are defined here, once. A builder's `info.metadata` carries what belongs to no record: the
fingerprint and the counts of skipped rows.
"""

from collections.abc import Iterator
import contextlib
from dataclasses import asdict
import io
import logging
import threading
from typing import Any, cast

from absl import logging as absl_logging
import numpy as np
import tensorflow_datasets as tfds

from diffgr_jax.data.records import Document, Query

CORPUS_SPLIT = "documents"
SECONDS_BEFORE_PROGRESS = 5.0  # a build that is done sooner shows no progress bar

Text = tfds.features.Text


def corpus_features() -> tfds.features.FeaturesDict:
  return tfds.features.FeaturesDict({"doc_id": Text(), "title": Text(), "text": Text()})


def query_features() -> tfds.features.FeaturesDict:
  many = tfds.features.Sequence
  return tfds.features.FeaturesDict(
    {"query_id": Text(), "query": Text(), "doc_ids": many(Text()), "grades": many(np.int32)}
  )


def record_example(record: Document | Query) -> dict[str, Any]:
  """The row of a record. A query's implied grades are written out, for a feature has no default."""
  row = asdict(record)
  if isinstance(record, Query):
    row["grades"] = record.grades or (1,) * len(record.doc_ids)
  return row


def read_documents(builder: tfds.core.DatasetBuilder) -> tuple[Document, ...]:
  """Reads the documents of a prepared `corpus` config, in the order in which they were written."""
  rows = stored_rows(builder, CORPUS_SPLIT)
  text = stored_text
  return tuple(Document(text(row["doc_id"]), text(row["title"]), text(row["text"])) for row in rows)


def read_queries(builder: tfds.core.DatasetBuilder, split: str) -> tuple[Query, ...]:
  """Reads one split of a prepared `queries` config, in the order in which it was written."""
  return tuple(_query(row) for row in stored_rows(builder, split))


def prepare(builder: tfds.core.DatasetBuilder) -> bool:
  """Builds the data set where it is not built yet, without a word unless it takes long. Returns whether it built.

  Raises:
    Whatever the builder's own generator raises, unchanged.
  """
  if builder.data_path.exists():
    return False
  with _quiet():
    try:
      builder.download_and_prepare(file_format="array_record")
    except OSError:
      if not builder.data_path.exists():
        raise
      builder.info.read_from_directory(builder.data_path)  # another process was faster; its files are the same
  return True


def metadata(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """What a builder keeps beside its records."""
  return cast(dict[str, Any], builder.info.metadata)


@contextlib.contextmanager
def quiet_logs() -> Iterator[None]:
  """Keeps the remarks of absl and TFDS (`Using custom data configuration ...`) from the user; errors pass."""
  before = absl_logging.get_verbosity()
  root = logging.getLogger("absl").level
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    yield
  finally:
    absl_logging.set_verbosity(before)
    logging.getLogger("absl").setLevel(root)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides logs, what TFDS prints, and the progress bars of the first `SECONDS_BEFORE_PROGRESS`."""
  tfds.disable_progress_bar()
  show = threading.Timer(SECONDS_BEFORE_PROGRESS, tfds.enable_progress_bar)
  show.daemon = True
  show.start()
  try:
    with quiet_logs(), contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    show.cancel()
    tfds.enable_progress_bar()


def stored_rows(builder: tfds.core.DatasetBuilder, split: str) -> Iterator[dict[str, Any]]:
  """The rows of one split of a prepared config, in the order in which they were written."""
  source: Any = cast(Any, builder).as_data_source(split=split)
  for start in range(0, len(source), 1024):
    yield from source.__getitems__(range(start, min(start + 1024, len(source))))


def _query(row: dict[str, Any]) -> Query:
  doc_ids = tuple(stored_text(doc_id) for doc_id in row["doc_ids"])
  grades = tuple(int(grade) for grade in row["grades"])
  return Query(stored_text(row["query_id"]), stored_text(row["query"]), doc_ids, () if set(grades) == {1} else grades)


def stored_text(value: bytes) -> str:
  """The string behind a stored Text feature."""
  return value.decode("utf-8")
