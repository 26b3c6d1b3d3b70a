"""What speaks for each candidate of a list: counts of pairs, popularity, shared brand and category, content.

    history  ... 7 3 9 [target]        candidate 4
    followed     users who took 4 after 7, 3 or 9          supporters   of 9, 3, 7 those ever taken together with 4
    preceded     users who took 4 before one of them       popularity   users who took 4
    directly     users who took 4 as the very next after 7, 3 or 9

The counts are those of a time when the user had taken nothing from the target's place on: his own later items are taken
out of them, exactly (counts.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
import numpy as np

from diffgr_jax.rerank.counts import CoVisits, History, count_covisits
from diffgr_jax.rerank.records import Evidence, Item
from diffgr_jax.rerank.retrievers import Requests

_BATCH = 4096  # lists whose counts are looked up at a time


@dataclass(frozen=True, eq=False)
class EvidenceSource:
  """Where evidence comes from.

  Attributes:
    items: of the shop.
    counts: over the histories that may be known, of any distance (window 0).
    direct: over the same histories, of neighbours (window 1).
    vectors: of the items' content, a row an item; None: similarity is 0.
    last: how many of the history's last items are asked.
  """

  items: Sequence[Item]
  counts: CoVisits
  direct: CoVisits
  vectors: Shaped[np.ndarray, "N D"] | None = None
  last: int = 5

  def __post_init__(self):
    for counts, window in ((self.counts, 0), (self.direct, 1)):
      if counts.window != window or counts.fade != 1.0:
        raise ValueError(
          f"evidence counts users of pairs with windows 0 and 1, each as 1; got window {counts.window} for {window},"
          f" and fade {counts.fade}"
        )
    if self.vectors is not None and len(self.vectors) != len(self.items):
      raise ValueError(f"{len(self.vectors)} vectors for {len(self.items)} items: give each item its row")

  @classmethod
  def counting(
    cls,
    items: Sequence[Item],
    histories: Sequence[History],
    vectors: Shaped[np.ndarray, "N D"] | None = None,
    last: int = 5,
  ) -> "EvidenceSource":
    """Counts the histories that may be known."""
    counts = count_covisits(histories, len(items))
    return cls(items, counts, count_covisits(histories, len(items), window=1), vectors, last)

  def gather(self, requests: Requests, candidates: Int[np.ndarray, "R K"]) -> list[tuple[Evidence, ...]]:
    """The evidence of every candidate of every list."""
    evidence = []
    for start in range(0, len(requests), _BATCH):
      block = slice(start, start + _BATCH)
      evidence += self._gather(requests.rows(start, start + _BATCH), candidates[block])
    return evidence

  def _gather(self, requests: Requests, candidates: Int[np.ndarray, "R K"]) -> list[tuple[Evidence, ...]]:
    histories = [requests.history(row) for row in range(len(requests))]
    recent = [self._recent(history) for history in histories]
    asked = np.full((len(histories), self.last), -1, np.int64)
    for row, items in enumerate(recent):
      asked[row, : len(items)] = items
    known = (asked >= 0)[:, :, None]
    before = np.broadcast_to(asked.clip(0)[:, :, None], (*asked.shape, candidates.shape[1]))
    after = np.broadcast_to(candidates[:, None, :], before.shape)
    followed = np.where(known, self.counts.pairs(before, after), 0)
    preceded = np.where(known, self.counts.pairs(after, before), 0)
    directly = np.where(known, self.direct.pairs(before, after), 0)
    takers = self.counts.takers[candidates]
    for row in range(len(histories)):
      user, place = int(requests.users[row]), int(requests.places[row])
      takers[row] -= np.isin(candidates[row], list(self.counts.lost_takers(user, place)))
      lost = self.counts.lost_pairs(user, place, recent[row])
      _take_out(lost, recent[row], candidates[row], followed[row])
      _take_out({(second, first) for first, second in lost}, recent[row], candidates[row], preceded[row])
      _take_out(self.direct.lost_pairs(user, place, recent[row]), recent[row], candidates[row], directly[row])
    similarity = self._similarity(recent, candidates)
    return [
      self._of_list(
        history, items, candidates[row], followed[row], preceded[row], directly[row], takers[row], similarity[row]
      )
      for row, (history, items) in enumerate(zip(histories, recent, strict=True))
    ]

  def _recent(self, history: tuple[int, ...]) -> list[int]:
    """The distinct last items, the last one first."""
    return list(dict.fromkeys(reversed(history[-self.last :])))

  def _similarity(self, recent: list[list[int]], candidates: Int[np.ndarray, "R K"]) -> Float[np.ndarray, "R K"]:
    """Cosines of the candidates' vectors with the mean of the last items'."""
    if self.vectors is None:
      return np.zeros(candidates.shape)
    vectors = np.asarray(self.vectors, np.float32)
    tastes = np.stack([vectors[items].mean(axis=0) for items in recent])
    own = vectors[candidates]
    norms = np.linalg.norm(own, axis=2) * np.linalg.norm(tastes, axis=1)[:, None]
    return np.einsum("rkd,rd->rk", own, tastes) / np.maximum(norms, 1e-12)

  def _of_list(
    self, history, recent, candidates, followed, preceded, directly, takers, similarity
  ) -> tuple[Evidence, ...]:
    brands = [self.items[item].brand for item in history]
    categories = [self.items[item].categories[-1:] for item in history]
    together = (followed + preceded)[: len(recent)]
    evidence = []
    for column, candidate in enumerate(candidates.tolist()):
      item, shared = self.items[candidate], together[:, column].tolist()
      best_first = sorted(range(len(recent)), key=lambda age: (-shared[age], age))  # of equal ones the later first
      evidence.append(
        Evidence(
          followed=int(followed[:, column].sum()),
          preceded=int(preceded[:, column].sum()),
          supporters=tuple(recent[age] for age in best_first if shared[age]),
          popularity=int(takers[column]),
          same_brand=brands.count(item.brand) if item.brand else 0,
          same_category=categories.count(item.categories[-1:]) if item.categories else 0,
          similarity=float(similarity[column]),
          followed_last=int(followed[0, column]),
          directly=int(directly[:, column].sum()),
          directly_last=int(directly[0, column]),
        )
      )
    return tuple(evidence)


def _take_out(
  lost: Iterable[tuple[int, int]], recent: list[int], candidates: Int[np.ndarray, "K"], counts: Int[np.ndarray, "A K"]
) -> None:
  """Takes what the user's own later items added out of the counts of a list: pairs (last item, candidate)."""
  age = {item: at for at, item in enumerate(recent)}
  column = {int(item): at for at, item in enumerate(candidates)}
  for own, other in lost:
    if own in age and other in column:
      counts[age[own], column[other]] -= 1
