"""Small random shops for tests, and the naive recount that every count is compared with."""

import numpy as np

from diffgr_jax.rerank.records import Item, Shop


def random_shop(rng, users=30, items=25, repeats=False, longest=9):
  """Users with 3 to `longest` items of a skewed popularity; with `repeats`, some are taken again."""
  weights = 1.0 / np.arange(1, items + 1)
  weights = rng.permutation(weights / weights.sum())
  histories = tuple(
    tuple(int(i) for i in rng.choice(items, rng.integers(3, longest + 1), replace=repeats, p=weights))
    for _ in range(users)
  )
  brands, kinds = ("", "Hill", "Oak", "Sea"), ((), ("A",), ("A", "B"), ("A", "C"))
  shop_items = tuple(Item(f"i{n}", f"Item {n}", brands[rng.integers(4)], kinds[rng.integers(4)]) for n in range(items))
  return Shop("random", shop_items, tuple(f"u{n}" for n in range(users)), histories, "")


def as_known(histories, user, place):
  """The histories as they were when the user had taken nothing from `place` on."""
  return tuple(own[:place] if number == user else own for number, own in enumerate(histories))


def took_after(history, first, second, window=0):
  """Whether a user took `second` after `first`, at most `window` places later."""
  return first != second and any(
    a == first and b == second and (not window or q - p <= window)
    for p, a in enumerate(history)
    for q, b in enumerate(history)
    if q > p
  )


def followed(histories, first, second, window=0, fade=1.0):
  """Users who took `second` after `first`; with a fade, each counts less by the places between the nearest two."""
  if fade == 1.0:
    return sum(took_after(own, first, second, window) for own in histories)
  total = 0.0
  for own in histories:
    nearest = next((n for n in range(1, (window or len(own)) + 1) if took_after(own, first, second, n)), None)
    total += round(fade ** (nearest - 1) * 1024) / 1024 if nearest else 0.0
  return total


def takers(histories, item):
  return sum(item in own for own in histories)
