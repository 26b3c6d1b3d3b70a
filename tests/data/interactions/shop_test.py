"""Shops by name: built once, read as they were, told apart by their content; and what a user can get wrong."""

import gzip
import json

import pytest

from diffgr_jax.data.interactions.shop import item_documents, load_shop, read_users
from diffgr_jax.data.records import BadRow, Document
from diffgr_jax.rerank.made_up_shop import MadeUpOptions, make_shop
from diffgr_jax.rerank.records import Item

ITEMS = [
  {"item_id": "a", "title": "Téa „pot“", "brand": "Hill", "categories": ["Drinks", "Tea"]},
  {"item_id": "b", "title": "Kettle"},
]
EVENTS = [{"user": user, "item_id": item, "time": t} for user in "uvw" for t, item in enumerate("abab")]


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "shop"
  folder.mkdir()
  write(folder / "items.jsonl", ITEMS)
  write(folder / "interactions.jsonl", EVENTS)
  return folder


def write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_shop_is_built_once_and_read_as_it_was(folder, tmp_path, capsys):
  shop = load_shop("interactions", path=folder, data_dir=tmp_path / "data")
  assert shop.name == "interactions"
  assert tuple(shop.items) == (Item("a", "Téa „pot“", "Hill", ("Drinks", "Tea")), Item("b", "Kettle"))
  assert tuple(shop.users) == ("u", "v", "w")
  assert tuple(shop.histories) == ((0, 1, 0, 1),) * 3
  assert dict(shop.skipped) == {}
  assert capsys.readouterr().out == f"interactions {folder}: 2 items, 3 users, 12 events\n"
  assert load_shop("interactions", path=folder, data_dir=tmp_path / "data") == shop
  assert capsys.readouterr().out == ""


def test_another_content_is_another_shop_and_what_was_skipped_is_remembered(folder, tmp_path, capsys):
  before = load_shop("interactions", path=folder, data_dir=tmp_path / "data")
  write(
    folder / "interactions.jsonl", [*EVENTS, {"user": "x", "item_id": "a", "time": 1}, {"user": "x", "item_id": "?"}]
  )
  with pytest.raises(BadRow, match=r"interactions\.jsonl:14: no item '\?'"):
    load_shop("interactions", path=folder, data_dir=tmp_path / "data")
  capsys.readouterr()
  for said in (", 1 x unknown item, 1 x user with fewer than 3 events\n", ""):
    shop = load_shop("interactions", path=folder, data_dir=tmp_path / "data", on_bad_row="skip")
    assert dict(shop.skipped) == {"unknown item": 1, "user with fewer than 3 events": 1}
    assert capsys.readouterr().out.endswith(said)
  assert shop.histories == before.histories
  assert shop.fingerprint != before.fingerprint


def test_what_the_folder_of_amazon_holds_decides_how_it_is_read(tmp_path):
  sequences, public = tmp_path / "sequences", tmp_path / "public"
  sequences.mkdir()
  public.mkdir()
  (sequences / "sequences.txt").write_text("1 1 2 3\n")
  write(sequences / "items.jsonl", [{"item_id": i, "asin": f"B{i}", "title": f"T{i}"} for i in (1, 2, 3)])
  reviews = [{"reviewerID": "A", "asin": f"B{i}", "unixReviewTime": i} for i in (1, 2, 3)]
  metadata = [str({"asin": f"B{i}", "title": f"T{i}", "categories": [["Toys"]]}) for i in (1, 2, 3)]
  (public / "reviews_Toys_and_Games_5.json.gz").write_bytes(
    gzip.compress("".join(json.dumps(row) + "\n" for row in reviews).encode())
  )
  (public / "meta_Toys_and_Games.json.gz").write_bytes(gzip.compress("\n".join(metadata).encode()))
  beauty = load_shop("amazon_beauty", path=sequences, data_dir=tmp_path / "data")
  toys = load_shop("amazon_beauty", path=public, data_dir=tmp_path / "data", category="Toys_and_Games")
  assert (beauty.name, toys.name) == ("amazon_beauty", "amazon_toys_and_games")
  assert beauty.histories == toys.histories == ((0, 1, 2),)
  assert toys.items[1] == Item("B2", "T2", "", ("Toys",))
  with pytest.raises(
    FileNotFoundError, match=r"reviews_Beauty_5\.json\.gz and meta_Beauty\.json\.gz, or sequences\.txt"
  ):
    load_shop("amazon_beauty", path=public, data_dir=tmp_path / "data")


@pytest.mark.parametrize(
  "arguments, error, message",
  [
    (dict(name="beauty"), ValueError, "no shop 'beauty'; there are amazon_beauty, interactions, made_up"),
    (dict(path=""), ValueError, "the shop interactions needs a path"),
    (dict(data_dir=""), ValueError, "the shop interactions needs a data_dir"),
    (dict(name="made_up", path="user=3"), ValueError, "got 'user=3'"),
    (dict(on_bad_row="warn"), ValueError, 'on_bad_row is "error" or "skip"'),
    (dict(path="/no/such"), FileNotFoundError, "/no/such is no folder"),
  ],
)
def test_what_a_user_can_get_wrong(folder, tmp_path, arguments, error, message):
  with pytest.raises(error, match=message):
    load_shop(**{"name": "interactions", "path": folder, "data_dir": tmp_path / "data", **arguments})


def test_a_shop_without_users_is_an_error(folder, tmp_path):
  write(folder / "interactions.jsonl", EVENTS[:2])
  with pytest.raises(ValueError, match=r"no user is left; 1 have too few events \(user with fewer than 3 events\)"):
    load_shop("interactions", path=folder, data_dir=tmp_path / "data")
  write(folder / "items.jsonl", [])
  with pytest.raises(ValueError, match="none of its rows gave an item"):
    load_shop("interactions", path=folder, data_dir=tmp_path / "data", on_bad_row="skip")


def test_users_in_a_file(tmp_path):
  file = tmp_path / "held_out.txt"
  file.write_text("u1\n\n 7 \n")
  assert read_users(file) == {"u1", "7"}
  file.write_text("u1\nu2 3 4\n")
  with pytest.raises(ValueError, match=r"held_out\.txt:2: a line is the id of one user, not 'u2 3 4'"):
    read_users(file)


def test_the_made_up_shop_by_name():
  shop = load_shop("made_up", path="users=30,seed=4")
  assert shop == make_shop(MadeUpOptions(users=30, seed=4))[0]
  assert len(load_shop("made_up", path="").users) == MadeUpOptions().users


def test_items_as_documents(folder, tmp_path):
  shop = load_shop("interactions", path=folder, data_dir=tmp_path / "data")
  assert item_documents(shop) == [Document("a", "Téa „pot“", "Hill, Drinks, Tea"), Document("b", "Kettle", "")]
