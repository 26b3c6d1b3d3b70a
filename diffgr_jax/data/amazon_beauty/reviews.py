"""Reads a category of Amazon's public data of 2014 (McAuley et al.): the 5-core reviews, and the metadata.

    reviews_Beauty_5.json.gz   {"reviewerID": "A1YJ...", "asin": "7806397051", "unixReviewTime": 1391040000, ...}   JSON
    meta_Beauty.json.gz        {'asin': '7806397051', 'title': '...', 'brand': '...', 'categories': [['Beauty', ...]]}

The lines of the metadata are literals of Python, not JSON. Only items that somebody reviewed are kept, in the order in
which the reviews first name them. Of several paths of categories the longest is taken, the first where there are two;
a path goes from the general to the special. Times are days: what a user reviewed on one day is put in an order of its
own (interactions/content.py).

An item without a title, or without a row in the metadata, is kept and counted: 5-core counts it. It is called by its
brand and category.
"""

import ast
from collections import Counter
from pathlib import Path
from typing import Any
import warnings

from diffgr_jax.data.interactions.content import (
  NO_TITLE,
  Content,
  Events,
  category_path,
  long_enough,
  plain_text,
  stream_rows,
  time_of,
  untitled_name,
)
from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, claim, decode_line, identifier, parse_object
from diffgr_jax.rerank.records import Item

# role -> names of its file, by category
FILES = {
  "reviews": ("reviews_{category}_5.json.gz", "reviews_{category}_5.json"),
  "metadata": ("meta_{category}.json.gz", "meta_{category}.json"),
}
URL = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
NO_METADATA = "item without metadata, kept"


def read_reviews(reviews: Path, metadata: Path, on_bad_row: OnBadRow = "error") -> Content:
  """Reads both files.

  Raises:
    BadRow: a bad row, with on_bad_row="error".
  """
  skipped, events = Counter[str](), Events()

  def parse_review(line: bytes, place: str) -> None:
    row = parse_object(line, place)
    user, asin = identifier(row, ("reviewerID",), place), identifier(row, ("asin",), place)
    events.add(user, asin, time_of(row, "unixReviewTime", place), place)

  for _ in stream_rows(reviews, parse_review, on_bad_row, skipped):
    pass
  found, seen = dict[str, Item](), set[str]()

  def parse_metadata(line: bytes, place: str) -> Item | None:
    row = parse_literal(line, place)
    asin = identifier(row, ("asin",), place)
    if asin not in events.items:
      return None
    title, brand = plain_text(row, "title", place), plain_text(row, "brand", place)
    categories = _longest_path(row, place)
    claim(asin, seen, "asin", place)
    return Item(asin, title, brand, categories)

  with warnings.catch_warnings():
    for kind in (SyntaxWarning, DeprecationWarning):  # titles hold backslashes that Python knows no escape for
      warnings.simplefilter("ignore", kind)
    for item in stream_rows(metadata, parse_metadata, on_bad_row, skipped):
      found[item.item_id] = item
  items = tuple(_titled(found.get(asin, Item(asin, "")), asin in found, skipped) for asin in events.items)
  users, histories = long_enough(*events.histories(), skipped)
  return Content(items, users, histories, +skipped)


def parse_literal(line: bytes, place: str) -> dict[str, Any]:
  """The dictionary that a line writes as Python does. Nothing of it is run."""
  text = decode_line(line, place).strip()
  try:
    row = ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
    what = f"no literal of Python: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    raise BadRow(place, "broken literal", what) from None
  if not isinstance(row, dict):
    raise BadRow(place, "not an object", f"a row is a dictionary {{...}}, not a {type(row).__name__}")
  return row


def _longest_path(row: dict[str, Any], place: str) -> tuple[str, ...]:
  paths = row.get("categories")
  if paths is not None and not isinstance(paths, list):
    raise BadRow(place, "not a list", "'categories' should be a list of paths, each a list of names")
  read = [category_path(path, "categories", place) for path in paths or ()]
  return max(read, key=len, default=())


def _titled(item: Item, known: bool, skipped: Counter[str]) -> Item:
  if item.title:
    return item
  skipped[NO_TITLE if known else NO_METADATA] += 1
  return Item(item.item_id, untitled_name(item.brand, item.categories), item.brand, item.categories)
