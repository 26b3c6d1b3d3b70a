"""One-pass scoring: one forward pass on the all-masked canvas ranks every document.

    log_probs  [B, L, V]   log p(token v at position l | prompt), every canvas position masked
    codes      [N, L]      the DocIDs that exist
    score[b, n] = sum over the positions l that count of log_probs[b, l, codes[n, l]]

A DocID's tokens and its EOS count, the PAD after them does not (`scored` says which). The gather runs over one
position after the other, so that no array is larger than the result, B x N.

Prior correction. The positions are scored as if they were independent, so a score also holds how common a document's
tokens are, and how many it has. Subtracting the log of each token's share among the documents at its position leaves
the evidence of the query: sum of log p(c_l | query) / p(c_l), the posterior of a document (up to a constant) where all
documents are equally likely and positions are independent. It costs no forward pass. Source: the one-pass retriever of
arXiv 2610.08716, which ranks at depth as well as decoding does, at the price of one forward pass.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities


def score_documents(
  log_probs: Float[Array, "B L V"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  positions: Bool[Array, "B L"] | None = None,
) -> Float[Array, "B N"]:
  """Sums each document's log-probabilities (or any other values of tokens) over the positions that count.

  Args:
    log_probs: log p(token) at every position of the canvas.
    codes: the DocID index.
    scored: the positions of a DocID that count.
    positions: the positions of a row that count; None: all.

  Returns:
    Scores, in nats; -inf for a document with a token of probability 0 (a banned one).

  Raises:
    ValueError: a canvas of another length than the DocIDs.
  """
  if log_probs.shape[1] != codes.shape[1]:
    raise ValueError(f"log_probs has {log_probs.shape[1]} positions, codes {codes.shape[1]}; they must be equal")

  def add_position(scores_NxB, position):
    log_probs_VxB, code, counts, row_counts = position
    return scores_NxB + jnp.where(counts[:, None] & row_counts[None, :], log_probs_VxB[code], 0.0), None

  log_probs_LxVxB = jnp.transpose(log_probs, (1, 2, 0))  # rows last: one contiguous vector for each code
  start = jnp.zeros((len(codes), len(log_probs)), log_probs.dtype)
  rows = jnp.ones(log_probs.shape[:2], bool) if positions is None else positions
  scores_NxB, _ = jax.lax.scan(add_position, start, (log_probs_LxVxB, codes.T, scored.T, rows.T))
  return scores_NxB.T


def top_documents(scores: Float[Array, "B N"], k: int) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
  """Picks the k best documents of each row, best first; among equal scores the lower index goes first.

  Raises:
    ValueError: k below 1 or above the number of documents.
  """
  if not 1 <= k <= scores.shape[1]:
    raise ValueError(f"k is {k}; it must be in 1..{scores.shape[1]} (the number of documents)")
  best, index = jax.lax.top_k(scores, k)
  return index, best


def one_pass_log_probs(
  params: Params,
  prompt: Int[Array, "B P"],
  banned: Bool[Array, "V"],
  *,
  denoise: Denoiser,
  mask_id: int,
  length: int,
) -> Float[Array, "B L V"]:
  """Runs the model once on the all-masked canvas of `length` positions; -inf for MASK and the banned tokens."""
  canvas = jnp.full((prompt.shape[0], length), mask_id, jnp.int32)
  return log_probabilities(denoise(params, prompt, canvas), banned.at[mask_id].set(True))


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id"))
def one_pass_scores(
  params: Params,
  prompt: Int[Array, "B P"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  banned: Bool[Array, "V"],
  log_prior: Float[Array, "L V"] | None = None,
  *,
  denoise: Denoiser,
  mask_id: int,
) -> Float[Array, "B N"]:
  """Scores every document for each prompt with one forward pass; arguments as in `one_pass_retrieve`."""
  log_probs = one_pass_log_probs(params, prompt, banned, denoise=denoise, mask_id=mask_id, length=codes.shape[1])
  return score_documents(log_probs if log_prior is None else log_probs - log_prior[None], codes, scored)


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "k"))
def one_pass_retrieve(
  params: Params,
  prompt: Int[Array, "B P"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  banned: Bool[Array, "V"],
  log_prior: Float[Array, "L V"] | None = None,
  *,
  denoise: Denoiser,
  mask_id: int,
  k: int,
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
  """Ranks the documents of the index for each prompt with one forward pass.

  Args:
    params: the model's parameters.
    prompt: the queries.
    codes: the DocID index.
    scored: the positions of a DocID that count.
    banned: tokens that are never produced.
    log_prior: subtracted from the log-probabilities (see above), or None.
    denoise: the model; pass the same function object each time, another one compiles anew.
    mask_id: the id of MASK.
    k: how many documents to return.

  Returns:
    Row indices into `codes` and their scores in nats, best first.

  Raises:
    ValueError: k outside 1..N.
  """
  scores = one_pass_scores(params, prompt, codes, scored, banned, log_prior, denoise=denoise, mask_id=mask_id)
  return top_documents(scores, k)
