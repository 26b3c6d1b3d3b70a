"""Codes that lack something on purpose, to set a quantiser's beside.

random               distinct rows drawn evenly: neither near documents nor levels have anything in common
shuffled_documents   a quantiser's codes dealt out to other documents: its structure without its meaning
permuted_levels      its codes with the levels in another order: its meaning, but not from coarse to fine
"""

from jaxtyping import Int
import numpy as np

CONTROLS = ("none", "shuffled_documents", "permuted_levels")  # of a quantiser's codes; random is a method of its own


def random_codes(count: int, levels: int, size: int, seed: int) -> Int[np.ndarray, "{count} {levels}"]:
  """Distinct rows of evenly drawn codes: DocIDs that say nothing about their documents, a control.

  Raises:
    ValueError: fewer rows exist than are asked for.
  """
  if levels < 1 or size < 1:
    raise ValueError(f"random codes need at least 1 level of 1 code, not {levels} of {size}")
  if size**levels < count:
    raise ValueError(f"{levels} levels of {size} codes name {size**levels} documents, not {count}")
  rng = np.random.default_rng(seed)
  if size**levels <= 4 * count:  # a crowded space: draw without replacement
    chosen = rng.choice(size**levels, count, replace=False)
    return np.stack(np.unravel_index(chosen, (size,) * levels), axis=1).astype(np.int32)
  rows = rng.integers(size, size=(count, levels), dtype=np.int32)
  while True:
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(count), first)
    if not len(repeated):
      return rows
    rows[repeated] = rng.integers(size, size=(len(repeated), levels), dtype=np.int32)


def permute_levels(
  codes: Int[np.ndarray, "N L"], level_sizes: tuple[int, ...], seed: int
) -> tuple[Int[np.ndarray, "N L"], tuple[int, ...], list[int]]:
  """The same codes with the levels in another order: as telling, but no longer from coarse to fine; a control.

  Returns:
    The codes, the levels' sizes, and the order: column j was level order[j]. With two levels or more it is another one.
  """
  order = np.arange(len(level_sizes))
  rng = np.random.default_rng(seed)
  while len(order) > 1 and (order == np.arange(len(order))).all():
    order = rng.permutation(len(order))
  return codes[:, order], tuple(level_sizes[level] for level in order), order.tolist()


def shuffle_documents(codes: Int[np.ndarray, "N L"], seed: int) -> Int[np.ndarray, "N L"]:
  """The same DocIDs dealt out to other documents: as even and as structured, but saying nothing; a control."""
  return codes[np.random.default_rng(seed).permutation(len(codes))]
