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
import numpy as np

from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.models.denoiser import CodeDenoiser
from diffgr_jax.parallel.rules import Rules, constrain, split_of


def score_documents(
  log_probs: Float[Array, "B L V"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  positions: Bool[Array, "B L"] | None = None,
  rules: Rules = (),
) -> Float[Array, "B N"]:
  """Sums each document's log-probabilities (or any other values of tokens) over the positions that count.

  Args:
    log_probs: log p(token) at every position of the canvas.
    codes: the DocID index.
    scored: the positions of a DocID that count.
    positions: the positions of a row that count; None: all.
    rules: on a mesh, where the documents lie (parallel/rules.py); every device scores its own.

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

  # Rows last: one contiguous vector for each code. All of the vocabulary: any document may ask for any token.
  log_probs_LxVxB = constrain(jnp.transpose(log_probs, (1, 2, 0)), "log-probabilities", (None, None, "batch"), rules)
  start = jnp.zeros((len(codes), len(log_probs)), log_probs.dtype)
  start = constrain(start, "scores", ("documents", "batch"), rules)
  rows = jnp.ones(log_probs.shape[:2], bool) if positions is None else positions
  scores_NxB, _ = jax.lax.scan(add_position, start, (log_probs_LxVxB, codes.T, scored.T, rows.T))
  return scores_NxB.T


def top_documents(
  scores: Float[Array, "B N"], k: int, rules: Rules = ()
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
  """Picks the k best documents of each row, best first; among equal scores the lower index goes first.

  On a mesh that splits the documents, every device picks the k best of its own, and the best of these are picked: what
  travels is k documents a device, not all scores.

  Raises:
    ValueError: k below 1 or above the number of documents.
  """
  batch, documents = scores.shape
  if not 1 <= k <= documents:
    raise ValueError(f"k is {k}; it must be in 1..{documents} (the number of documents)")
  parts = split_of("documents", rules)
  own = constrain(scores.reshape(batch, parts, -1), "scores", ("batch", "documents", None), rules)
  best, index = jax.lax.top_k(own, min(k, own.shape[-1]))
  index = index + (jnp.arange(parts, dtype=index.dtype) * own.shape[-1])[None, :, None]
  best, place = jax.lax.top_k(best.reshape(batch, -1), k)  # parts stand in order: so do equal scores
  return jnp.take_along_axis(index.reshape(batch, -1), place, axis=-1), best


def pad_documents(
  codes: Int[np.ndarray, "N L"], scored: Bool[np.ndarray, "N L"], multiple: int, mask_id: int
) -> tuple[Int[np.ndarray, "M L"], Bool[np.ndarray, "M L"]]:
  """Adds documents that hold MASK, and so score -inf, until a mesh divides their number."""
  more = ((0, -len(codes) % multiple), (0, 0))
  return np.pad(codes, more, constant_values=mask_id), np.pad(scored, more, constant_values=True)


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
  if isinstance(denoise, CodeDenoiser):  # which may need the prompt alone
    logits = denoise.all_masked(params, prompt, length)
  else:
    logits = denoise(params, prompt, jnp.full((prompt.shape[0], length), mask_id, jnp.int32))
  return log_probabilities(logits, banned.at[mask_id].set(True))


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "rules"))
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
  rules: Rules = (),
) -> Float[Array, "B N"]:
  """Scores every document for each prompt with one forward pass; arguments as in `one_pass_retrieve`."""
  log_probs = one_pass_log_probs(params, prompt, banned, denoise=denoise, mask_id=mask_id, length=codes.shape[1])
  if log_prior is not None:
    log_probs = log_probs - log_prior[None]
  return score_documents(log_probs, codes, scored, rules=rules)


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "k", "rules"))
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
  rules: Rules = (),
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
    rules: on a mesh, where the documents lie; it must divide them (`pad_documents`).

  Returns:
    Row indices into `codes` and their scores in nats, best first.

  Raises:
    ValueError: k outside 1..N.
  """
  how = dict(denoise=denoise, mask_id=mask_id, rules=rules)
  return top_documents(one_pass_scores(params, prompt, codes, scored, banned, log_prior, **how), k, rules)
