"""Leave-one-out by hand, what each split may know, and that held-out users are never measured."""

import numpy as np
import pytest

from diffgr_jax.rerank.records import Item, Shop
from diffgr_jax.rerank.splits import SPLITS, leave_one_out
from tests.rerank import shops

SHOP = Shop(
  "s", tuple(Item(f"i{n}", "T") for n in range(7)), ("a", "b", "c"), ((0, 1, 2, 3, 4, 5), (3, 4, 5), (6, 1, 0, 2)), ""
)  # fmt: skip


def pairs(parts, split, **options):
  users, places = parts.targets(split, **options)
  return list(zip(users.tolist(), places.tolist(), strict=True))


def test_the_last_is_for_test_and_the_one_before_for_valid():
  parts = leave_one_out(SHOP)
  assert pairs(parts, "test") == [(0, 5), (1, 2), (2, 3)]
  assert pairs(parts, "valid") == [(0, 4), (1, 1), (2, 2)]
  assert pairs(parts, "train") == [(0, 1), (0, 2), (0, 3), (2, 1)]
  assert pairs(parts, "train", least_history=2) == [(0, 2), (0, 3)]
  assert pairs(parts, "valid", least_history=2) == [(0, 4), (2, 2)]
  assert parts.known("train") == parts.known("valid") == ((0, 1, 2, 3), (3,), (6, 1))
  assert parts.known("test") == ((0, 1, 2, 3, 4), (3, 4), (6, 1, 0))


def test_who_is_held_out_is_learned_from_to_the_end_and_never_measured():
  parts = leave_one_out(SHOP, held_out={"c"})
  assert pairs(parts, "test") == [(0, 5), (1, 2)]
  assert pairs(parts, "valid") == [(0, 4), (1, 1)]
  assert pairs(parts, "train") == [(0, 1), (0, 2), (0, 3), (2, 1), (2, 2), (2, 3)]
  for split in SPLITS:
    assert parts.known(split)[2] == (6, 1, 0, 2)


def test_no_target_of_valid_or_test_is_known_to_its_split():
  rng = np.random.default_rng()
  shop = shops.random_shop(rng)
  held_out = {user for user in shop.users if rng.random() < 0.3}
  parts = leave_one_out(shop, held_out)
  for split in ("valid", "test"):
    measured = pairs(parts, split)
    assert {shop.users[user] for user, _ in measured} == set(shop.users) - held_out
    for user, place in measured:
      assert parts.known(split)[user] == shop.histories[user][:place]


def test_what_goes_wrong_is_said():
  with pytest.raises(ValueError, match="1 users to be held out are not in s, such as 'x'"):
    leave_one_out(SHOP, held_out=["a", "x"])
  with pytest.raises(ValueError, match="split is one of train, valid, test, not 'dev'"):
    leave_one_out(SHOP).targets("dev")
  short = Shop("s", SHOP.items, ("a",), ((0, 1),), "")
  with pytest.raises(ValueError, match="user 'a' has 2 items; leave-one-out needs 3"):
    leave_one_out(short)
