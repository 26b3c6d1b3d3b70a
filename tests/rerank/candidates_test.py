"""Lists: what is in them, in what order, for whom; and that a target decides nothing but that it is there."""

from collections import Counter
import dataclasses
import functools

import numpy as np
import pytest

from diffgr_jax.rerank.candidates import ListOptions, make_lists
from diffgr_jax.rerank.evidence import EvidenceSource
from diffgr_jax.rerank.records import RankingTask, Shop
from diffgr_jax.rerank.retrievers import Requests, covisitation, popularity
from diffgr_jax.rerank.splits import SPLITS, leave_one_out
from tests.rerank import shops

RETRIEVER = functools.partial(covisitation, seed=5)


@pytest.fixture
def parts():
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, users=60, items=30)
  return leave_one_out(shop, held_out=set(shop.users[:10]))


def expected_pools(parts, split, size):
  """(user, place, the retriever's list) of every place, each from counts made for it alone."""
  users, places = parts.targets(split)
  for user, place in zip(users.tolist(), places.tolist(), strict=True):
    known = shops.as_known(parts.known(split), user, place)
    asked = Requests(parts.shop.histories, np.array([user]), np.array([place]))
    yield user, place, RETRIEVER(known, len(parts.shop.items)).rank(asked, size)[0].tolist()


@pytest.mark.parametrize("split", SPLITS)
def test_the_natural_list_is_the_retrievers_first_where_it_holds_the_target(parts, split):
  lists = make_lists(parts, split, RETRIEVER, ListOptions(size=4, pool=4, folds=0))
  histories, users = parts.shop.histories, parts.shop.users
  pools = list(expected_pools(parts, split, 4))
  expected = [
    (users[user], histories[user][:place], tuple(pool), histories[user][place])
    for user, place, pool in pools
    if histories[user][place] in pool
  ]
  assert [(task.user, task.history, task.candidates, task.target) for task in lists.tasks] == expected
  assert (lists.asked, lists.found) == (len(pools), len(expected))
  assert len(expected) >= 5  # the test says something
  for task in lists.tasks:
    assert task.candidates[task.target_rank] == task.target


@pytest.mark.parametrize("split", SPLITS)
def test_a_drawn_list_has_the_target_and_others_of_the_pool_in_its_order(parts, split):
  options = ListOptions(size=4, pool=9, draws=3, seed=11, folds=0)
  lists = make_lists(parts, split, RETRIEVER, options)
  pools = {
    (parts.shop.users[user], parts.shop.histories[user][:place]): pool
    for user, place, pool in expected_pools(parts, split, 9)
    if parts.shop.histories[user][place] in pool
  }
  draws = 3 if split == "train" else 1
  assert Counter((task.user, task.history) for task in lists.tasks) == dict.fromkeys(pools, draws)
  assert lists.found == len(pools)
  for task in lists.tasks:
    pool = pools[task.user, task.history]
    assert len(set(task.candidates)) == 4
    assert task.target in task.candidates
    assert sorted(task.candidates, key=pool.index) == list(task.candidates)
  again = make_lists(parts, split, RETRIEVER, options)
  assert again == lists
  if split == "train":
    assert len({task.candidates for task in lists.tasks}) > 1.5 * lists.found  # each draw has its own others
  other = make_lists(parts, split, RETRIEVER, ListOptions(size=4, pool=9, draws=3, seed=12, folds=0))
  assert other != lists


def test_held_out_users_are_learned_from_and_never_measured(parts):
  held_out = set(parts.shop.users[:10])
  options = ListOptions(size=8, pool=15, folds=0)
  for split in ("valid", "test"):
    assert held_out.isdisjoint(task.user for task in make_lists(parts, split, RETRIEVER, options).tasks)
  assert held_out & {task.user for task in make_lists(parts, "train", RETRIEVER, options).tasks}


def test_evidence_is_of_the_splits_own_counts(parts):
  for split in SPLITS:
    lists = make_lists(parts, split, RETRIEVER, ListOptions(size=6, pool=6, folds=0), last=2)
    for task in lists.tasks[:20]:
      user = parts.shop.users.index(task.user)
      known = shops.as_known(parts.known(split), user, len(task.history))
      source = EvidenceSource.counting(parts.shop.items, known, last=2)
      asked = Requests(parts.shop.histories, np.array([user]), np.array([len(task.history)]))
      assert source.gather(asked, np.array([task.candidates])) == [task.evidence]


def test_which_others_are_drawn_does_not_tell_the_target():
  """Of one pool, every set of candidates that holds a target is as likely as any other set that does."""
  pool = 5
  histories = tuple((0, item) for item in range(1, pool + 1) for _ in range(400))
  names = tuple(f"u{n}" for n in range(len(histories)))
  items = shops.random_shop(np.random.default_rng(), items=pool + 1, longest=pool + 1).items
  shop = Shop("s", items, names, histories, "")
  whole = leave_one_out(Shop(shop.name, shop.items, names, tuple((0, 0, *own) for own in histories), ""))
  lists = make_lists(whole, "test", RETRIEVER, ListOptions(size=3, pool=pool, seed=1, folds=0))
  seen = Counter((task.target, frozenset(task.candidates)) for task in lists.tasks)
  assert len(seen) == 5 * 6  # 4 choose 2 sets for each target
  assert max(abs(count - 400 / 6) for count in seen.values()) < 5 * np.sqrt(400 / 6)


def as_counted(parts, options):
  """The histories that are counted for each user's training lists, if no user of his own fold is."""
  fold = np.random.default_rng(options.seed).permutation(len(parts.shop.users)) % options.folds
  known = parts.known("train")
  return [tuple(() if fold[n] == own else history for n, history in enumerate(known)) for own in fold]


def test_lists_of_a_fold_are_made_from_the_other_folds(parts):
  options = ListOptions(size=5, pool=9, draws=2, folds=3, seed=4)
  lists = make_lists(parts, "train", RETRIEVER, options)
  histories, counted, expected = parts.shop.histories, as_counted(parts, options), []
  users, places = parts.targets("train")
  for user, place in zip(users.tolist(), places.tolist(), strict=True):
    asked = Requests(histories, np.array([user]), np.array([place]))
    pool = RETRIEVER(counted[user], 30).rank(asked, 9)[0].tolist()
    if histories[user][place] in pool:
      expected += [(parts.shop.users[user], histories[user][:place], histories[user][place], tuple(pool))] * 2
  assert [(task.user, task.history, task.target) for task in lists.tasks] == [row[:3] for row in expected]
  assert lists.found == len(expected) // 2 > 20
  for task, (_, history, _, pool) in zip(lists.tasks, expected, strict=True):
    assert sorted(task.candidates, key=pool.index) == list(task.candidates)
    known = counted[parts.shop.users.index(task.user)]
    assert [own.popularity for own in task.evidence] == [shops.takers(known, item) for item in task.candidates]
    recent = set(history[-5:])
    after = [sum(shops.followed(known, item, own) for item in recent) for own in task.candidates]
    assert [own.followed for own in task.evidence] == after
  for split in ("valid", "test"):
    assert make_lists(parts, split, RETRIEVER, options) == make_lists(
      parts, split, RETRIEVER, dataclasses.replace(options, folds=0)
    )


def test_folds_do_not_show_a_target_by_what_it_lacks():
  """Every item has ten takers: where one list's own user is left out, its target is the only one with nine."""
  rng = np.random.default_rng()
  histories = tuple((6, 7, int(item)) for item in rng.permutation(np.repeat(np.arange(6), 10)))
  names = tuple(f"u{n}" for n in range(60))
  shop = Shop("s", shops.random_shop(rng, items=8, longest=8).items, names, histories, "")
  parts, lowest = leave_one_out(shop, held_out=names), {}
  for folds in (0, 2):
    lists = make_lists(parts, "train", popularity, ListOptions(size=6, pool=6, least_history=2, folds=folds, seed=2))
    assert len(lists.tasks) == 60
    lone = []  # whether the target is the only one with the fewest takers
    for task in lists.tasks:
      takers = [evidence.popularity for evidence in task.evidence]
      lone.append([at for at, count in enumerate(takers) if count == min(takers)] == [task.target_rank])
    lowest[folds] = np.mean(lone)
  assert lowest[0] == 1.0
  assert lowest[2] < 0.5


def test_places_of_a_user_are_drawn(parts):
  options = ListOptions(size=10, pool=20, places_a_user=2, seed=4, folds=0)
  every = make_lists(parts, "train", RETRIEVER, ListOptions(size=10, pool=20, seed=4, folds=0))
  some = make_lists(parts, "train", RETRIEVER, options)
  count = np.maximum(parts.train_lengths - 1, 0)
  assert (every.asked, some.asked) == (count.sum(), np.minimum(count, 2).sum())
  assert set(some.tasks) <= set(every.tasks)


def test_what_goes_wrong_is_said(parts):
  for options, message in (
    (dict(size=1, pool=5), "at least 2 candidates and at most its pool"),
    (dict(size=11, pool=10), "not size 11 of 10"),
    (dict(draws=2), "gives one list"),
    (dict(folds=1), "folds is 0, or 2 or more"),
    (dict(least_history=0), "least_history and draws are 1 or more"),
  ):
    with pytest.raises(ValueError, match=message):
      ListOptions(**options)
  with pytest.raises(ValueError, match="too few items for lists of 28"):
    make_lists(parts, "test", RETRIEVER, ListOptions(size=28, pool=28, folds=0))
  with pytest.raises(ValueError, match="split is one of train, valid, test"):
    make_lists(parts, "dev", RETRIEVER)
  with pytest.raises(ValueError, match="names a candidate twice"):
    RankingTask("u", (1,), (2, 3, 2), 2, ())
  with pytest.raises(ValueError, match="2 candidates and evidence of 1"):
    RankingTask("u", (1,), (2, 3), 2, make_lists(parts, "test", RETRIEVER).tasks[0].evidence[:1])
