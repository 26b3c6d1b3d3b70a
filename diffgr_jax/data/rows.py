"""Rows of text files: what every reader does with a line, and how it says what is wrong with one.

lines --parse--> records          a bad row raises BadRow, `FILE:LINE: what is wrong; what would be right`, or is
                                  left out and counted, as `on_bad_row` says
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
import json
from pathlib import Path
from typing import Any, Literal

from diffgr_jax.data.records import BadRow

OnBadRow = Literal["error", "skip"]
NO_TEXT = "document without text, kept"  # counted beside the skipped rows
TITLE_WORDS = 8  # what an untitled document is called by: so many of its first words


def read_rows(
  path: Path, parse: Callable[[bytes, str], Any], on_bad_row: OnBadRow, skipped: Counter[str]
) -> Iterator[Any]:
  """Yields what `parse` makes of each line of a plain file that is not blank, None left out."""
  with path.open("rb") as lines:
    for number, line in enumerate(lines, start=1):
      yield from parse_line(line, path, number, parse, on_bad_row, skipped)


def parse_line(
  line: bytes,
  path: Path,
  number: int,
  parse: Callable[[bytes, str], Any],
  on_bad_row: OnBadRow,
  skipped: Counter[str],
) -> Iterable[Any]:
  """What `parse` makes of one line: a record, or nothing where it is blank, says nothing, or is bad and skipped."""
  if number == 1:
    line = line.removeprefix(b"\xef\xbb\xbf")
  if not line.strip():
    return ()
  try:
    record = parse(line, f"{path}:{number}")
  except BadRow as bad:
    if on_bad_row == "error":
      raise
    skipped[bad.kind] += 1
    return ()
  return () if record is None else (record,)


def existing(file: str | Path) -> Path:
  path = Path(file)
  if not path.is_file():
    raise FileNotFoundError(f"{path}: no such file")
  return path


def decode_line(line: bytes, place: str) -> str:
  try:
    return line.decode("utf-8")
  except UnicodeDecodeError as error:
    found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
    raise BadRow(place, "not UTF-8", f"{found} is not UTF-8; save the file as UTF-8") from None


def parse_object(line: bytes, place: str) -> dict[str, Any]:
  text = decode_line(line, place)
  try:
    row = json.loads(text)
  except json.JSONDecodeError as error:
    raise BadRow(place, "broken JSON", f"broken JSON at column {error.colno}: {error.msg}") from None
  except (RecursionError, ValueError) as error:  # nested too deep; a number with too many digits
    raise BadRow(place, "broken JSON", f"unreadable JSON: {error}") from None
  if not isinstance(row, dict):
    raise BadRow(place, "not an object", f"a row is a JSON object {{...}}, not a {type(row).__name__}")
  return row


def identifier(row: dict[str, Any], keys: tuple[str, ...], place: str) -> str:
  for key in keys:
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
      return str(value)
    if isinstance(value, str) and value.strip():
      return whole_characters(value, place)
  raise BadRow(place, "no id", f"no id; a row needs {' or '.join(map(repr, keys))}, a string or a whole number")


def string_field(row: dict[str, Any], key: str, place: str) -> str:
  value = row.get(key)
  if value is not None and not isinstance(value, str):
    raise BadRow(place, "not a string", f"{key!r} is a {type(value).__name__}; it should be a string")
  return whole_characters((value or "").strip(), place)


def whole_characters(value: str, place: str) -> str:
  """Lets no half of a surrogate pair (a JSON escape such as \\ud800) through: no file could hold it."""
  try:
    value.encode("utf-8")
  except UnicodeEncodeError:
    raise BadRow(place, "not UTF-8", "an escape \\ud800 to \\udfff stands for no character") from None
  return value


def claim(identifier: str, seen: set[str], key: str, place: str) -> None:
  if identifier in seen:
    raise BadRow(place, "duplicate id", f"duplicate {key} {identifier!r}; ids must be unique in a file")
  seen.add(identifier)
