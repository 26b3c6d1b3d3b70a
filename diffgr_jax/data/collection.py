"""Gets a collection by name: builds its array_record files where they are missing, then reads them.

    load_collection("pydocs", data_dir=...)                     the embedded corpus
    load_collection("folder", path="my/corpus", data_dir=...)   a folder in the BEIR shape (data/folder/reader.py)

Files stand under `data_dir` by data set, version and, for a folder, fingerprint: what is there already is only read.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.folder import folder_dataset_builder, reader
from diffgr_jax.data.pydocs import pydocs_dataset_builder
from diffgr_jax.data.records import Collection

NAMES = ("pydocs", "folder")


def load_collection(name: str, *, path: str | Path = "", data_dir: str | Path, on_bad_row: str = "error") -> Collection:
  """Returns a collection, built first if `data_dir` does not hold it yet. A build prints one line.

  Args:
    name: `pydocs` or `folder`.
    path: the folder of `folder`; other collections take none.
    data_dir: where array_record files are kept; it is made if needed.
    on_bad_row: what `folder` does about a row that is no record: "error" raises BadRow, "skip" leaves it out and
      counts it in `Collection.skipped`.

  Raises:
    ValueError: an unknown name or option, a path that is missing or not wanted, or a corpus without documents.
    FileNotFoundError: `path` is no folder, or has no corpus.jsonl.
    BadRow: a bad row, with on_bad_row="error".
  """
  if name not in NAMES:
    raise ValueError(f"no collection {name!r}; there are {', '.join(NAMES)}")
  if on_bad_row not in ("error", "skip"):
    raise ValueError(f'on_bad_row is "error" or "skip", not {on_bad_row!r}')
  if bool(path) != (name == "folder"):
    raise ValueError("the collection folder needs a path" if name == "folder" else f"{name} takes no path")
  data_dir = Path(data_dir).expanduser()
  data_dir.mkdir(parents=True, exist_ok=True)
  return _load_pydocs(data_dir) if name == "pydocs" else _load_folder(Path(path), data_dir, on_bad_row)


def _load_pydocs(data_dir: Path) -> Collection:
  with storage.quiet_logs():
    corpus, queries = (
      pydocs_dataset_builder.Builder(data_dir=data_dir, config=config) for config in ("corpus", "queries")
    )
  built = storage.prepare(corpus)
  storage.prepare(queries)
  collection = _read("pydocs", corpus, queries, storage.metadata(corpus)["fingerprint"], {})
  if built:
    print(pydocs_dataset_builder.describe(len(collection.documents), collection.fingerprint), flush=True)
  return collection


def _load_folder(path: Path, data_dir: Path, on_bad_row: reader.OnBadRow) -> Collection:
  corpus_config, queries_config = folder_dataset_builder.configs(path, on_bad_row)
  with storage.quiet_logs():
    corpus, queries = (
      folder_dataset_builder.Builder(data_dir=data_dir, config=config) for config in (corpus_config, queries_config)
    )
  built = storage.prepare(corpus)
  has_queries = bool(reader.query_files(path))
  if has_queries:
    storage.prepare(queries)
  skipped = Counter(storage.metadata(corpus)["skipped"])
  if has_queries:
    skipped += Counter(storage.metadata(queries)["skipped"])
  collection = _read("folder", corpus, queries, corpus_config.fingerprint, dict(skipped))
  if built:
    left_out = "".join(f", {count} skipped ({kind})" for kind, count in sorted(skipped.items()))
    print(f"folder {path}: {len(collection.documents)} documents{left_out}", flush=True)
  return collection


def _read(
  name: str,
  corpus: tfds.core.DatasetBuilder,
  queries: tfds.core.DatasetBuilder,
  fingerprint: str,
  skipped: Mapping[str, int],
) -> Collection:
  documents = storage.read_documents(corpus)
  splits = {split: storage.read_queries(queries, split) for split in queries.info.splits}
  return Collection(name, documents, splits, fingerprint, skipped)
