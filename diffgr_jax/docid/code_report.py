"""What an index of codes is like: how evenly it uses its codes, and how many documents they tell apart."""

from dataclasses import dataclass

from jaxtyping import Int
import numpy as np

from diffgr_jax.docid.collisions import in_collision


@dataclass(frozen=True)
class LevelUse:
  """How one level uses its codes.

  Attributes:
    size: codes that it has.
    used: codes that a document has.
    perplexity: exp of the entropy of the codes' shares; `size` where all are equally common.
    largest_share: the most common code's share of the documents.
    in_collision: documents that share their codes up to and with this level.
  """

  size: int
  used: int
  perplexity: float
  largest_share: float
  in_collision: int

  @property
  def utilisation(self) -> float:
    return self.used / self.size


def level_uses(codes: Int[np.ndarray, "N L"], level_sizes: tuple[int, ...]) -> list[LevelUse]:
  """How each level uses its codes."""
  uses = []
  for level, size in enumerate(level_sizes):
    share = np.bincount(codes[:, level], minlength=size) / len(codes)
    used = share[share > 0]
    perplexity = float(np.exp(-(used * np.log(used)).sum()))
    uses.append(LevelUse(size, len(used), perplexity, float(share.max()), in_collision(codes[:, : level + 1])))
  return uses
