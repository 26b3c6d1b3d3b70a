"""Valid rankings by force: permutations from log p(position i = candidate j), as DiffuRank reads them off a model.

    scores[i, j] = sum over levels l of log p(token l of answer position i = code l of candidate j)

    optimal      the permutation with the greatest sum of scores                            (linear assignment)
    greedy       a candidate a position, each only once: from left to right, or the surest position first
    sampled      from left to right, each position drawn among the candidates that remain

This is an extra beside free decoding: it makes duplicates, omissions and strangers impossible, and says nothing of
whether a model would have avoided them. `scores` takes the levels of an ID, and the positions, as independent given
what the model saw.
"""

from typing import Literal

from jaxtyping import Float, Int
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import log_softmax, logsumexp

_IMPOSSIBLE = -1e9  # stands for a log-probability of minus infinity: an assignment needs finite numbers


def position_scores(
  log_probs: Float[np.ndarray, "*B P L V"], candidates: Int[np.ndarray, "*B C L"]
) -> Float[np.ndarray, "*B P C"]:
  """Scores of every candidate at every position of an answer.

  Args:
    log_probs: of the tokens of each level of the ID at each position.
    candidates: the DocID tokens of the candidates.
  """
  tokens = np.swapaxes(candidates, -1, -2)[..., None, :, :]  # 1 L C
  tokens = np.broadcast_to(tokens, (*log_probs.shape[:-1], candidates.shape[-2]))
  return np.take_along_axis(log_probs, tokens, axis=-1).sum(axis=-2)


def permutation_scores(scores: Float[np.ndarray, "B N N"], rankings: Int[np.ndarray, "B N"]) -> Float[np.ndarray, "B"]:
  """The sum of the scores along a ranking of each row."""
  return np.take_along_axis(scores, rankings[..., None], axis=-1)[..., 0].sum(axis=-1)


def optimal_permutations(scores: Float[np.ndarray, "B N N"]) -> Int[np.ndarray, "B N"]:
  """The candidates at each position, such that the sum of scores is greatest.

  Raises:
    ValueError: a score is NaN.
  """
  finite = np.maximum(_checked(scores), _IMPOSSIBLE)
  found = [linear_sum_assignment(matrix, maximize=True)[1] for matrix in finite]
  return np.array(found, np.int64).reshape(scores.shape[:2])


def greedy_permutations(
  scores: Float[np.ndarray, "B N N"], order: Literal["left_to_right", "surest_first"]
) -> Int[np.ndarray, "B N"]:
  """The best of the candidates that remain, position after position.

  Args:
    scores: log p(position i = candidate j).
    order: of the positions: from left to right, or at each step the one whose best remaining candidate has the greatest
      probability among those that remain.

  Raises:
    ValueError: a score is NaN.
  """
  left = np.maximum(_checked(scores), _IMPOSSIBLE).astype(np.float64)
  rows, size = np.arange(len(left)), left.shape[1]
  rankings = np.full(left.shape[:2], -1, np.int64)
  for step in range(size):
    if order == "left_to_right":
      position = np.full(len(left), step)
    else:
      sureness = left.max(axis=-1) - logsumexp(left, axis=-1)
      position = np.where(rankings < 0, sureness, -np.inf).argmax(axis=-1)
    chosen = left[rows, position].argmax(axis=-1)
    rankings[rows, position] = chosen
    left[rows, :, chosen] = -np.inf
    left[rows, position, chosen] = 0.0
  return rankings


def sampled_permutations(
  scores: Float[np.ndarray, "B N N"], rng: np.random.Generator, temperature: float = 1.0
) -> tuple[Int[np.ndarray, "B N"], Float[np.ndarray, "B"]]:
  """Draws a ranking of each row, from left to right, among the candidates that remain.

  Args:
    scores: log p(position i = candidate j).
    rng: draws.
    temperature: greater than 0.

  Returns:
    The rankings, and the log-probability with which each was drawn.

  Raises:
    ValueError: a score is NaN, or a temperature that is not positive.
  """
  if not temperature > 0:
    raise ValueError(f"a temperature is greater than 0, not {temperature}; greedy_permutations draws nothing")
  left = np.maximum(_checked(scores), _IMPOSSIBLE).astype(np.float64) / temperature
  rows, size = np.arange(len(left)), left.shape[1]
  rankings, log_prob = np.zeros(left.shape[:2], np.int64), np.zeros(len(left))
  for position in range(size):
    log_probs = log_softmax(left[:, position], axis=-1)
    rankings[:, position] = (log_probs + rng.gumbel(size=log_probs.shape)).argmax(axis=-1)
    log_prob += log_probs[rows, rankings[:, position]]
    left[rows, :, rankings[:, position]] = -np.inf
  return rankings, log_prob


def _checked(scores: Float[np.ndarray, "B N N"]) -> Float[np.ndarray, "B N N"]:
  if np.isnan(scores).any():
    raise ValueError("a score of a permutation is NaN; log-probabilities are numbers, or minus infinity")
  return scores
