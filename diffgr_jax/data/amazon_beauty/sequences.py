"""Reads a category in the form in which papers of sequential recommendation share it: ready sequences.

    sequences.txt   1 1 2 3 4                       a user, then the items that he took, oldest first
    items.jsonl     {"item_id": 1, "asin": "B004756YJA", "title": "...", "brand": "...", "categories": [...]}

The sequences name items by `item_id`; the shop names them by `asin` where there is one, as the public files do. There
are no times, so the order within a day is that of whoever wrote the file.

In this form an item's categories are a set without an order. Here they are put from the general to the special by how
many items have them. A brand `Unknown` is none. An item without a title is kept, counted, and called by its brand and
category.
"""

from collections import Counter
import dataclasses
from pathlib import Path

from diffgr_jax.data.interactions.content import (
  NO_TITLE,
  Content,
  category_path,
  long_enough,
  plain_text,
  stream_rows,
  untitled_name,
)
from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, claim, decode_line, identifier, parse_object
from diffgr_jax.rerank.records import Item

FILES = {"sequences": ("sequences.txt",), "items": ("items.jsonl",)}
_NO_BRAND = "Unknown"


def read_sequences(sequences: Path, items: Path, on_bad_row: OnBadRow = "error") -> Content:
  """Reads both files.

  Raises:
    BadRow: a bad row, with on_bad_row="error". A line of sequences with an unknown item is one bad row.
  """
  skipped = Counter[str]()
  places, shop = _read_items(items, on_bad_row, skipped)
  users, histories, seen = list[str](), list[tuple[int, ...]](), set[str]()

  def parse(line: bytes, place: str) -> None:
    user, *names = decode_line(line, place).split()
    if unknown := [name for name in names if name not in places]:
      raise BadRow(place, "unknown item", f"no item {unknown[0]!r} in {items.name}; correct or remove the line")
    claim(user, seen, "user", place)
    users.append(user)
    histories.append(tuple(places[name] for name in names))

  for _ in stream_rows(sequences, parse, on_bad_row, skipped):
    pass
  return Content(general_to_special(shop), *long_enough(users, histories, skipped), +skipped)


def _read_items(path: Path, on_bad_row: OnBadRow, skipped: Counter[str]) -> tuple[dict[str, int], list[Item]]:
  """The place of each `item_id`, and the items."""
  places, names = dict[str, int](), set[str]()

  def parse(line: bytes, place: str) -> Item:
    row = parse_object(line, place)
    number = identifier(row, ("item_id",), place)
    name = identifier(row, ("asin", "item_id"), place)
    brand, title = plain_text(row, "brand", place), plain_text(row, "title", place)
    brand = "" if brand == _NO_BRAND else brand
    categories = category_path(row.get("categories"), "categories", place)
    if number in places:
      raise BadRow(place, "duplicate id", f"duplicate item_id {number!r}; ids must be unique in a file")
    claim(name, names, "asin", place)
    places[number] = len(places)
    return Item(name, title, brand, categories)

  items = list(stream_rows(path, parse, on_bad_row, skipped))
  skipped[NO_TITLE] += sum(not item.title for item in items)
  return places, items


def general_to_special(items: list[Item]) -> tuple[Item, ...]:
  """The items with each one's categories by falling number of items that have them, and then by name; names where
  a title is missing."""
  count = Counter(name for item in items for name in set(item.categories))
  ordered = []
  for item in items:
    categories = tuple(sorted(dict.fromkeys(item.categories), key=lambda name: (-count[name], name)))
    title = item.title or untitled_name(item.brand, categories)
    ordered.append(dataclasses.replace(item, title=title, categories=categories))
  return tuple(ordered)
