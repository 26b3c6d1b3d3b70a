"""What re-ranking is about: the items of a shop, what its users took in turn, and lists of candidates to put in order.

    Shop         items, and every user's history as positions in `items`, oldest first
    RankingTask  one user's earlier history, the candidates in the retriever's order, the one that was taken next,
                 and what other users' interactions say for each candidate

Whatever the data came from (Amazon's reviews, a folder of interactions, a made-up shop), everything above this module
sees only these classes. An item's number, its id and its order of first appearance say something about when it was
taken (69% of Amazon Beauty's consecutive items stand in the order of their ASINs): they are never a feature, never
shown to a model, and never break a tie.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
  """One item. `categories` go from the general to the special; "" and () stand for what the source does not say."""

  item_id: str
  title: str
  brand: str = ""
  categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shop:
  """Items and what users took.

  Attributes:
    name: the data set's name, e.g. `amazon_beauty`.
    items: all items.
    users: the users' ids.
    histories: of each user, positions in `items`, oldest first.
    fingerprint: a hex digest of the content; another content, another fingerprint.
    skipped: how many input rows were left out, by what was wrong with them (empty where nothing was).
  """

  name: str
  items: Sequence[Item]
  users: Sequence[str]
  histories: Sequence[tuple[int, ...]]
  fingerprint: str
  skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
  """What speaks for one candidate after one history: counts over interactions that leave out the user's target and
  whatever the user took later.

  Attributes:
    followed: times that the candidate was taken after one of the history's last items, over users.
    preceded: times that it was taken before one of them.
    supporters: those of the last items that it was taken together with, as positions in the shop's items, the one
      with the most users first.
    popularity: users who took it.
    same_brand: items of the history that have its brand.
    same_category: items of the history that have its most special category.
    similarity: cosine of its content with the mean of the last items' content; 0.0 where there are no vectors.
    followed_last: of `followed`, the times after the history's last item.
    directly: times that it was taken as the very next after one of the last items, over users.
    directly_last: of `directly`, the times after the history's last item.
  """

  followed: int
  preceded: int
  supporters: tuple[int, ...]
  popularity: int
  same_brand: int
  same_category: int
  similarity: float
  followed_last: int = 0
  directly: int = 0
  directly_last: int = 0


@dataclass(frozen=True, slots=True)
class RankingTask:
  """A list to put in order. Items are positions in the shop's items.

  Attributes:
    user: the user's id.
    history: what the user had taken before, oldest first.
    candidates: distinct items, in the retriever's order.
    target: the one that was taken next; -1 where it is not known, or is not to be.
    evidence: of each candidate; () where none was gathered.

  Raises:
    ValueError: a candidate twice, or evidence that is not one a candidate.
  """

  user: str
  history: tuple[int, ...]
  candidates: tuple[int, ...]
  target: int
  evidence: tuple[Evidence, ...]

  def __post_init__(self):
    if len(set(self.candidates)) < len(self.candidates):
      raise ValueError(f"the list of user {self.user!r} names a candidate twice: {self.candidates}")
    if len(self.evidence) not in (0, len(self.candidates)):
      counts = f"{len(self.candidates)} candidates and evidence of {len(self.evidence)}"
      raise ValueError(f"the list of user {self.user!r} has {counts}; give each its own, or () where there is none")

  @property
  def target_rank(self) -> int:
    """Where the retriever put the target, from 0; -1 if it is not among the candidates."""
    return self.candidates.index(self.target) if self.target in self.candidates else -1
