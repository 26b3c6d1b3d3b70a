"""Ready sequences: what good files give, categories put in order, and what is said of a bad line."""

import json
from pathlib import Path

import pytest

from diffgr_jax.data.amazon_beauty.sequences import read_sequences
from diffgr_jax.data.interactions.shop import read_users
from diffgr_jax.data.records import BadRow
from diffgr_jax.rerank.records import Item

BEAUTY = Path(__file__).resolve().parents[4] / "shared" / "data" / "amazon_beauty"  # beside the checkout
ITEMS = [
  {
    "item_id": 1,
    "asin": "B01",
    "title": "Red polish",
    "brand": "OPI",
    "categories": ["Beauty", "Nail Polish", "Nails"],
  },
  {"item_id": 2, "asin": "B02", "title": "", "brand": "Dr. Scholl&#39;s", "categories": ["Nails", "Files", "Beauty"]},
  {"item_id": 3, "title": "Comb", "brand": "Unknown", "categories": ["Hair", "Beauty"]},
  {"item_id": 4, "asin": "B04", "title": "Top coat", "brand": "", "categories": ["Nails", "Nail Polish", "Beauty"]},
]
LINES = ["7 1 2 3", "8 4 3 2 1", "9 1 2"]


def read(tmp_path, lines=LINES, items=ITEMS, mode="error"):
  (tmp_path / "sequences.txt").write_text("\n".join(lines) + "\n")
  (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in items))
  return read_sequences(tmp_path / "sequences.txt", tmp_path / "items.jsonl", mode)


def test_sequences_as_they_are_and_categories_from_the_general_to_the_special(tmp_path):
  shop = read(tmp_path)
  assert shop.items == (
    Item("B01", "Red polish", "OPI", ("Beauty", "Nails", "Nail Polish")),
    Item("B02", "Dr. Scholl's Files", "Dr. Scholl's", ("Beauty", "Nails", "Files")),
    Item("3", "Comb", "", ("Beauty", "Hair")),
    Item("B04", "Top coat", "", ("Beauty", "Nails", "Nail Polish")),
  )
  assert (shop.users, shop.histories) == (("7", "8"), ((0, 1, 2), (3, 2, 1, 0)))
  assert shop.skipped == {"item without a title, kept": 1, "user with fewer than 3 events": 1}


@pytest.mark.parametrize(
  "line, kind, message",
  [
    ("10 1 2 5", "unknown item", "no item '5' in items.jsonl; correct or remove the line"),
    ("10 1 2 0", "unknown item", "no item '0'"),  # items are called as items.jsonl calls them, from 1
    ("7 1 2 3", "duplicate id", "duplicate user '7'"),
  ],
)
def test_a_bad_line(tmp_path, line, kind, message):
  with pytest.raises(BadRow) as caught:
    read(tmp_path, lines=[*LINES, line])
  assert str(caught.value).startswith(f"{tmp_path}/sequences.txt:4: {message}"[:40])
  assert message in str(caught.value)
  lax = read(tmp_path, lines=[*LINES, line], mode="skip")
  assert lax.users == ("7", "8")
  assert lax.skipped[kind] == 1


@pytest.mark.parametrize("row", [ITEMS[0], ITEMS[0] | {"item_id": 5}], ids=["item_id", "asin"])
def test_an_item_twice(tmp_path, row):
  with pytest.raises(BadRow, match=r"items\.jsonl:5: duplicate"):
    read(tmp_path, items=[*ITEMS, row])
  assert len(read(tmp_path, items=[*ITEMS, row], mode="skip").items) == 4


@pytest.mark.skipif(not BEAUTY.is_dir(), reason="Amazon Beauty is not at hand")
def test_beauty_has_its_published_counts():
  shop = read_sequences(BEAUTY / "sequences.txt", BEAUTY / "items.jsonl")
  held_out = read_users(BEAUTY / "held_out_users.txt")
  assert (len(shop.items), len(shop.users), sum(map(len, shop.histories))) == (12101, 22363, 198502 - len(held_out))
  assert shop.skipped == {"item without a title, kept": 7}
  assert len(set(shop.users) - held_out) == 15728
  assert {item.categories[0] for item in shop.items} == {"Beauty"}
