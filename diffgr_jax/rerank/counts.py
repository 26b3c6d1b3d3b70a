"""Which items users took after which: counts over all users, and what one user's later items added to them.

    histories   u: 1 2 3     v: 2 1        followed   [1, 2] = 1 (u)   [1, 3] = 1 (u)   [2, 3] = 1 (u)   [2, 1] = 1 (v)

A training list asks what was known when its target was not yet taken. The counts are made once over the histories that
may be learned from; for a list about user u and place t, what u's own items from t on added to them is taken out again,
exactly: `lost_pairs` and `lost_takers`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
import functools

from jaxtyping import Int
import numpy as np
from scipy import sparse

History = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class CoVisits:
  """Counts over users. A user counts once, however often he took an item or a pair of items.

  Attributes:
    histories: that were counted; a user's own place here is his number.
    followed: [i, j]: users who took j after i, not counting an item after itself.
    takers: users who took each item.
    window: how far apart two items may stand to count as one after the other; 0: any distance.
  """

  histories: Sequence[History]
  followed: sparse.csr_array
  takers: Int[np.ndarray, "N"]
  window: int = 0

  @property
  def num_items(self) -> int:
    return len(self.takers)

  def pairs(self, before: Int[np.ndarray, "*S"], after: Int[np.ndarray, "*S"]) -> Int[np.ndarray, "*S"]:
    """followed[before, after], element by element."""
    keys = self._keys
    if not keys.size:
      return np.zeros(before.shape, np.int64)
    wanted = before.astype(np.int64) * self.num_items + after
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, self.followed.data[at], 0)

  @functools.cached_property
  def _keys(self) -> Int[np.ndarray, "E"]:
    """Row and column of every stored entry as one rising number."""
    rows = np.repeat(np.arange(self.num_items, dtype=np.int64), np.diff(self.followed.indptr))
    return rows * self.num_items + self.followed.indices

  def lost_takers(self, user: int, place: int) -> set[int]:
    """The items that the user is counted as a taker of only because of what he took from `place` on."""
    history = self.histories[user]
    return set(history[place:]).difference(history[:place])

  def lost_pairs(self, user: int, place: int, among: Collection[int]) -> set[tuple[int, int]]:
    """The pairs (before, after) that hold an item of `among` and that the user is counted for only because of what he
    took from `place` on."""
    history = self.histories[user]
    if place >= len(history):
      return set()
    among = set(among)
    return _pairs_of(history, self.window, among) - _pairs_of(history[:place], self.window, among)


def count_covisits(histories: Sequence[History], num_items: int, window: int = 0) -> CoVisits:
  """Counts every ordered pair of different items, and the takers of every item.

  Args:
    histories: of the users, oldest first.
    num_items: N; items are 0 .. N-1.
    window: pairs at most so many places apart are counted; 0: all.
  """
  before, after = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  takers = np.zeros(num_items, np.int64)
  for history in histories:
    items = np.asarray(history, np.int64)
    distinct = np.unique(items)
    takers[distinct] += 1
    first, second = np.triu_indices(len(items), 1)
    if window:
      near = second - first <= window
      first, second = first[near], second[near]
    first, second = items[first], items[second]
    if len(distinct) < len(items):  # something was taken twice: a pair counts once
      keys = np.unique(first * num_items + second)
      first, second = np.divmod(keys, num_items)
      different = first != second
      first, second = first[different], second[different]
    before.append(first)
    after.append(second)
  rows, columns = np.concatenate(before), np.concatenate(after)
  ones = np.ones(len(rows), np.int64)
  followed = sparse.coo_array((ones, (rows, columns)), shape=(num_items, num_items)).tocsr()
  followed.sum_duplicates()
  followed.sort_indices()
  return CoVisits(tuple(histories), followed, takers, window)


def _pairs_of(history: History, window: int, among: set[int]) -> set[tuple[int, int]]:
  """The ordered pairs of different items that hold one of `among`."""
  pairs, reach = set(), window or len(history)
  for place, item in enumerate(history):
    if item in among:
      pairs.update((item, later) for later in history[place + 1 : place + 1 + reach])
      pairs.update((earlier, item) for earlier in history[max(0, place - reach) : place])
  return {(before, after) for before, after in pairs if before != after}
