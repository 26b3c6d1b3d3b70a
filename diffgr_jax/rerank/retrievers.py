"""Retrievers of items: what a history makes likely next, as ranked lists.

    popularity         users who took the item
    markov             users who took it right after the history's last item
    covisitation       over the last five items i_1 (the last), i_2, ...:
                       sum_k decay^(k-1) * (forward * followed[i_k, j] + backward * followed[j, i_k]) * takers[j]^power,
                       where a user who took j n places after i counts fade^(n-1)
    symmetric          the same with forward = backward
    ModelRetriever     any function of histories that scores every item, such as one-pass scoring over semantic IDs

Items of the history are never listed. Lists that are too short are filled with the most popular items.

No leak: what a user's items from the target's place on have added to the counts is taken out before his list is made
(counts.py). Weights are rounded to 1/1024 first, so that float64 sums are exact and nothing is left of what is taken
out.

No tie is broken by an item's number, which says when it came to the shop: of equal scores the one that a seeded
permutation of the items puts first is first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import functools
from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
import numpy as np
from scipy import sparse
from tqdm import tqdm

from diffgr_jax.rerank.counts import CoVisits, History, count_covisits, rounded

QUIET_SECONDS = 5.0  # before a progress bar appears
FADE = 0.8  # of pairs of items, by the places between them
_BATCH = 1024  # lists whose scores are held at a time


@dataclass(frozen=True, eq=False)
class Requests:
  """What lists are asked for: of user `users[r]` of `histories`, the one for place `places[r]`."""

  histories: Sequence[History]
  users: Int[np.ndarray, "R"]
  places: Int[np.ndarray, "R"]

  def __len__(self) -> int:
    return len(self.users)

  def history(self, row: int) -> History:
    """What the user had taken before the place."""
    return self.histories[int(self.users[row])][: int(self.places[row])]

  def rows(self, start: int, end: int) -> "Requests":
    return Requests(self.histories, self.users[start:end], self.places[start:end])


@runtime_checkable
class Retriever(Protocol):
  """What makes lists of items."""

  @property
  def name(self) -> str: ...

  def rank(self, requests: Requests, k: int) -> Int[np.ndarray, "R {k}"]:
    """The k best items of each request, best first, none of its history; -1 where the shop has no more items.

    A list for a place must be what it would be had the user taken nothing from that place on.
    """
    ...


@dataclass(frozen=True, eq=False)
class CoVisitation:
  """Scores items by the counts of pairs with the history's last items. With `last=0`, by popularity alone."""

  name: str
  counts: CoVisits
  last: int = 5
  forward: float = 1.0
  backward: float = 0.3
  decay: float = 0.6
  power: float = -0.15  # what everybody takes is taken after anything
  seed: int = 0

  def __post_init__(self):
    if self.last < 0 or min(self.forward, self.backward) < 0 or not 0 <= self.decay <= 1:
      raise ValueError(
        f"last, forward and backward are 0 or more and decay lies in [0, 1], not {self.last}, {self.forward},"
        f" {self.backward}, {self.decay}"
      )

  @functools.cached_property
  def _strength(self) -> sparse.csr_array:
    """[i, j]: what item i in the history says for j."""
    followed = self.counts.followed.astype(np.float64)
    return (followed * rounded(self.forward) + followed.T * rounded(self.backward)).tocsr()

  @functools.cached_property
  def _order(self) -> Int[np.ndarray, "N"]:
    """Where the seeded permutation puts each item."""
    return np.random.default_rng(self.seed).permutation(self.counts.num_items)

  @functools.cached_property
  def _popular(self) -> Int[np.ndarray, "N"]:
    """All items, the most popular first."""
    return np.lexsort((self._order, -self.counts.takers))

  @functools.cached_property
  def _favour(self) -> Float[np.ndarray, "T"]:
    """The factor of an item by its number of takers."""
    return np.arange(1 + self.counts.takers.max(initial=0), dtype=np.float64).clip(1) ** self.power

  def rank(self, requests: Requests, k: int) -> Int[np.ndarray, "R {k}"]:
    lists = np.full((len(requests), k), -1, np.int64)
    for start in tqdm(range(0, len(requests), _BATCH), desc=self.name, delay=QUIET_SECONDS, leave=False):
      block = requests.rows(start, start + _BATCH)
      scores = self.scores(block)
      for row in range(len(block)):
        entries = slice(scores.indptr[row], scores.indptr[row + 1])
        lists[start + row] = self._best(block, row, scores.indices[entries], scores.data[entries], k)
    return lists

  def scores(self, requests: Requests) -> sparse.csr_array:
    """The scores above 0 of each request, before popularity counts; items of the history are still there."""
    shape = (len(requests), self.counts.num_items)
    rows, items, weights = [], [], []
    lost = ([], [], [])
    for row in range(len(requests)):
      recent = self._recent(requests.history(row))
      rows += [row] * len(recent)
      items += recent.keys()
      weights += recent.values()
      user, place = int(requests.users[row]), int(requests.places[row])
      for (before, after), count in self.counts.lost_pairs(user, place, recent).items():
        for here, other, weight in ((before, after, self.forward), (after, before, self.backward)):
          if here in recent:
            for into, value in zip(lost, (row, other, recent[here] * rounded(weight) * count), strict=True):
              into.append(value)
    chosen = sparse.coo_array((np.array(weights, np.float64), (np.array(rows, int), np.array(items, int))), shape=shape)
    taken_out = sparse.coo_array(
      (np.array(lost[2], np.float64), (np.array(lost[0], int), np.array(lost[1], int))), shape
    )
    scores = (chosen.tocsr() @ self._strength - taken_out.tocsr()).tocsr()
    scores.eliminate_zeros()
    return scores

  def _recent(self, history: History) -> dict[int, float]:
    """The last items and their weights; one that stands there twice has the sum."""
    weights: dict[int, float] = {}
    for age, item in enumerate(reversed(history[-self.last :] if self.last else ())):
      weights[item] = weights.get(item, 0.0) + rounded(self.decay**age)
    return weights

  def _best(
    self, requests: Requests, row: int, items: Int[np.ndarray, "e"], scores: Float[np.ndarray, "e"], k: int
  ) -> Int[np.ndarray, "{k}"]:
    """The k best of the scored items, filled with popular ones."""
    history = requests.history(row)
    lost = self.counts.lost_takers(int(requests.users[row]), int(requests.places[row]))
    takers = self.counts.takers[items]
    if lost:
      takers = takers - np.isin(items, list(lost))
    allowed = ~np.isin(items, history)
    items, scores = items[allowed], (scores * self._favour[takers])[allowed]
    best = first_of(items, scores, self._order, k)
    if len(best) < k:
      best = np.concatenate([best, self._popular_besides({*history, *best.tolist()}, lost, k - len(best))])
    return best

  def _popular_besides(self, without: set[int], lost: set[int], k: int) -> Int[np.ndarray, "{k}"]:
    """The k most popular items not in `without`, when those of `lost` have a taker less; -1 where there are no more.

    A taker less only moves an item back, so the first k + |without| + |lost| of the full order hold all that can win.
    """
    front = self._popular[: k + len(without) + len(lost)]
    items = np.union1d(front, np.fromiter(lost, np.int64, len(lost)))
    items = items[~np.isin(items, list(without))]
    takers = self.counts.takers[items] - np.isin(items, list(lost))
    best = items[np.lexsort((self._order[items], -takers))[:k]]
    return np.pad(best, (0, k - len(best)), constant_values=-1)


def covisitation(
  histories: Sequence[History], num_items: int, *, fade: float = FADE, **options: int | float
) -> CoVisitation:
  """Directional co-visitation; `options` are the fields of CoVisitation."""
  return CoVisitation("co-visitation", count_covisits(histories, num_items, fade=fade), **options)  # pyright: ignore


def symmetric(histories: Sequence[History], num_items: int, *, fade: float = FADE, seed: int = 0) -> CoVisitation:
  """Co-visitation that does not ask what came first."""
  counts = count_covisits(histories, num_items, fade=fade)
  return CoVisitation("symmetric co-visitation", counts, forward=1.0, backward=1.0, seed=seed)


def markov(histories: Sequence[History], num_items: int, *, seed: int = 0) -> CoVisitation:
  """What came right after the last item."""
  counts = count_covisits(histories, num_items, window=1)
  return CoVisitation("markov", counts, last=1, forward=1.0, backward=0.0, power=0.0, seed=seed)


def popularity(histories: Sequence[History], num_items: int, *, seed: int = 0) -> CoVisitation:
  """The most popular items, whatever the history."""
  return CoVisitation("popularity", count_covisits(histories, num_items, window=1), last=0, seed=seed)


@dataclass(frozen=True, eq=False)
class ModelRetriever:
  """A model that scores every item of the shop after each history, e.g. one-pass scoring over semantic IDs.

  It sees histories and nothing else. For training lists the model must not have learned from their targets: whoever
  trains it on the same users asks it for valid and test lists only, or trains one for each part of the users.
  """

  name: str
  score: Callable[[Sequence[History]], Float[np.ndarray, "B N"]]
  seed: int = 0

  def rank(self, requests: Requests, k: int) -> Int[np.ndarray, "R {k}"]:
    lists = np.full((len(requests), k), -1, np.int64)
    for start in range(0, len(requests), _BATCH):
      block = requests.rows(start, start + _BATCH)
      histories = [block.history(row) for row in range(len(block))]
      scores = np.asarray(self.score(histories), np.float64)
      if scores.ndim != 2 or len(scores) != len(block) or np.isnan(scores).any():
        raise ValueError(f"{self.name} gave scores of shape {scores.shape} for {len(block)} histories, or NaN")
      order = np.random.default_rng(self.seed).permutation(scores.shape[1])
      for row, history in enumerate(histories):
        items = np.flatnonzero(scores[row] > -np.inf)
        items = items[~np.isin(items, history)]
        best = first_of(items, scores[row, items], order, k)
        lists[start + row, : len(best)] = best
    return lists


def first_of(
  items: Int[np.ndarray, "e"], scores: Float[np.ndarray, "e"], order: Int[np.ndarray, "N"], k: int
) -> Int[np.ndarray, "_"]:
  """The k items of the greatest scores, or all; of equal scores the one that stands first in `order`."""
  if len(items) > k:
    enough = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
    items, scores = items[enough], scores[enough]
  return items[np.lexsort((order[items], -scores))[:k]].astype(np.int64)


RETRIEVERS: dict[str, Callable[..., CoVisitation]] = {
  "covisitation": covisitation,
  "symmetric": symmetric,
  "markov": markov,
  "popularity": popularity,
}
