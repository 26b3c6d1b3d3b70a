"""Chain-rule rescoring: the best documents of one pass, each scored again with its own tokens filled in step by step.

    positions 0..3 in S = 2 groups, for a document with the DocID 4 1 9 7:

    M M M M      log p(4 at 0) + log p(1 at 1)        group 0, from the one pass
    4 1 M M    + log p(9 at 2) + log p(7 at 3)        group 1, given group 0

The score of a document is the sum over the groups, LEFT TO RIGHT, of the log-probabilities of the group's tokens given
the tokens of all earlier groups, the rest masked. A masked-diffusion model gives each order of positions its own value;
this one is fixed: position l of L belongs to group l S // L. S = L, a token at a time, is a chain rule without an
assumption of independence; S = 1 is the one-pass score. Only the positions of a DocID that count are summed. The prior
correction, where there is one, is that of one-pass scoring, token by token, whatever the group.

It costs 1 + k (S - 1) canvases for k candidates, less what lies behind the end of short DocIDs. Documents below the k
candidates keep their order behind them. Source: arXiv 2610.08716, which rescores the best 20 and finds that it helps
block diffusion on residual codes and hurts masked diffusion on product codes.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.decoding.ranked import Ranked
from diffgr_jax.decoding.scoring import one_pass_log_probs, score_documents, top_documents


def rescore_by_chain(
  params: Params,
  prompt: Int[Array, "B P"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  banned: Bool[Array, "V"],
  log_prior: Float[Array, "L V"] | None = None,
  *,
  denoise: Denoiser,
  mask_id: int,
  candidates: int,
  steps: int = 0,
  k: int,
) -> Ranked:
  """Ranks documents by one pass, and the best of them again by the chain rule.

  Args:
    params: the model's parameters.
    prompt: the queries.
    codes: the DocID index.
    scored: the positions of a DocID that count.
    banned: tokens that are never produced.
    log_prior: subtracted from the log-probabilities (scoring.py), or None.
    denoise: the model; pass the same function object each time, another one compiles anew.
    mask_id: the id of MASK.
    candidates: documents that are rescored.
    steps: S, groups of positions; 0: one a position.
    k: documents to return, the candidates among them.

  Returns:
    The candidates by falling chain-rule score, and behind them the next documents with their one-pass scores, which
    compare only with each other.

  Raises:
    ValueError: k outside 1..N, candidates outside 1..k, or steps outside 0..L.
  """
  documents, length = codes.shape
  for name, value, low, high, what in (
    ("k", k, 1, documents, "the number of documents"),
    ("candidates", candidates, 1, k, "k"),
    ("steps", steps, 0, length, "the positions of a canvas"),
  ):
    if not low <= value <= high:
      raise ValueError(f"{name} is {value}; it must be in {low}..{high} ({what})")
  how = dict(denoise=denoise, mask_id=mask_id, candidates=candidates, steps=steps or length, k=k)
  return _rescore(params, prompt, codes, scored, banned, log_prior, **how)


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "candidates", "steps", "k"))
def _rescore(params, prompt, codes, scored, banned, log_prior, *, denoise, mask_id, candidates, steps, k) -> Ranked:
  length = codes.shape[1]
  group = jnp.arange(length) * steps // length
  log_probs = one_pass_log_probs(params, prompt, banned, denoise=denoise, mask_id=mask_id, length=length)
  banned = banned.at[mask_id].set(True)

  def evidence(log_probs, tokens):
    own = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    return own if log_prior is None else own - log_prior[jnp.arange(length)[None], tokens]

  def chain(candidate):  # one document a query
    tokens, counts = candidate
    last = jnp.where(counts, group[None], 0).max(axis=-1)  # later groups hold nothing that counts

    def add(step, total):
      shown = jnp.where(group[None] < step, tokens, mask_id)
      gained = evidence(log_probabilities(denoise(params, prompt, shown), banned), tokens)
      return total + jnp.where(counts & (group[None] == step), gained, 0.0).sum(axis=-1)

    start = jnp.where(counts & (group[None] == 0), evidence(log_probs, tokens), 0.0).sum(axis=-1)
    return jax.lax.fori_loop(1, last.max() + 1, add, start), last

  values = log_probs if log_prior is None else log_probs - log_prior[None]
  document, score = top_documents(score_documents(values, codes, scored), k)
  found = document[:, :candidates]
  rescored, last = jax.lax.map(chain, (codes[found.T], scored[found.T]))
  best, order = jax.lax.top_k(rescored.T, candidates)
  return Ranked(
    document=document.at[:, :candidates].set(jnp.take_along_axis(found, order, axis=-1)),
    score=score.at[:, :candidates].set(best),
    forwards=1 + last.max(axis=0),
    canvases=1 + last.sum(axis=0),
  )
