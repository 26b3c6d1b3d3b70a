"""Leave-one-out: what of each user's history is learned from, and what is measured.

    history of 6 items     0 1 2 3 | 4 | 5          train: the first four; valid: target 4; test: target 5
    user who is held out   0 1 2 3 4 5 |            all is for training; the user is never evaluated

What is counted for a list never reaches past what its split may know: for train and valid the train part of every user,
for test also the valid target, which is then part of the history.
"""

from collections.abc import Collection
from dataclasses import dataclass

from jaxtyping import Bool, Int
import numpy as np

from diffgr_jax.rerank.records import Shop

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False)
class LeaveOneOut:
  """A shop's users, parted.

  Attributes:
    shop: whose users they are.
    evaluated: the users who may be measured.
    lengths: of every user's whole history.
  """

  shop: Shop
  evaluated: Bool[np.ndarray, "U"]
  lengths: Int[np.ndarray, "U"]

  @property
  def train_lengths(self) -> Int[np.ndarray, "U"]:
    """How many items of each user, from the first, may be learned from."""
    return self.lengths - 2 * self.evaluated

  def known_lengths(self, split: str) -> Int[np.ndarray, "U"]:
    """How many items of each user, from the first, may be counted for the lists of a split."""
    _check(split)
    return self.lengths - self.evaluated if split == "test" else self.train_lengths

  def known(self, split: str) -> tuple[tuple[int, ...], ...]:
    """The histories that may be counted for the lists of a split."""
    lengths = self.known_lengths(split).tolist()
    return tuple(history[:length] for history, length in zip(self.shop.histories, lengths, strict=True))

  def targets(self, split: str, least_history: int = 1) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "P"]]:
    """Users, and the places of targets in their histories, in the order of the users.

    Args:
      split: of `valid` and `test` one place a user who may be evaluated; of `train` every place of the train part
        with a history long enough.
      least_history: items before a target, at least.
    """
    _check(split)
    if split == "train":
      counts = np.maximum(self.train_lengths - least_history, 0)
      users = np.repeat(np.arange(len(counts)), counts)
      within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
      return users, within + least_history
    places = self.lengths - (1 if split == "test" else 2)
    users = np.flatnonzero(self.evaluated & (places >= least_history))
    return users, places[users]


def leave_one_out(shop: Shop, held_out: Collection[str] = ()) -> LeaveOneOut:
  """Parts every user's history: the last item is for test, the one before it for valid, the others for training.

  Args:
    shop: users with at least three items each.
    held_out: ids of users who are never evaluated; all their items may be learned from.

  Raises:
    ValueError: a user with fewer than three items, or a held-out user whom the shop does not have.
  """
  lengths = np.array([len(history) for history in shop.histories], np.int64)
  if lengths.size and lengths.min() < 3:
    short = shop.users[int(lengths.argmin())]
    raise ValueError(f"user {short!r} has {lengths.min()} items; leave-one-out needs 3: train, valid and test")
  if unknown := sorted(set(held_out) - set(shop.users)):
    raise ValueError(
      f"{len(unknown)} users to be held out are not in {shop.name}, such as {unknown[0]!r}: the list is of another shop"
    )
  apart = frozenset(held_out)
  evaluated = np.array([user not in apart for user in shop.users], bool)
  return LeaveOneOut(shop, evaluated, lengths)


def _check(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"split is one of {', '.join(SPLITS)}, not {split!r}")
