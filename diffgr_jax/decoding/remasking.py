"""Remasking: tokens that were committed and have become doubtful go back to MASK. For the canvas and the block decoder.

    canvas       7   M   4   M        confidence when committed   .8  .   .6  .
                                      probability now             .9  .   .1  .       the 4 has fallen
    step         7   5   M   2        one reopened, one committed more than the quota: as many MASKs as without

Every reopened position is paid for by one more commitment, so the number of MASKs after each step is what it would be
without remasking, and decoding ends as early; at the last step nothing is left to pay with, and nothing is reopened. No
position is reopened more than `max_reopen` times.

How doubtful a token is: by its probability when it was committed ("commit"; MaskGIT's and LLaDA's low-confidence
remasking and ReMDM's conf strategy, arXiv 2503.00307, look at that), or by what the model gives it now that more of the
canvas is there ("current"). Then only tokens whose probability has fallen since may go, the least probable first. The
model sees the token that it judges.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

REMASK_BY = ("commit", "current")


def check_remasking(owner: str, remask: int, max_reopen: int, remask_by: str) -> None:
  """Checks the three fields of an options class; `owner` names it.

  Raises:
    ValueError: one of them is out of its range.
  """
  if remask < 0:
    raise ValueError(f"{owner}.remask is {remask}; it must be 0 (no remasking) or more")
  if max_reopen < 1:
    raise ValueError(f"{owner}.max_reopen is {max_reopen}; it must be 1 or more (remask=0 turns it off)")
  if remask_by not in REMASK_BY:
    raise ValueError(f"{owner}.remask_by is one of {', '.join(REMASK_BY)}, not {remask_by!r}")


def standing_confidence(
  now: Float[Array, "B L"], committed: Float[Array, "B L"], remask_by: str
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
  """How sure a committed token still is, and whether that alone lets it be reopened.

  Args:
    now: the probability that the model gives it now.
    committed: its probability when it was committed.
    remask_by: commit or current.

  Returns:
    The confidence by which the weakest are found, and True where the token may go.
  """
  if remask_by == "commit":
    return committed, jnp.ones(committed.shape, bool)
  return now, now < committed
