"""Gets a collection by name: builds its array_record files where they are missing, then reads them.

    load_collection("pydocs", data_dir=...)                     the embedded corpus
    load_collection("folder", path="my/corpus", data_dir=...)   a folder in the BEIR shape (data/folder/reader.py)
    load_collection("nq320k", path="downloads", data_dir=...)   Natural Questions (data/nq320k/reader.py)
    load_collection("msmarco", path="downloads", data_dir=...)  MS MARCO (data/msmarco/reader.py)

Files stand under `data_dir` by data set, version and, for a folder, fingerprint: what is there already is only read.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
import shutil
from typing import Any, cast

import tensorflow_datasets as tfds

from diffgr_jax.data import staging, storage
from diffgr_jax.data.folder import folder_dataset_builder, reader
from diffgr_jax.data.msmarco import msmarco_dataset_builder
from diffgr_jax.data.msmarco import reader as msmarco
from diffgr_jax.data.nq320k import nq320k_dataset_builder
from diffgr_jax.data.nq320k import reader as nq320k
from diffgr_jax.data.pydocs import pydocs_dataset_builder
from diffgr_jax.data.records import Collection
from diffgr_jax.data.rows import NO_TEXT, OnBadRow
from diffgr_jax.data.sources import Source, check_manifest, find_sources

NAMES = ("pydocs", "folder", "nq320k", "msmarco")
PUBLIC = {"nq320k": nq320k.URL, "msmarco": msmarco.URL}  # and where their files are, by config.dataset_path = "public"


@dataclass(frozen=True)
class Selection:
  """What is taken of a public data set."""

  words: int = 512  # of a document's text, from its beginning; 0: all
  limit: int = 0  # msmarco: documents of the subset; 0: all
  part: str = "documents"  # msmarco: documents | passages
  manifest: str = ""  # file of sha256sum that the sources are compared with

  def __post_init__(self):
    if self.words < 0 or self.limit < 0:
      raise ValueError(f"words is {self.words} and limit {self.limit}; both are 0 (all) or more")
    if self.part not in msmarco.PARTS:
      raise ValueError(f"part is one of {', '.join(msmarco.PARTS)}, not {self.part!r}")


def load_collection(
  name: str,
  *,
  path: str | Path = "",
  data_dir: str | Path,
  on_bad_row: str = "error",
  selection: Selection = Selection(),  # noqa: B008 (frozen)
) -> Collection:
  """Returns a collection, built first if `data_dir` does not hold it yet. A build prints one line.

  Args:
    name: one of `NAMES`.
    path: the folder of `folder`; the folder or the URL of the files of `nq320k` and `msmarco`, `public` for their
      publisher's; pydocs takes none.
    data_dir: where array_record files, and downloads, are kept; it is made if needed.
    on_bad_row: about a row that is no record: "error" raises BadRow, "skip" leaves it out and counts it in
      `Collection.skipped`.
    selection: what is taken of `nq320k` or `msmarco`.

  Raises:
    ValueError: an unknown name or option, a path that is missing or not wanted, a file that is not that of the
      manifest, a download that broke off, or a corpus without documents.
    FileNotFoundError: `path` is no folder, or files are missing from it.
    BadRow: a bad row, with on_bad_row="error".
  """
  if name not in NAMES:
    raise ValueError(f"no collection {name!r}; there are {', '.join(NAMES)}")
  if on_bad_row not in ("error", "skip"):
    raise ValueError(f'on_bad_row is "error" or "skip", not {on_bad_row!r}')
  if bool(path) == (name == "pydocs"):
    raise ValueError(f"{name} takes no path" if path else f"the collection {name} needs a path")
  data_dir, mode = Path(data_dir).expanduser(), cast(OnBadRow, on_bad_row)
  data_dir.mkdir(parents=True, exist_ok=True)
  if name == "pydocs":
    return _load_pydocs(data_dir)
  if name == "folder":
    return _load_folder(Path(path), data_dir, mode)
  return _load_public(name, str(path), data_dir, mode, selection)


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


def _load_folder(path: Path, data_dir: Path, on_bad_row: OnBadRow) -> Collection:
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
    _announce(collection, f"folder {path}")
  return collection


def _load_public(name: str, where: str, data_dir: Path, on_bad_row: OnBadRow, selection: Selection) -> Collection:
  sources = check_manifest(
    _find_public(name, PUBLIC[name] if where == "public" else where, data_dir / "downloads" / name, selection.part),
    data_dir / name,
    selection.manifest,
  )
  options: dict[str, Any] = {"words": selection.words, "on_bad_row": on_bad_row}
  options |= {"limit": selection.limit, "part": selection.part} if name == "msmarco" else {}
  make = {"nq320k": nq320k_dataset_builder, "msmarco": msmarco_dataset_builder}[name]
  digest = staging.digest_of(make.READER_VERSION, sources, options)
  files = {source.path.name: source.sha256 for source in sources}

  def builders(parts: list[Path], skipped: Mapping[str, int]) -> tuple[tfds.core.DatasetBuilder, ...]:
    provenance = {"sources": files, "options": options, "skipped": dict(skipped)}
    with storage.quiet_logs():
      return tuple(
        make.Builder(data_dir=data_dir, config=config) for config in staging.configs(digest, parts, provenance)
      )

  corpus, queries = builders([], {})
  built = not (corpus.data_path.exists() and queries.data_path.exists())
  if built:
    folder = data_dir / name / f"parts-{digest[:16]}"
    rows = _public_reader(name, sources, selection, on_bad_row)
    parts = staging.write_parts(rows, folder, on_bad_row)
    if not any(True for _ in staging.read_parts(parts, "document")):
      raise ValueError(f"{name} at {where}: none of {', '.join(files)} gave a document")
    corpus, queries = builders(parts, +rows.skipped)
    storage.prepare(corpus)
    storage.prepare(queries)
    shutil.rmtree(folder)
  collection = _read(name, corpus, queries, digest, storage.metadata(corpus)["skipped"])
  if built:
    _announce(collection, f"{name} {where}")
  return collection


def _find_public(name: str, where: str, downloads: Path, part: str) -> list[Source]:
  """The sources of a data set, checked for what it cannot do without."""
  files = nq320k.FILES if name == "nq320k" else msmarco.FILES[part]
  needed = {"train"} if name == "nq320k" else {"collection", "qrels.train", "queries.train"}
  sources = find_sources(where, files, downloads)
  missing = [role for role in files if role in needed - {source.role for source in sources}]
  if missing:
    names = " or ".join(files[missing[0]])
    raise FileNotFoundError(f"{where} has no {names}, which {name} needs for its {missing[0]}")
  return sources


def _public_reader(name: str, sources: list[Source], selection: Selection, on_bad_row: OnBadRow) -> staging.Reader:
  if name == "nq320k":
    return nq320k.NqReader(sources, selection.words)
  return msmarco.MarcoReader(sources, selection.part, selection.words, selection.limit, on_bad_row)


def _announce(collection: Collection, what: str) -> None:
  """The line that a build prints."""
  skipped = dict(collection.skipped)
  kept = skipped.pop(NO_TEXT, 0)
  without = f" ({kept} of them without text)" if kept else ""
  left_out = "".join(f", {count} skipped ({kind})" for kind, count in sorted(skipped.items()))
  print(f"{what}: {len(collection.documents)} documents{without}{left_out}", flush=True)


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
