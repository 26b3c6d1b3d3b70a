"""Reads a user's own shop: two JSON lines files in a folder, plain or gzip, UTF-8.

    FOLDER/items.jsonl[.gz]          {"item_id", "title" [, "brand"] [, "categories"]}     one item a line
    FOLDER/interactions.jsonl[.gz]   {"user", "item_id", "time"}                           one event a line

    {"item_id": "T7", "title": "Assam tea, 250 g", "brand": "Hill", "categories": ["Drinks", "Tea"]}
    {"user": "u1", "item_id": "T7", "time": 1389657600}

Ids are strings or whole numbers. `categories` go from the general to the special. `time` is any number that grows: only
the order of one user's times is read, the lines may come in any order, and events of one time are put in an order of
their own (content.py). A user may take an item again at another time. Other keys are ignored; so are blank lines.

With `on_bad_row="error"` the first bad row raises BadRow, `FILE:LINE: ...`; with "skip" bad rows are left out and
counted: no id, a title that is missing or empty, an id or an event given twice, an event of an unknown item, a time
that is no number. In both modes lines that come behind a later one of their user are counted, and put where they
belong; users with fewer than `LEAST_EVENTS` events are left out and counted, for a user needs one event to learn from,
one to choose by and one to be measured on.
"""

from collections import Counter
from pathlib import Path

from diffgr_jax.data.interactions.content import (
  OUT_OF_ORDER,
  Content,
  Events,
  category_path,
  long_enough,
  plain_text,
  stream_rows,
  time_of,
)
from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, claim, identifier, parse_object
from diffgr_jax.rerank.records import Item

# role -> names of its file
FILES = {
  "items": ("items.jsonl", "items.jsonl.gz"),
  "interactions": ("interactions.jsonl", "interactions.jsonl.gz"),
}


def read_interactions(items: Path, interactions: Path, on_bad_row: OnBadRow = "error") -> Content:
  """Reads both files.

  Raises:
    BadRow: a bad row, with on_bad_row="error".
  """
  skipped, seen = Counter[str](), set[str]()

  def parse_item(line: bytes, place: str) -> Item:
    row = parse_object(line, place)
    item_id, title = identifier(row, ("item_id",), place), plain_text(row, "title", place)
    if not title:
      raise BadRow(place, "no title", f"item {item_id!r} has no 'title'; give it the name that people see")
    brand, categories = plain_text(row, "brand", place), category_path(row.get("categories"), "categories", place)
    claim(item_id, seen, "item_id", place)
    return Item(item_id, title, brand, categories)

  shop = tuple(stream_rows(items, parse_item, on_bad_row, skipped))
  events = Events(items={item.item_id: row for row, item in enumerate(shop)})

  def parse_event(line: bytes, place: str) -> None:
    row = parse_object(line, place)
    user, item_id = identifier(row, ("user",), place), identifier(row, ("item_id",), place)
    if item_id not in events.items:
      raise BadRow(place, "unknown item", f"no item {item_id!r} in {items.name}; correct or remove the row")
    events.add(user, item_id, time_of(row, "time", place), place)

  for _ in stream_rows(interactions, parse_event, on_bad_row, skipped):
    pass
  skipped[OUT_OF_ORDER] += events.late
  users, histories = long_enough(*events.histories(), skipped)
  return Content(shop, users, histories, +skipped)
