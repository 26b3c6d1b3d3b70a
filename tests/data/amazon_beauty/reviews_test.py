"""Small files of exactly the public format of 2014: what they give, and what is said of a bad line."""

import gzip
import json
import warnings

import pytest

from diffgr_jax.data.amazon_beauty.reviews import read_reviews
from diffgr_jax.data.records import BadRow
from diffgr_jax.rerank.records import Item

DAY = 86400


def review(user, asin, day, **changes):
  row = {
    "reviewerID": user, "asin": asin, "reviewerName": "Someone", "helpful": [0, 1], "reviewText": "Good.",
    "overall": 5.0, "summary": "Good", "unixReviewTime": 16000 * DAY + day * DAY, "reviewTime": "02 1, 2014",
  }  # fmt: skip
  return {key: value for key, value in (row | changes).items() if value is not None}


def metadata(asin, **changes):
  row = {
    "asin": asin, "categories": [["Beauty", "Makeup"]], "title": f"Title {asin}", "price": 3.5, "brand": "OPI",
    "imUrl": "http://x", "salesRank": {"Beauty": 7}, "related": {"also_bought": ["B0"]},
  }  # fmt: skip
  return {key: value for key, value in (row | changes).items() if value is not None}


REVIEWS = [
  review("A1", "B2", 9), review("A2", "B1", 3), review("A1", "B1", 2), review("A2", "B3", 1), review("A1", "B3", 30),
  review("A2", "B2", 4), review("A3", "B9", 5),
]  # fmt: skip
METADATA = [
  metadata("B0"),
  metadata("B1", title="It&#39;s \"red\" & 'blue'", brand=None),
  metadata("B2", categories=[["Health", "Hair"], ["Beauty", "Hair Care", "Combs"], ["Beauty", "Tools", "Combs"]]),
  metadata("B3", title=None),
]


def write(path, rows):
  lines = b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in rows)
  path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
  return path


def read(tmp_path, reviews=REVIEWS, items=METADATA, mode="error"):
  as_json = [row if isinstance(row, bytes) else json.dumps(row) for row in reviews]
  literals = [row if isinstance(row, bytes) else str(row) for row in items]
  return read_reviews(
    write(tmp_path / "reviews_Beauty_5.json.gz", as_json), write(tmp_path / "meta_Beauty.json.gz", literals), mode
  )


def test_reviewed_items_and_histories_in_time_order(tmp_path):
  shop = read(tmp_path)
  assert shop.items == (
    Item("B2", "Title B2", "OPI", ("Beauty", "Hair Care", "Combs")),
    Item("B1", "It's \"red\" & 'blue'", "", ("Beauty", "Makeup")),
    Item("B3", "OPI Makeup", "OPI", ("Beauty", "Makeup")),
    Item("B9", "untitled item"),
  )
  named = {user: [shop.items[i].item_id for i in own] for user, own in zip(shop.users, shop.histories, strict=True)}
  assert named == {"A1": ["B1", "B2", "B3"], "A2": ["B3", "B1", "B2"]}
  assert shop.skipped == {
    "item without a title, kept": 1, "item without metadata, kept": 1, "user with fewer than 3 events": 1,
  }  # fmt: skip


BAD_REVIEWS = [
  (review(None, "B1", 1), "no id", "a row needs 'reviewerID'"),
  (review("A1", None, 1), "no id", "a row needs 'asin'"),
  (review("A1", "B1", 1, unixReviewTime=None), "no time", "'unixReviewTime' is None"),
  (review("A1", "B1", 1, unixReviewTime="1391040000"), "no time", "it should be a number"),
  (REVIEWS[2], "duplicate row", "user 'A1' has taken 'B1' at 1382572800 before"),
  (str(REVIEWS[0]).encode(), "broken JSON", "broken JSON"),
]
BAD_METADATA = [
  (json.dumps(metadata("B7", price=True)).encode(), "broken literal", "no literal of Python"),  # JSON's true
  (b"{'asin': 'B7', 'title': open('x')}", "broken literal", "no literal of Python"),
  (b"{'asin': 'B7', 'title': 'cut", "broken literal", "no literal of Python"),
  (b"[" * 5000, "broken literal", "no literal of Python"),
  (b"['B7']", "not an object", "not a list"),
  (b"{'asin': 'caf\xe9'}", "not UTF-8", "byte 0xe9"),
  (metadata(None), "no id", "a row needs 'asin'"),
  (metadata("B1", title=7), "not a string", "'title' is a int"),
  (metadata("B1", categories="Beauty"), "not a list", "'categories' should be a list of paths"),
  (metadata("B1", categories=["Beauty"]), "not a list", "'categories' should be a list of names"),
  (metadata("B1"), "duplicate id", "duplicate asin 'B1'"),
]


@pytest.mark.parametrize("row, kind, message", BAD_REVIEWS, ids=lambda value: str(value)[:40])
def test_a_bad_review(tmp_path, row, kind, message):
  check(tmp_path, dict(reviews=[*REVIEWS, row]), f"{tmp_path}/reviews_Beauty_5.json.gz:8: ", kind, message)


@pytest.mark.parametrize("row, kind, message", BAD_METADATA, ids=lambda value: str(value)[:40])
def test_a_bad_line_of_metadata(tmp_path, row, kind, message):
  check(tmp_path, dict(items=[*METADATA, row]), f"{tmp_path}/meta_Beauty.json.gz:5: ", kind, message)


def check(tmp_path, files, place, kind, message):
  with pytest.raises(BadRow) as caught:
    read(tmp_path, **files)
  assert str(caught.value).startswith(place)
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  good, lax = read(tmp_path), read(tmp_path, **files, mode="skip")
  assert (lax.items, lax.users, lax.histories) == (good.items, good.users, good.histories)
  assert lax.skipped == good.skipped + type(good.skipped)({kind: 1})


def test_odd_backslashes_in_a_literal_are_no_concern_of_the_user(tmp_path):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    shop = read(tmp_path, items=[b"{'asin': 'B2', 'title': 'A\\d B'}"])
  assert shop.items[0].title == "A\\d B"
