"""GR2's reward of a ranking, with the penalty of Diffusion-GR2.

    valid       (rank before - rank after) / N  +  alpha  if the target moved up, or was first and stays first
    not valid, or overlong      -1

Ranks are the target's, from 0, in the retriever's order and in the answer; N is the number of candidates. The format
reward alpha is not paid for validity alone: a policy would earn it by copying the input order (GR2, arXiv 2602.07774).
Diffusion-GR2 (arXiv 2607.01170) has alpha 0.2 and keeps the answers that got -1 in their group. Every valid answer is
above -1, for a target falls by N - 1 places at most. The papers were read in public digests.
"""

from jaxtyping import Bool, Float, Int
import numpy as np

from diffgr_jax.rerank.answer import Answers

ALPHA = 0.2
INVALID_REWARD = -1.0


def ranking_rewards(
  before: Int[np.ndarray, "B"],
  after: Int[np.ndarray, "B"],
  candidates: Int[np.ndarray, "B"],
  valid: Bool[np.ndarray, "B"],
  alpha: float = ALPHA,
) -> Float[np.ndarray, "B"]:
  """Rewards of answers.

  Args:
    before: the target's place in the retriever's order.
    after: its place in the answer; not looked at where the answer is not valid.
    candidates: how many there are.
    valid: whether the answer is a ranking of the candidates that came to its end in time.
    alpha: the format reward.

  Raises:
    ValueError: a place outside the list.
  """
  for name, places in (("before", before), ("after", np.where(valid, after, 0))):
    if outside := np.flatnonzero((places < 0) | (places >= candidates)).tolist():
      row = outside[0]
      raise ValueError(f"row {row}: the target's place {name} is {places[row]} among {candidates[row]} candidates")
  earned = (after < before) | ((before == 0) & (after == 0))
  reward = (before - after) / candidates + alpha * earned
  return np.where(valid, reward, INVALID_REWARD).astype(np.float32)


def answer_rewards(answers: Answers, targets: Int[np.ndarray, "B"], alpha: float = ALPHA) -> Float[np.ndarray, "B"]:
  """Rewards of parsed answers.

  Args:
    answers: a verdict other than OK, TRUNCATED among them, is not valid.
    targets: the target's place in the retriever's order.
    alpha: the format reward.
  """
  is_target = answers.entries == targets[:, None]
  after = is_target.argmax(axis=1) if is_target.shape[1] else np.zeros_like(targets)
  return ranking_rewards(targets, after, answers.candidates, answers.ok, alpha)
