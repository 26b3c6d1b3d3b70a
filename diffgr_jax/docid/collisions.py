"""What is done about documents that were given the same codes.

    codes            none      extra_level    random         optimal
    A   3 7 1        3 7 1     3 7 1 0        3 7 1          each group with equal first L-1 codes gets last codes
    B   3 7 1        3 7 1     3 7 1 1        3 7 5 (free)   that are all different, at the smallest total squared
    C   3 7 4        3 7 4     3 7 4 0        3 7 4          error: an assignment problem of the group's size

`extra_level` as in TIGER (arXiv 2305.05065): an ordinal in corpus order. `random`: of equal ones the first keeps its
code, the others draw from the codes of the last level that the group does not use. `optimal`: scipy's
linear_sum_assignment.
"""

from collections.abc import Callable

from jaxtyping import Float, Int
import numpy as np
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from diffgr_jax.docid.vectors import QUIET_SECONDS

RULES = ("none", "extra_level", "random", "optimal")
Rows = Int[np.ndarray, "_"]  # each group has a length of its own
Costs = Callable[[Int[np.ndarray, "n"]], Float[np.ndarray, "n K"]]  # rows -> error with each code of the last level
_BATCH = 4096  # documents whose costs are held at a time, or one group where it has more


def in_collision(codes: Int[np.ndarray, "N L"]) -> int:
  """How many documents share all their codes with another one."""
  _, count = np.unique(codes, axis=0, return_counts=True)
  return int(count[count > 1].sum())


def unique_share(codes: Int[np.ndarray, "N L"]) -> float:
  """The share of documents whose codes no other document has."""
  return 1.0 - in_collision(codes) / len(codes)


def resolve(
  rule: str,
  codes: Int[np.ndarray, "N L"],
  level_sizes: tuple[int, ...],
  *,
  costs: Costs | None = None,
  seed: int = 0,
) -> tuple[Int[np.ndarray, "N M"], tuple[int, ...]]:
  """Returns codes without two equal rows (rule `none`: as they are), and how many codes each level has.

  Args:
    rule: one of `RULES`.
    codes: L codes a document, in corpus order.
    level_sizes: how many codes each level has.
    costs: needed by `optimal`.
    seed: of the random draws.

  Raises:
    ValueError: an unknown rule, `optimal` without costs, or more documents behind a prefix than the last level has
      codes.
  """
  if rule not in RULES:
    raise ValueError(f"the rule for collisions is one of {', '.join(RULES)}, not {rule!r}")
  if rule == "none":
    return codes, level_sizes
  if rule == "extra_level":
    ordinals = _ordinals(codes)
    return np.concatenate([codes, ordinals[:, None]], axis=1), (*level_sizes, int(ordinals.max(initial=0)) + 1)
  groups = _groups_in_collision(codes)
  if groups and (largest := max(map(len, groups))) > level_sizes[-1]:
    raise ValueError(
      f"{largest} documents share their first {codes.shape[1] - 1} codes, but the last level has only"
      f" {level_sizes[-1]}: take more levels, more codes, or extra_level for collisions"
    )
  if rule == "random":
    return _random_last(codes, level_sizes[-1], groups, seed), level_sizes
  if costs is None:
    raise ValueError("the rule optimal needs a quantiser and document vectors: random codes and imports have none")
  return _optimal_last(codes, groups, costs), level_sizes


def _ordinals(codes: Int[np.ndarray, "N L"]) -> Int[np.ndarray, "N"]:
  """For every document how many before it have its codes."""
  _, inverse = np.unique(codes, axis=0, return_inverse=True)
  inverse = inverse.reshape(-1)
  order = np.argsort(inverse, kind="stable")
  ordered = inverse[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
  ordinals = np.empty(len(codes), np.int32)
  ordinals[order] = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
  return ordinals


def _groups_in_collision(codes: Int[np.ndarray, "N L"]) -> list[Rows]:
  """The rows (rising) of each set of documents with equal first L-1 codes, where two of it are equal in all."""
  prefixes, inverse = np.unique(codes[:, :-1], axis=0, return_inverse=True)
  inverse = inverse.reshape(-1) if codes.shape[1] > 1 else np.zeros(len(codes), np.int64)
  order = np.argsort(inverse, kind="stable")
  ends = np.cumsum(np.bincount(inverse, minlength=max(len(prefixes), 1)))
  groups = np.split(order, ends[:-1])
  return [rows for rows in groups if len(np.unique(codes[rows, -1])) < len(rows)]


def _random_last(codes: Int[np.ndarray, "N L"], size: int, groups: list[Rows], seed: int) -> Int[np.ndarray, "N L"]:
  rng = np.random.default_rng(seed)
  codes = codes.copy()
  for rows in groups:
    _, keepers = np.unique(codes[rows, -1], return_index=True)  # the first of each code
    movers = np.delete(rows, keepers)
    free = np.setdiff1d(np.arange(size), codes[rows, -1])
    codes[movers, -1] = rng.choice(free, len(movers), replace=False)
  return codes


def _optimal_last(codes: Int[np.ndarray, "N L"], groups: list[Rows], costs: Costs) -> Int[np.ndarray, "N L"]:
  """A group without a collision already has the best codes: only those with one are assigned anew."""
  codes = codes.copy()
  with tqdm(total=len(groups), unit="group", desc="assigning", delay=QUIET_SECONDS, leave=False) as bar:
    for batch in _batches_of(groups):
      table = costs(np.concatenate(batch))
      start = 0
      for rows in batch:
        codes[rows, -1] = linear_sum_assignment(table[start : start + len(rows)])[1]
        start += len(rows)
        bar.update()
  return codes


def _batches_of(groups: list[Rows]):
  """Groups gathered until they hold about `_BATCH` documents."""
  batch, held = [], 0
  for rows in groups:
    if batch and held + len(rows) > _BATCH:
      yield batch
      batch, held = [], 0
    batch.append(rows)
    held += len(rows)
  if batch:
    yield batch
