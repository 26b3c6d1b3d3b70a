"""A shop whose users follow a law that is known, so that the best possible order of every list is known too.

The law. A user has a favourite brand b, drawn uniformly once, and then takes one item after another:

    category   c' ~ follows[category of the last item]: its complements, itself, any other; for the first item, any
    item       j in c' ~ appeal[j] * loyalty (if its brand is b) * match (if it has the last item's colour)
    again      where the user has j already, both are drawn anew, so no item is taken twice

What a history shows and what it hides. Category, brand and colour of every item stand in its title and its fields. The
last item gives the next one's category and colour; the earlier ones matter in two ways: they cannot be taken again, and
they are all that is known of b, which is never shown. The posterior sums b out exactly:

    P(b | history)              in proportion to the product over its items of P(item | the items before it, b)
    P(next = j | history)     = sum over b of P(b | history) P(next = j | history, b)

Given a list, the target is one of the candidates, and P(candidate | history, list) is the same in proportion: how a
list was drawn around its target says nothing more (candidates.py), other users are independent of this one, and lengths
of histories are drawn apart from items. Sorting by it maximises R@k and NDCG@k in expectation; both follow exactly.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import functools
import hashlib

from jaxtyping import Float, Int
import numpy as np

from diffgr_jax.rerank.made_up_names import BRANDS, COLOURS, THINGS
from diffgr_jax.rerank.records import Item, RankingTask, Shop

_LAW_VERSION = 1  # part of the fingerprint


@dataclass(frozen=True)
class MadeUpOptions:
  """Sizes and strengths of the law.

  Attributes:
    users: how many.
    categories: how many, at least 4.
    items_a_category: of each, at most brands * colours.
    brands: how many.
    colours: how many.
    least_events: of a user.
    mean_events: of a user; what is above the least is geometric.
    most_events: of a user.
    complement: share of next items from the two complements of the last category, two to one.
    stay: share of next items from the last category itself; the rest is uniform over the others.
    loyalty: how many times likelier the favourite brand makes an item; 1: not at all.
    match: how many times likelier the last item's colour makes an item; 1: not at all.
    popularity: the r-th item of a category has appeal r^-popularity.
    seed: of the shop and of its users.
  """

  users: int = 4000
  categories: int = 24
  items_a_category: int = 20
  brands: int = 12
  colours: int = 8
  least_events: int = 5
  mean_events: float = 9.0
  most_events: int = 40
  complement: float = 0.6
  stay: float = 0.1
  loyalty: float = 8.0
  match: float = 4.0
  popularity: float = 0.8
  seed: int = 0

  def __post_init__(self):
    for name, least, most in (
      ("users", 1, None), ("categories", 4, len(THINGS)), ("brands", 1, len(BRANDS)), ("colours", 1, len(COLOURS)),
      ("items_a_category", 1, self.brands * self.colours), ("least_events", 3, self.most_events),
      ("most_events", 3, self.categories * self.items_a_category // 2),
    ):  # fmt: skip
      value = getattr(self, name)
      if value < least or (most is not None and value > most):
        raise ValueError(f"{name} of a made-up shop lies in {least} to {'any' if most is None else most}, not {value}")
    if not self.least_events <= self.mean_events <= self.most_events:
      raise ValueError(f"mean_events lies between least_events and most_events, not {self.mean_events}")
    if min(self.complement, self.stay) < 0 or self.complement + self.stay > 1:
      raise ValueError(f"complement and stay are shares, together at most 1, not {self.complement} and {self.stay}")
    if min(self.loyalty, self.match) <= 0 or self.popularity < 0:
      raise ValueError(
        f"loyalty and match are above 0 and popularity 0 or more, not {self.loyalty}, {self.match}, {self.popularity}"
      )


@dataclass(frozen=True, eq=False)
class Law:
  """The law of a made-up shop: category, brand and colour of each item, and what they do.

  Attributes:
    category: of each item.
    brand: of each item.
    colour: of each item.
    appeal: of each item, within its category.
    follows: [c, c']: chance of category c' after c; the last row is for a user's first item.
    loyalty: factor of the favourite brand.
    match: factor of the last item's colour.
    brands: how many there are to be loyal to.
    colours: how many there are.
  """

  category: Int[np.ndarray, "N"]
  brand: Int[np.ndarray, "N"]
  colour: Int[np.ndarray, "N"]
  appeal: Float[np.ndarray, "N"]
  follows: Float[np.ndarray, "C1 C"]
  loyalty: float
  match: float
  brands: int
  colours: int

  @functools.cached_property
  def _totals(self) -> Float[np.ndarray, "B P1 C"]:
    """Sums of the weights of a category's items, by favourite brand and last colour (the last one: none)."""
    totals = np.zeros((self.brands, self.colours + 1, self.follows.shape[1]))
    for brand in range(totals.shape[0]):
      for colour in range(totals.shape[1]):
        weights = self.appeal * self._factors(np.array([brand]), colour, np.arange(len(self.appeal)))[0]
        totals[brand, colour] = np.bincount(self.category, weights, minlength=totals.shape[2])
    return totals

  def _factors(
    self, brands: Int[np.ndarray, "b"], colour: int, items: Int[np.ndarray, "n"]
  ) -> Float[np.ndarray, "b n"]:
    """What favourite brands and the last colour do to the weights of items."""
    liked = np.where(self.brand[items][None, :] == brands[:, None], self.loyalty, 1.0)
    return liked * np.where(self.colour[items] == colour, self.match, 1.0)[None, :]

  def draw(self, last: int, items: Int[np.ndarray, "n"]) -> Float[np.ndarray, "B n"]:
    """The chance that items are drawn after `last` (-1: first of all), were none taken yet, by favourite brand."""
    category = self.follows.shape[1] if last < 0 else int(self.category[last])
    colour = self.colours if last < 0 else int(self.colour[last])
    own = self.category[items]
    weights = self.appeal[items][None, :] * self._factors(np.arange(self.brands), colour, items)
    return self.follows[category, own][None, :] * weights / self._totals[:, colour, own]

  def next_given_brand(self, history: Sequence[int], items: Int[np.ndarray, "n"]) -> Float[np.ndarray, "B n"]:
    """The chance of each item after a history, by favourite brand; 0 for what was taken."""
    last = history[-1] if history else -1
    taken = np.array(history, np.int64)
    left = 1.0 - self.draw(last, taken).sum(axis=1, keepdims=True)
    return np.where(np.isin(items, taken)[None, :], 0.0, self.draw(last, items) / left)

  def favourite(self, history: Sequence[int]) -> Float[np.ndarray, "B"]:
    """P(favourite brand | history)."""
    logs = np.zeros(self.brands)
    for place, item in enumerate(history):
      logs += np.log(self.next_given_brand(history[:place], np.array([item]))[:, 0])
    belief = np.exp(logs - logs.max())
    return belief / belief.sum()

  def posterior(self, history: Sequence[int], candidates: Sequence[int]) -> Float[np.ndarray, "K"]:
    """P(target = candidate | history, candidates): exact, the favourite brand summed out."""
    chances = self.favourite(history) @ self.next_given_brand(history, np.array(candidates, np.int64))
    return chances / chances.sum()

  def posteriors(self, tasks: Sequence[RankingTask]) -> Float[np.ndarray, "Q K"]:
    """The posterior of every list; lists of one length."""
    return np.stack([self.posterior(task.history, task.candidates) for task in tasks])


def read_options(text: str) -> MadeUpOptions:
  """Reads `key=value,key=value`; the keys are the fields of MadeUpOptions.

  Raises:
    ValueError: an unknown key, or a value that is no number or not one that the field may have.
  """
  kinds = {name: type(value) for name, value in dataclasses.asdict(MadeUpOptions()).items()}
  values: dict[str, int | float] = {}
  for part in filter(None, text.split(",")):
    key, _, value = part.partition("=")
    if key not in kinds:
      raise ValueError(f"a made-up shop takes key=value,key=value with the keys {', '.join(kinds)}; got {part!r}")
    try:
      values[key] = kinds[key](value)
    except ValueError:
      kind = "whole number" if kinds[key] is int else "number"
      raise ValueError(f"{key} of a made-up shop is a {kind}, not {value!r}") from None
  return MadeUpOptions(**values)  # pyright: ignore[reportArgumentType]


def make_shop(options: MadeUpOptions = MadeUpOptions()) -> tuple[Shop, Law]:  # noqa: B008 (frozen)
  """Makes a shop and the law that its users follow. Equal options give equal shops."""
  rng = np.random.default_rng(options.seed)
  law = _make_law(options, rng)
  items = tuple(_item(row, law) for row in range(len(law.appeal)))
  members = [np.flatnonzero(law.category == category) for category in range(options.categories)]
  histories = tuple(_history(law, members, options, rng) for _ in range(options.users))
  users = tuple(f"made-up-{row}" for row in range(options.users))
  digest = hashlib.sha256(f"{_LAW_VERSION} {dataclasses.astuple(options)}".encode()).hexdigest()
  return Shop("made_up", items, users, histories, digest), law


def _make_law(options: MadeUpOptions, rng: np.random.Generator) -> Law:
  count = options.categories
  kinds = [rng.choice(options.brands * options.colours, options.items_a_category, replace=False) for _ in range(count)]
  rank = np.tile(np.arange(1, options.items_a_category + 1), count)
  category = np.repeat(np.arange(count), options.items_a_category)
  brand, colour = np.divmod(np.concatenate(kinds), options.colours)
  order = rng.permutation(len(rank))  # so that an item's number says nothing
  follows = np.full((count + 1, count), 1.0 / count)
  for own in range(count):
    first, second = rng.choice(np.delete(np.arange(count), own), 2, replace=False)
    others = np.delete(np.arange(count), [own, first, second])
    follows[own] = 0.0
    follows[own, own] = options.stay
    follows[own, first] = options.complement * 2 / 3
    follows[own, second] = options.complement / 3
    follows[own, others] = (1.0 - options.stay - options.complement) / len(others)
  return Law(
    category[order], brand[order], colour[order], rank[order] ** -options.popularity, follows, options.loyalty,
    options.match, options.brands, options.colours,
  )  # fmt: skip


def _item(row: int, law: Law) -> Item:
  department, thing = THINGS[law.category[row]]
  brand = BRANDS[law.brand[row]]
  return Item(f"M{row}", f"{brand} {COLOURS[law.colour[row]]} {thing}", brand, (department, f"{thing}s".capitalize()))


def _history(
  law: Law, members: Sequence[Int[np.ndarray, "_"]], options: MadeUpOptions, rng: np.random.Generator
) -> tuple[int, ...]:
  """What one user takes; `members` are the items of each category."""
  favourite = rng.integers(options.brands)
  extra = options.mean_events - options.least_events
  events = options.least_events + (int(rng.geometric(1.0 / (1.0 + extra))) - 1 if extra else 0)
  history: list[int] = []
  while len(history) < min(events, options.most_events):
    last = history[-1] if history else -1
    category = rng.choice(options.categories, p=law.follows[law.category[last] if history else options.categories])
    own = members[category]
    colour = int(law.colour[last]) if history else law.colours  # which no item has
    weights = law.appeal[own] * law._factors(np.array([favourite]), colour, own)[0]
    item = int(rng.choice(own, p=weights / weights.sum()))
    if item not in history:
      history.append(item)
  return tuple(history)
