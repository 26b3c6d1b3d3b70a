"""Lists of candidates to put in order: a retriever's best items, if the item that was taken next is among them.

    size 10, pool 10     the natural list: the retriever's first ten
    size 10, pool 50     the target and nine others drawn from the first fifty, in the retriever's order

In the second, which nine does not depend on the target: each set of ten that holds it is equally likely, whichever of
the ten the target is. So a list says no more about its target than its items say.

A user may give several training lists, one for each place of his training part, and `draws` of each place. The lists of
valid and test are one a user. Lists of users who are held out are never made for valid and test (splits.py).

What is counted for a training list leaves out its user's target and later items. That alone is no leak in one list, but
over many lists it is: an item that 137 users took shows 136 where it is the target and 137 elsewhere, and a model that
knows the item by any of its traits learns to take what has one less. With `folds` the users are parted at random, and
the lists of a fold are made from counts over the users of the other folds: all of a fold's lists show one number.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Int, Shaped
import numpy as np

from diffgr_jax.rerank.counts import History
from diffgr_jax.rerank.evidence import EvidenceSource
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.rerank.retrievers import Requests, Retriever
from diffgr_jax.rerank.splits import LeaveOneOut


@dataclass(frozen=True)
class ListOptions:
  """How lists are made.

  Attributes:
    size: candidates of a list.
    pool: the retriever's first so many items, from which they are taken; `size`: all of them are.
    least_history: items before a target, at least.
    places_a_user: of a user's training part, drawn; 0: all.
    draws: training lists of one place; with a pool larger than the list each draws its own others.
    folds: of the users, for training lists; 0: the counts of a list leave out its own user's later items alone.
    seed: of all draws.
  """

  size: int = 10
  pool: int = 10
  least_history: int = 1
  places_a_user: int = 0
  draws: int = 1
  folds: int = 5
  seed: int = 0

  def __post_init__(self):
    if not 2 <= self.size <= self.pool:
      raise ValueError(f"a list has at least 2 candidates and at most its pool, not size {self.size} of {self.pool}")
    if self.least_history < 1 or self.places_a_user < 0 or self.draws < 1:
      raise ValueError(
        f"least_history and draws are 1 or more and places_a_user 0 or more, not {self.least_history}, {self.draws},"
        f" {self.places_a_user}"
      )
    if self.folds < 0 or self.folds == 1:
      raise ValueError(f"folds is 0, or 2 or more: others have to be left to count, not {self.folds}")
    if self.draws > 1 and self.pool == self.size:
      raise ValueError(f"draws is {self.draws}, but a pool of {self.pool} for {self.size} candidates gives one list")


@dataclass(frozen=True)
class Lists:
  """The lists of one split.

  Attributes:
    tasks: with their evidence, in the order of the users.
    asked: how many places lists were asked for; where the target was not in the pool, there is none.
    found: at how many of them the target was in the pool.
  """

  tasks: Sequence[RankingTask]
  asked: int
  found: int


def make_lists(
  parts: LeaveOneOut,
  split: str,
  make_retriever: Callable[[Sequence[History], int], Retriever],
  options: ListOptions = ListOptions(),  # noqa: B008 (frozen)
  *,
  vectors: Shaped[np.ndarray, "N D"] | None = None,
  last: int = 5,
) -> Lists:
  """Makes the lists of a split.

  Args:
    parts: the shop's users.
    split: train, valid or test.
    make_retriever: given the histories that the split may know and the number of items, what ranks items, e.g.
      `retrievers.covisitation`.
    options: how lists are made.
    vectors: of the items' content, a row an item, for the evidence; None: there are none.
    last: how many of the history's last items the evidence asks.

  Raises:
    ValueError: an unknown split, or a shop with fewer items than a list needs.
  """
  users, places = parts.targets(split, options.least_history)
  if split == "train" and options.places_a_user:
    users, places = _some_places(users, places, options)
  made: list[tuple[int, RankingTask]] = []
  for known, rows in _counted_for(parts, split, users, options):
    own = _lists_from(parts, known, users[rows], places[rows], make_retriever, options, split, vectors, last)
    made += [(int(rows[at]), task) for at, task in own]
  made.sort(key=lambda pair: pair[0])  # stable: the draws of one place stay in their order
  found = len(made) // (options.draws if split == "train" else 1)
  return Lists([task for _, task in made], len(users), found)


def _counted_for(
  parts: LeaveOneOut, split: str, users: Int[np.ndarray, "P"], options: ListOptions
) -> Iterator[tuple[tuple[History, ...], Int[np.ndarray, "_"]]]:
  """The histories to be counted, and for which of the places; a user who is not counted has an empty one."""
  known = parts.known(split)
  if split != "train" or not options.folds:
    yield known, np.arange(len(users))
    return
  fold = np.random.default_rng(options.seed).permutation(len(known)) % options.folds
  for number in range(options.folds):
    rows = np.flatnonzero(fold[users] == number)
    if len(rows):
      yield tuple(() if own == number else history for own, history in zip(fold, known, strict=True)), rows


def _lists_from(
  parts: LeaveOneOut,
  known: Sequence[History],
  users: Int[np.ndarray, "P"],
  places: Int[np.ndarray, "P"],
  make_retriever: Callable[[Sequence[History], int], Retriever],
  options: ListOptions,
  split: str,
  vectors: Shaped[np.ndarray, "N D"] | None,
  last: int,
) -> Iterator[tuple[int, RankingTask]]:
  """The lists of places, from one set of counts, each with the row of its place."""
  histories, items = parts.shop.histories, parts.shop.items
  ranked = make_retriever(known, len(items)).rank(Requests(histories, users, places), options.pool)
  if (ranked[:, : options.size] < 0).any():
    raise ValueError(f"{parts.shop.name} has too few items for lists of {options.size} that leave out the history")
  targets = np.array([histories[user][place] for user, place in zip(users, places, strict=True)], np.int64)
  row, rank = np.nonzero(ranked == targets[:, None])
  draws = options.draws if split == "train" else 1
  row, rank, draw = np.repeat(row, draws), np.repeat(rank, draws), np.tile(np.arange(draws), len(row))
  candidates = np.zeros((len(row), options.size), np.int64)
  for at, (r, own, number) in enumerate(zip(row, rank, draw, strict=True)):
    candidates[at] = _draw(ranked[r], int(own), (int(users[r]), int(places[r]), int(number)), options)
  requests = Requests(histories, users[row], places[row])
  gathered = EvidenceSource.counting(items, known, vectors, last).gather(requests, candidates)
  for at, (r, own, speaks) in enumerate(zip(row, candidates.tolist(), gathered, strict=True)):
    yield (
      int(r),
      RankingTask(parts.shop.users[int(users[r])], requests.history(at), tuple(own), int(targets[r]), speaks),
    )


def _draw(
  ranked: Int[np.ndarray, "P"], rank: int, what: tuple[int, int, int], options: ListOptions
) -> Int[np.ndarray, "S"]:
  """The target and others of the pool, in the retriever's order; what is drawn depends on what the list is for alone.

  Args:
    ranked: the pool; -1 where the shop has no more items.
    rank: the target's.
    what: the user, the place, and the number of the draw.
    options: how lists are made.
  """
  if options.pool == options.size:
    return ranked
  rng = np.random.default_rng([options.seed, *what])
  others = np.delete(np.flatnonzero(ranked >= 0), rank)
  return ranked[np.sort(np.append(rng.choice(others, options.size - 1, replace=False), rank))]


def _some_places(
  users: Int[np.ndarray, "P"], places: Int[np.ndarray, "P"], options: ListOptions
) -> tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"]]:
  """At most `places_a_user` of each user's places, drawn."""
  order = np.lexsort((np.random.default_rng(options.seed).random(len(users)), users))
  starts = np.searchsorted(users, users)
  kept = np.sort(order[np.arange(len(users)) - starts < options.places_a_user])
  return users[kept], places[kept]
