"""Events in any order: histories by time, ties that no order of lines or ids decides, and what is a duplicate."""

from collections import Counter
import itertools
import random

import pytest

from diffgr_jax.data.interactions import content
from diffgr_jax.data.records import BadRow


def histories_of(rows):
  events = content.Events()
  for row in rows:
    events.add(*row, "f:1")
  names = list(events.items)
  return {user: [names[item] for item in taken] for user, taken in zip(*events.histories(), strict=True)}


def test_each_user_is_sorted_by_time_whatever_the_order_of_the_lines():
  rng = random.Random()
  rows = [(f"u{rng.randrange(6)}", f"i{item}", float(time)) for time, item in enumerate(rng.choices(range(9), k=80))]
  expected = {}
  for user, item, _ in rows:
    expected.setdefault(user, []).append(item)
  shuffled = rng.sample(rows, len(rows))
  assert histories_of(shuffled) == expected


def test_events_behind_a_later_one_of_their_user_are_counted():
  rng = random.Random()
  rows = [(f"u{rng.randrange(3)}", f"i{line}", float(rng.randrange(20))) for line in range(40)]
  events = content.Events()
  for row in rows:
    events.add(*row, "f:1")
  late = [any(user == own and then > time for user, _, then in rows[:n]) for n, (own, _, time) in enumerate(rows)]
  assert events.late == sum(late)


def test_events_of_one_time_stand_in_neither_the_order_of_lines_nor_that_of_ids():
  rows = [(f"u{user}", f"i{item:02}", 7.0) for user in range(200) for item in range(5)]
  taken = histories_of(rows)
  assert histories_of(random.sample(rows, len(rows))) == taken  # the order of the lines says nothing
  rising = sum(a < b for own in taken.values() for a, b in itertools.pairwise(own))
  assert 0.42 < rising / 800 < 0.58  # as ids come, it would be all; by chance half, with a deviation of .02
  assert len({tuple(own) for own in taken.values()}) > 60  # of the 120 orders of five: each user has his own


def test_an_item_may_come_again_at_another_time_but_a_row_only_once():
  assert histories_of([("u", "a", 1.0), ("u", "b", 2.0), ("u", "a", 3.0)]) == {"u": ["a", "b", "a"]}
  with pytest.raises(BadRow, match=r"^f:1: user 'u' has taken 'a' at 1 before; give a row once$"):
    histories_of([("u", "a", 1.0), ("u", "a", 1)])
  assert content.Events().histories() == ([], [])


def test_users_with_fewer_than_three_events_are_counted():
  skipped = Counter()
  kept = content.long_enough(["a", "b", "c"], [(1, 2, 3), (1, 2), (1, 2, 3, 4)], skipped)
  assert kept == (("a", "c"), ((1, 2, 3), (1, 2, 3, 4)))
  assert skipped == {"user with fewer than 3 events": 1}


@pytest.mark.parametrize("value", [None, "12", True, float("nan"), float("inf"), [1]])
def test_a_time_is_a_number(value):
  with pytest.raises(BadRow, match=r"'t' is .*; it should be a number") as caught:
    content.time_of({"t": value}, "t", "f:1")
  assert caught.value.kind == "no time"
  assert content.time_of({"t": 12}, "t", "f:1") == 12.0


def test_names_are_plain_text_on_one_line():
  assert content.plain_text({"b": "Dr. Scholl&#39;s \n &amp; Co"}, "b", "f:1") == "Dr. Scholl's & Co"
  assert content.plain_text({}, "b", "f:1") == content.plain_text({"b": None}, "b", "f:1") == ""
  assert content.category_path(["Bath &amp; Body", " ", "Soaps"], "c", "f:1") == ("Bath & Body", "Soaps")
  assert content.untitled_name("OPI", ("Beauty", "Nails")) == "OPI Nails"
  assert content.untitled_name("", ()) == "untitled item"
