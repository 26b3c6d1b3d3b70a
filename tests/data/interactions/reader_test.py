"""A user's own shop: what good files give, and what each kind of bad row is told."""

import gzip
import json

import pytest

from diffgr_jax.data.interactions.reader import read_interactions
from diffgr_jax.data.records import BadRow
from diffgr_jax.rerank.records import Item

ITEMS = [
  {"item_id": "T7", "title": "Assam tea, 250 g", "brand": "Hill", "categories": ["Drinks", "Tea"]},
  {"item_id": 8, "title": "Kettle"},
  {"item_id": "c", "title": "Cup &amp; saucer", "brand": None, "categories": None, "price": 3},
]
EVENTS = [
  {"user": "u", "item_id": "c", "time": 30}, {"user": "u", "item_id": 8, "time": 10.5},
  {"user": 5, "item_id": "T7", "time": 1}, {"user": "u", "item_id": "T7", "time": 20},
  {"user": "v", "item_id": "T7", "time": -4}, {"user": "v", "item_id": "T7", "time": 9},
  {"user": "v", "item_id": "8", "time": 0},
]  # fmt: skip


def write(path, rows):
  lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
  path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
  return path


def read(tmp_path, items=ITEMS, events=EVENTS, mode="error"):
  return read_interactions(write(tmp_path / "items.jsonl", items), write(tmp_path / "interactions.jsonl", events), mode)


def test_items_and_histories(tmp_path):
  shop = read(tmp_path, items=[*ITEMS, b""])
  assert shop.items == (
    Item("T7", "Assam tea, 250 g", "Hill", ("Drinks", "Tea")), Item("8", "Kettle"), Item("c", "Cup & saucer"),
  )  # fmt: skip
  assert dict(zip(shop.users, shop.histories, strict=True)) == {"u": (1, 0, 2), "v": (0, 1, 0)}
  # 5 has one event; two of u's lines and one of v's come behind a later one
  assert shop.skipped == {"user with fewer than 3 events": 1, "event earlier than a line before it, sorted": 3}


BAD_ITEMS = [
  ({"title": "T"}, "no id", "a row needs 'item_id'"),
  ({"item_id": "x"}, "no title", "item 'x' has no 'title'"),
  ({"item_id": "x", "title": " "}, "no title", "item 'x' has no 'title'"),
  ({"item_id": "x", "title": 3}, "not a string", "'title' is a int"),
  ({"item_id": "x", "title": "T", "brand": ["b"]}, "not a string", "'brand' is a list"),
  ({"item_id": "x", "title": "T", "categories": "Tea"}, "not a list", "'categories' should be a list of names"),
  ({"item_id": "x", "title": "T", "categories": [["Tea"]]}, "not a list", "'categories' should be a list of names"),
  ({"item_id": "T7", "title": "T"}, "duplicate id", "duplicate item_id 'T7'"),
  (b'{"item_id": "x", ', "broken JSON", "broken JSON at column"),
  (b"[]", "not an object", "not a list"),
  (b'{"item_id": "caf\xe9"}', "not UTF-8", "byte 0xe9"),
]
BAD_EVENTS = [
  ({"item_id": "c", "time": 3}, "no id", "a row needs 'user'"),
  ({"user": "u", "time": 3}, "no id", "a row needs 'item_id'"),
  ({"user": "u", "item_id": "nowhere", "time": 3}, "unknown item", "no item 'nowhere' in items.jsonl"),
  ({"user": "u", "item_id": "c"}, "no time", "'time' is None; it should be a number"),
  ({"user": "u", "item_id": "c", "time": "2014-01-14"}, "no time", "it should be a number"),
  (EVENTS[0], "duplicate row", "user 'u' has taken 'c' at 30 before"),
  (b"{", "broken JSON", "broken JSON"),
]


@pytest.mark.parametrize("row, kind, message", BAD_ITEMS, ids=lambda value: str(value)[:40])
def test_a_bad_item(tmp_path, row, kind, message):
  check(tmp_path, dict(items=[*ITEMS, row]), f"{tmp_path}/items.jsonl:4: ", kind, message)


@pytest.mark.parametrize("row, kind, message", BAD_EVENTS, ids=lambda value: str(value)[:40])
def test_a_bad_event(tmp_path, row, kind, message):
  check(tmp_path, dict(events=[*EVENTS, row]), f"{tmp_path}/interactions.jsonl:8: ", kind, message)


def check(tmp_path, files, place, kind, message):
  """In one mode it is the one line that says so, in the other it is counted and nothing else changes."""
  with pytest.raises(BadRow) as caught:
    read(tmp_path, **files)
  assert str(caught.value).startswith(place)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  good, lax = read(tmp_path), read(tmp_path, **files, mode="skip")
  assert (lax.items, lax.users, lax.histories) == (good.items, good.users, good.histories)
  assert lax.skipped == good.skipped + type(good.skipped)({kind: 1})


def test_a_cut_off_gzip_is_a_bad_row(tmp_path):
  items = write(tmp_path / "items.jsonl", ITEMS)
  events = write(
    tmp_path / "interactions.jsonl.gz", EVENTS * 1 + [{"user": f"w{i}", "item_id": "c", "time": i} for i in range(99)]
  )
  assert len(read_interactions(items, events).users) == 2
  events.write_bytes(events.read_bytes()[:-10])
  with pytest.raises(BadRow, match=r"interactions\.jsonl\.gz:\d+: the gzip file is cut off"):
    read_interactions(items, events)
  assert read_interactions(items, events, "skip").skipped["broken gzip"] == 1
