"""Which checkpoints of a workdir are whole, by a manifest that is written as the last part of each.

    checkpoints/600/run/manifest.json    {"params/manifest.ocdbt": [421, 1755394861], "params/d/f1": [8192000, null]}
                                         size of every file, and the CRC-32 of those up to 1 MiB

A step becomes visible by one rename after everything in it was written, so a killed save leaves only a folder of
another name. A step whose files are missing, shorter or (small ones) changed is damaged: it is named and passed over.
"""

from dataclasses import dataclass
import json
from pathlib import Path
import shutil
import zlib

RUN_ITEM, MANIFEST = "run", "manifest.json"
_CHECKED_WHOLE = 1 << 20  # bytes of a file whose content is checked too
_UNFINISHED = ".orbax-checkpoint-tmp"


@dataclass(frozen=True)
class Kept:
  """What a folder of checkpoints holds; `damaged` and `unfinished` are lines that say what is wrong with which."""

  steps: tuple[int, ...]  # whole, ascending
  damaged: dict[int, str]
  unfinished: tuple[Path, ...]


def write_manifest(step: Path) -> None:
  """Lists the files of a step, whose last item is this one."""
  files = {}
  for path in sorted(step.rglob("*")):
    # Metadata and metrics are written after the items: Orbax can do without them.
    if path.is_file() and path.parent != step and path.relative_to(step).parts[0] != "metrics":
      files[_final_name(path.relative_to(step))] = _describe(path)
  (step / _temporary_run(step) / MANIFEST).write_text(json.dumps(files, indent=0), encoding="utf-8")


def look_through(checkpoints: Path, *, newest: bool = True) -> Kept:
  """Checks steps from the newest on, until one is whole (or, without `newest`, all of them)."""
  if not checkpoints.is_dir():
    return Kept((), {}, ())
  found = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdecimal())
  unfinished = tuple(sorted(path for path in checkpoints.iterdir() if _UNFINISHED in path.name))
  damaged: dict[int, str] = {}
  for step in reversed(found):
    if wrong := check_step(checkpoints / str(step)):
      damaged[step] = wrong
    elif newest:
      break
  return Kept(tuple(step for step in found if step not in damaged), damaged, unfinished)


def check_step(step: Path) -> str:
  """What is wrong with a step; nothing where all is well, or where an older program kept it without a manifest."""
  if not (step / RUN_ITEM).is_dir():
    return "" if (step / "params").is_dir() else "it has no params"
  try:
    files = json.loads((step / RUN_ITEM / MANIFEST).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return f"{RUN_ITEM}/{MANIFEST} cannot be read"
  for name, (size, checksum) in files.items():
    path = step / name
    if not path.is_file():
      return f"{name} is missing"
    if path.stat().st_size != size:
      return f"{name} has {path.stat().st_size} bytes instead of {size}"
    if checksum is not None and checksum != zlib.crc32(path.read_bytes()):
      return f"{name} has been changed"
  return ""


def set_aside(checkpoints: Path, kept: Kept) -> list[str]:
  """Moves damaged steps to `damaged/` beside the checkpoints, removes unfinished ones, and says so, a line each."""
  lines = []
  for path in kept.unfinished:
    shutil.rmtree(path, ignore_errors=True)
    lines.append(f"{path} was never finished: removed")
  for step, wrong in sorted(kept.damaged.items()):
    place = checkpoints.parent / "damaged" / str(step)
    place.parent.mkdir(exist_ok=True)
    if place.exists():
      shutil.rmtree(place)
    (checkpoints / str(step)).rename(place)
    lines.append(f"checkpoint {step} is damaged ({wrong}): moved to {place}")
  return lines


def _describe(path: Path) -> tuple[int, int | None]:
  size = path.stat().st_size
  return size, zlib.crc32(path.read_bytes()) if size <= _CHECKED_WHOLE else None


def _final_name(path: Path) -> str:
  """The name that a file of an item will have: an item's own folder may still carry a temporary one."""
  first, *rest = path.parts
  return "/".join([first.partition(_UNFINISHED)[0], *rest])


def _temporary_run(step: Path) -> str:
  (name,) = [path.name for path in step.iterdir() if path.name.partition(_UNFINISHED)[0] == RUN_ITEM]
  return name
