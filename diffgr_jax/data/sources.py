"""Source files of a public data set: found in a folder or downloaded, known by their sha256, read line by line.

    folder or URL --find_sources--> [Source]          a download goes on where it broke off
    Source --check_manifest--> sha256 known           and recorded, so that a file that has not changed is hashed once
    Source --read_lines--> (number, line)             plain or gzip, never the whole file in memory

Files of several gigabytes are meant: everything here streams, and shows a progress bar if it takes long.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
import gzip
import hashlib
import http.client
import json
import os
from pathlib import Path
import shutil
import urllib.error
import urllib.request
import zlib

from tqdm import tqdm

from diffgr_jax.data.records import BadRow

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60  # seconds without a byte
_LEDGER = "sources.json"


@dataclass(frozen=True)
class Source:
  """One file. `role` says what it holds to the reader of its data set, e.g. `train` or `qrels.dev`."""

  role: str
  path: Path
  sha256: str = ""


def is_url(where: str) -> bool:
  return where.startswith(("http://", "https://"))


def find_sources(where: str, wanted: Mapping[str, Sequence[str]], downloads: Path) -> list[Source]:
  """Finds the file of each role, in a folder (or one folder below it) or under a URL.

  Args:
    where: a folder, or a URL that the names are below.
    wanted: role -> names that the file may have, the first that exists is taken. In a folder a name may hold `*`, and
      all files that match the first fitting name are taken, in the order of their names.
    downloads: where files of a URL are kept.

  Returns:
    The files that exist, without their sha256.

  Raises:
    FileNotFoundError: `where` is no folder.
    ValueError: a download that fails.
  """
  if is_url(where):
    found = [(role, _download_first(where.rstrip("/"), names, downloads)) for role, names in wanted.items()]
    return [Source(role, path) for role, path in found if path is not None]
  folder = Path(where).expanduser()
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder; config.dataset_path names the folder or the URL of the files")
  sources = []
  for role, names in wanted.items():
    matches = ({*folder.glob(name), *folder.glob(f"*/{name}")} for name in names)
    sources += [Source(role, file) for file in sorted(next((files for files in matches if files), set()))]
  return sources


def check_manifest(sources: Sequence[Source], ledger: Path, manifest: str = "") -> list[Source]:
  """Gives every source its sha256, records it, and compares it with a manifest.

  Args:
    sources: the files.
    ledger: folder with the record, sources.json: name -> sha256, bytes, time of change. A file whose size and time are
      those of the record is not read again.
    manifest: a file of `sha256sum`, `HASH  NAME` a line; "": nothing to compare with. A source that it does not name
      is an error, a name that is no source is not.

  Raises:
    FileNotFoundError, ValueError: no manifest, a line of it that is none, or a file that differs; one line.
  """
  path = ledger / _LEDGER
  known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  checked = []
  for source in sources:
    stat = source.path.stat()
    old, key = known.get(str(source.path.resolve()), {}), {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    digest = old["sha256"] if {name: old.get(name) for name in key} == key else _sha256(source.path)
    known[str(source.path.resolve())] = {"sha256": digest, **key}
    checked.append(dataclasses.replace(source, sha256=digest))
  ledger.mkdir(parents=True, exist_ok=True)
  replace_file(path, json.dumps(known, indent=1))
  if manifest:
    wanted = _read_manifest(Path(manifest))
    for source in checked:
      if source.path.name not in wanted:
        raise ValueError(f"{manifest} names no {source.path.name}; add its line or leave config.dataset_manifest empty")
      if source.sha256 != wanted[source.path.name]:
        raise ValueError(
          f"{source.path} has sha256 {source.sha256}, but {manifest} says {wanted[source.path.name]}: fetch it anew"
        )
  return checked


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
  """Yields line numbers (from 1) and lines of a plain or gzip file, with a progress bar after 5 seconds.

  Raises:
    BadRow: of kind `broken gzip`, where a compressed file ends early or is damaged; what came before has been yielded.
  """
  number = 0
  bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, leave=False, delay=5)
  with path.open("rb") as raw, bar:
    lines = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    while True:
      try:
        line = lines.readline()
      except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        what = f"the gzip file is cut off or damaged behind this line ({error}); fetch it anew"
        raise BadRow(f"{path}:{number}", "broken gzip", what) from None
      if not line:
        return
      number += 1
      bar.update(raw.tell() - bar.n)
      yield number, line


def replace_file(path: Path, text: str) -> None:
  """Writes a file as a whole: whoever reads it sees the old one or the new one."""
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  part.write_text(text, encoding="utf-8")
  part.replace(path)


# --- downloads ---


def _download_first(base: str, names: Sequence[str], downloads: Path) -> Path | None:
  """The first of the names that the server has; None: it has none of them."""
  plain = [name for name in names if "*" not in name]
  for name in plain:
    if (downloads / name).exists():
      return downloads / name
  for name in plain:
    try:
      return download(f"{base}/{name}", downloads / name)
    except FileNotFoundError:
      continue
  return None


def download(url: str, path: Path) -> Path:
  """Downloads a file unless it is there. What a broken-off download left is gone on with, if the server can.

  Raises:
    FileNotFoundError: the server has no such file.
    ValueError: it cannot be reached or sends less than it promised; what came is kept for the next try.
  """
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  have = part.stat().st_size if part.exists() else 0
  request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
  try:
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
      have = have if response.status == http.client.PARTIAL_CONTENT else 0  # another answer begins from the start
      length = response.headers.get("Content-Length")
      total = have + int(length) if length else None
      bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=path.name, leave=False, delay=5)
      with part.open("ab" if have else "wb") as out, bar:
        while chunk := response.read(_CHUNK):
          out.write(chunk)
          bar.update(len(chunk))
  except urllib.error.HTTPError as error:
    if error.code in (http.client.NOT_FOUND, http.client.FORBIDDEN):
      raise FileNotFoundError(f"{url}: no such file ({error.code})") from None
    if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
      raise ValueError(f"{url}: {error}; run the command again to go on") from None
    total = have  # all of it had come before
  except (OSError, http.client.HTTPException) as error:
    raise ValueError(f"{url}: {error}; run the command again to go on at {_size(part)} bytes") from None
  if total is not None and _size(part) != total:
    raise ValueError(f"{url}: {_size(part)} of {total} bytes came; run the command again to go on")
  shutil.move(part, path)
  return path


def _size(path: Path) -> int:
  return path.stat().st_size if path.exists() else 0


# --- checksums ---


def _sha256(path: Path) -> str:
  digest = hashlib.sha256()
  bar = tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"sha256 {path.name}", leave=False, delay=5)
  with path.open("rb") as stream, bar:
    while chunk := stream.read(_CHUNK):
      digest.update(chunk)
      bar.update(len(chunk))
  return digest.hexdigest()


def _read_manifest(path: Path) -> dict[str, str]:
  if not path.is_file():
    raise FileNotFoundError(f"config.dataset_manifest={path}: no such file; sha256sum writes one")
  wanted = {}
  for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
    if line.strip():
      digest, _, name = line.strip().partition(" ")
      if len(digest) != 64 or not name.strip():
        raise ValueError(f"{path}:{number}: a line is a sha256, two spaces and a name, not {line.strip()[:60]!r}")
      wanted[Path(name.strip().lstrip("*")).name] = digest.lower()
  return wanted
