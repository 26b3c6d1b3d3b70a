"""Which items users took after which: counts over all users, and what one user's later items added to them.

    histories   u: 1 2 3     v: 2 1        followed   [1, 2] = 1 (u)   [1, 3] = 1 (u)   [2, 3] = 1 (u)   [2, 1] = 1 (v)

With a `fade`, a user who took j n places after i counts fade^(n-1), by the nearest two where there are several.
Weights are rounded to 1/1024, so that what is taken out again leaves nothing behind.

A training list asks what was known when its target was not yet taken. The counts are made once over the histories that
may be learned from; for a list about user u and place t, what u's own items from t on added to them is taken out again,
exactly: `lost_pairs` and `lost_takers`.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
import functools

from jaxtyping import Float, Int, Shaped
import numpy as np
from scipy import sparse

History = tuple[int, ...]
GRID = 2.0**10  # weights are multiples of 1 / it: sums of products of three of them are exact in float64


@dataclass(frozen=True, eq=False)
class CoVisits:
  """Counts over users. A user counts once, however often he took an item or a pair of items.

  Attributes:
    histories: that were counted; a user's own place here is his number.
    followed: [i, j]: users who took j after i, not counting an item after itself; with a fade, their weights.
    takers: users who took each item.
    window: how far apart two items may stand to count as one after the other; 0: any distance.
    fade: what a user counts, to the power of the places between the two; 1: each user counts 1.
  """

  histories: Sequence[History]
  followed: sparse.csr_array
  takers: Int[np.ndarray, "N"]
  window: int = 0
  fade: float = 1.0

  @property
  def num_items(self) -> int:
    return len(self.takers)

  def pairs(self, before: Int[np.ndarray, "*S"], after: Int[np.ndarray, "*S"]) -> Shaped[np.ndarray, "*S"]:
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

  def lost_pairs(self, user: int, place: int, among: Collection[int]) -> dict[tuple[int, int], float]:
    """What the pairs (before, after) that hold an item of `among` would count less, had the user taken nothing from
    `place` on; only those that would."""
    history = self.histories[user]
    if place >= len(history):
      return {}
    among = set(among)
    whole, earlier = _distances(history, self.window, among), _distances(history[:place], self.window, among)
    less = {
      pair: self._weight(distance) - (self._weight(earlier[pair]) if pair in earlier else 0.0)
      for pair, distance in whole.items()
    }
    return {pair: weight for pair, weight in less.items() if weight}

  def _weight(self, distance: int) -> float:
    return rounded(self.fade ** (distance - 1))


def rounded(weight: float) -> float:
  return round(weight * GRID) / GRID


def count_covisits(histories: Sequence[History], num_items: int, window: int = 0, fade: float = 1.0) -> CoVisits:
  """Counts every ordered pair of different items, and the takers of every item.

  Args:
    histories: of the users, oldest first.
    num_items: N; items are 0 .. N-1.
    window: pairs at most so many places apart are counted; 0: all.
    fade: what a user counts, to the power of the places between the two; above 0, at most 1.

  Raises:
    ValueError: another fade.
  """
  if not 0.0 < fade <= 1.0:
    raise ValueError(f"fade lies above 0 and is at most 1, not {fade}")
  before, after, apart = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
  takers = np.zeros(num_items, np.int64)
  for history in histories:
    items = np.asarray(history, np.int64)
    distinct = np.unique(items)
    takers[distinct] += 1
    first, second = np.triu_indices(len(items), 1)
    if window:
      near = second - first <= window
      first, second = first[near], second[near]
    distance = second - first
    first, second = items[first], items[second]
    if len(distinct) < len(items):  # something was taken twice: a pair counts once, at its smallest distance
      nearest = np.argsort(distance, kind="stable")
      _, kept = np.unique((first * num_items + second)[nearest], return_index=True)
      kept = nearest[kept]
      kept = kept[first[kept] != second[kept]]
      first, second, distance = first[kept], second[kept], distance[kept]
    before.append(first)
    after.append(second)
    apart.append(distance)
  rows, columns = np.concatenate(before), np.concatenate(after)
  weights = np.ones(len(rows), np.int64) if fade == 1.0 else _faded(np.concatenate(apart), fade)
  followed = sparse.coo_array((weights, (rows, columns)), shape=(num_items, num_items)).tocsr()
  followed.sum_duplicates()
  followed.sort_indices()
  return CoVisits(tuple(histories), followed, takers, window, fade)


def _faded(distance: Int[np.ndarray, "E"], fade: float) -> Float[np.ndarray, "E"]:
  return np.round(fade ** (distance - 1.0) * GRID) / GRID


def _distances(history: History, window: int, among: set[int]) -> dict[tuple[int, int], int]:
  """The ordered pairs of different items that hold one of `among`, and the fewest places from one to the other."""
  distances: dict[tuple[int, int], int] = {}
  reach = window or len(history)
  for place, item in enumerate(history):
    for other in range(max(0, place - reach), min(len(history), place + reach + 1)) if item in among else ():
      if history[other] != item:
        pair = (item, history[other]) if place < other else (history[other], item)
        distances[pair] = min(abs(place - other), distances.get(pair, len(history)))
  return distances
