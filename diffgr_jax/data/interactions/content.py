"""What a reader makes of a shop's files, and how events that come in any order become histories.

    (user, item, time), in any order  --by user, then by time-->  what each user took, oldest first

Events of one user at one time have no order that anybody knows (Amazon's reviews carry a day). A hash of user and item
orders them: neither their lines nor their ids do, for both say something about when an item came to the shop.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import hashlib
import html
import math
from pathlib import Path
from typing import Any

import numpy as np

from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, parse_line, whole_characters
from diffgr_jax.data.sources import read_lines
from diffgr_jax.rerank.records import Item

LEAST_EVENTS = 3  # of a user: one to learn from, one to choose by, one to be measured on
FEW_EVENTS = f"user with fewer than {LEAST_EVENTS} events"
NO_TITLE = "item without a title, kept"  # counted beside the skipped rows
OUT_OF_ORDER = "event earlier than a line before it, sorted"  # the same
_TIES = "diffgr_jax.interactions"  # seeds the hash


@dataclass(frozen=True)
class Content:
  """What a reader gives. `skipped` counts what was left out, and what was kept with a fault, by the fault."""

  items: tuple[Item, ...]
  users: tuple[str, ...]
  histories: tuple[tuple[int, ...], ...]
  skipped: Counter[str]


@dataclass(eq=False)
class Events:
  """What users took and when, in compact arrays; users and items are numbered as they first come. `late` counts the
  events that came behind a later one of their user."""

  users: dict[str, int] = field(default_factory=dict)
  items: dict[str, int] = field(default_factory=dict)
  user: array = field(default_factory=lambda: array("q"))
  item: array = field(default_factory=lambda: array("q"))
  time: array = field(default_factory=lambda: array("d"))
  late: int = 0
  _seen: set[tuple[int, int, float]] = field(default_factory=set)
  _latest: dict[int, float] = field(default_factory=dict)

  def add(self, user: str, item: str, time: int | float, place: str) -> None:
    """Takes one event. Raises BadRow where it was there before."""
    key = (self.users.setdefault(user, len(self.users)), self.items.setdefault(item, len(self.items)), time)
    if key in self._seen:
      raise BadRow(place, "duplicate row", f"user {user!r} has taken {item!r} at {time:.15g} before; give a row once")
    self._seen.add(key)
    latest = self._latest.setdefault(key[0], time)
    self.late += time < latest
    self._latest[key[0]] = max(latest, time)
    self.user.append(key[0])
    self.item.append(key[1])
    self.time.append(time)

  def histories(self) -> tuple[list[str], list[tuple[int, ...]]]:
    """Every user and the numbers of his items, oldest first; of one time, in the order of a hash."""
    users, items = list(self.users), list(self.items)
    ties = [_tie(users[user], items[item]) for user, item in zip(self.user, self.item, strict=True)]
    user, item = np.asarray(self.user, np.int64), np.asarray(self.item, np.int64)
    order = np.lexsort((np.asarray(ties, np.uint64), np.asarray(self.time, np.float64), user))
    ends = np.cumsum(np.bincount(user, minlength=len(users)))
    return users, [tuple(own.tolist()) for own in np.split(item[order], ends[:-1])] if users else []


def long_enough(
  users: list[str], histories: list[tuple[int, ...]], skipped: Counter[str]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
  """The users with enough events, and their histories; the others are counted."""
  kept = [row for row, history in enumerate(histories) if len(history) >= LEAST_EVENTS]
  skipped[FEW_EVENTS] += len(users) - len(kept)
  return tuple(users[row] for row in kept), tuple(histories[row] for row in kept)


def stream_rows(
  path: Path, parse: Callable[[bytes, str], Any], on_bad_row: OnBadRow, skipped: Counter[str]
) -> Iterator[Any]:
  """Yields what `parse` makes of the lines of a plain or gzip file; a gzip that is cut off counts as one bad row."""
  try:
    for number, line in read_lines(path):
      yield from parse_line(line, path, number, parse, on_bad_row, skipped)
  except BadRow as bad:
    if on_bad_row == "error" or bad.kind != "broken gzip":
      raise
    skipped[bad.kind] += 1


# --- fields of a row ---


def plain_text(row: dict[str, Any], key: str, place: str) -> str:
  """A string on one line, with HTML's entities (`&amp;`) as characters; "" where there is none."""
  value = row.get(key)
  if value is not None and not isinstance(value, str):
    raise BadRow(place, "not a string", f"{key!r} is a {type(value).__name__}; it should be a string")
  return whole_characters(" ".join(html.unescape(value or "").split()), place)


def category_path(value: Any, key: str, place: str) -> tuple[str, ...]:
  """Names of categories, empty ones left out."""
  if value is None:
    return ()
  if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
    raise BadRow(place, "not a list", f"{key!r} should be a list of names, from the general to the special")
  names = (whole_characters(" ".join(html.unescape(name).split()), place) for name in value)
  return tuple(name for name in names if name)


def time_of(row: dict[str, Any], key: str, place: str) -> float:
  value = row.get(key)
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    raise BadRow(place, "no time", f"{key!r} is {value!r}; it should be a number, such as seconds since 1970")
  return float(value)


def untitled_name(brand: str, categories: tuple[str, ...]) -> str:
  """What an item without a title is called by."""
  return " ".join(filter(None, [brand, *categories[-1:]])) or "untitled item"


def _tie(user: str, item: str) -> int:
  return int.from_bytes(hashlib.blake2b(f"{_TIES}\n{user}\n{item}".encode(), digest_size=8).digest(), "big")
