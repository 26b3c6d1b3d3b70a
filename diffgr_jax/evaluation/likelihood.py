"""Monte-Carlo estimates of -log p(x_0 | prompt) under a masked diffusion model.

The likelihood of a masked diffusion model has no closed form, but the training bound can be averaged over draws of the
forward process: mask some of the answer, ask the model for the masked tokens, weigh.

    chunk 0:  sample 0  x_t = M a M b   weight * sum of -log p(masked tokens)  \
              sample 1  x_t = x M M b   ...                                    /  chunk mean   \
    chunk 1:  ...                                                                 chunk mean   /  mean, standard error

`random_time` gives the negative ELBO of the diffusion model; `exact_count` estimates the same quantity with less noise.
It is the expected -log p(x_0) over all orders in which the tokens could be generated one at a time, hence it IS
-log p(x_0) when the model's conditionals come from one joint distribution, and an upper bound otherwise.

Within a chunk a row's samples have times that are spread evenly (antithetic), so they are not independent; the chunks
are, and the standard error is that of the chunk means.

Sources: MDLM, arXiv 2406.07524; md4, arXiv 2406.04329; LLaDA, arXiv 2502.09992 (equation 14, exact count).
"""

from dataclasses import dataclass
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.denoiser import Denoiser, Params
from diffgr_jax.diffusion.corruption import Process, sample_times
from diffgr_jax.diffusion.cross_entropy import token_nll


@dataclass(frozen=True)
class NllEstimate:
  """Estimates per row, in nats (of the whole answer, not per token)."""

  mean: Float[np.ndarray, "B"]
  standard_error: Float[np.ndarray, "B"]
  samples: int  # per row: the number of forward passes that a row took part in


def estimate_nll(
  params: Params,
  prompt: Int[Array, "B P"],
  x0: Int[Array, "B L"],
  target: Bool[Array, "B L"],
  key: Key[Array, ""],
  *,
  denoise: Denoiser,
  process: Process,
  mask_id: int,
  banned: Bool[Array, "V"],
  samples: int,
  chunk: int,
) -> NllEstimate:
  """Estimates -log p(x0 at the target positions | prompt) of every row.

  Row i's estimate does not depend on the other rows. Calls of one shape compile once.

  Args:
    params: the model's parameters.
    prompt: token ids of the prompts, padded on the left.
    x0: the answers.
    target: the answer's positions that count: masked in the draws, and summed.
    key: the randomness.
    denoise: gives the logits at the canvas positions; called with B * chunk rows at a time.
    process: a forward process that is a bound (`make_process('exact_count')`, or 'random_time' with any schedule).
    mask_id: the id of MASK.
    banned: vocabulary rows that are never an answer (padding rows, MASK); left out of the softmax.
    samples: draws per row; a multiple of chunk.
    chunk: draws per row and forward pass; at least two chunks are needed for a standard error.

  Raises:
    ValueError: the process is not a bound, samples is not at least two whole chunks, or an answer holds a banned token.
  """
  if not process.is_bound:
    raise ValueError(f"{process} is not a bound of the likelihood; use 'exact_count' or 'random_time'")
  if chunk < 1 or samples % chunk or samples < 2 * chunk:
    raise ValueError(f"samples is at least two times chunk and a multiple of it, not {samples} with chunk {chunk}")
  impossible = np.flatnonzero((np.asarray(target) & np.asarray(banned)[np.asarray(x0)]).any(axis=1))
  if impossible.size:
    raise ValueError(f"row {impossible[0]} of x0 holds a banned token at a target position; its likelihood is zero")
  chunk_means = np.asarray(
    _chunk_means(
      params,
      prompt,
      x0,
      target,
      jax.random.split(key, samples // chunk),
      banned,
      denoise=denoise,
      process=process,
      mask_id=mask_id,
      chunk=chunk,
    ),
    np.float64,
  )
  spread = chunk_means.std(axis=0, ddof=1)
  return NllEstimate(chunk_means.mean(axis=0), spread / np.sqrt(len(chunk_means)), samples)


@functools.partial(jax.jit, static_argnames=("denoise", "process", "mask_id", "chunk"))
def _chunk_means(params, prompt, x0, target, keys, banned, *, denoise, process, mask_id, chunk):
  """Float[C B]: the mean over `chunk` draws of each row's weighted loss, for each of C independent keys."""
  rows = x0.shape[0]
  # Row b's draws stand together, at b * chunk + s: what a row draws is then the same in any batch.
  prompt, x0, target = (jnp.repeat(x, chunk, axis=0) for x in (prompt, x0, target))

  def one_chunk(key):
    time_key, process_key = jax.random.split(key)
    row_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(time_key, jnp.arange(rows))
    t = jax.vmap(lambda row_key: sample_times(row_key, chunk))(row_keys).reshape(-1)
    drawn = process.corrupt(process_key, x0, t, mask_id=mask_id, target=target)
    logits = denoise(params, prompt, drawn.x_t)
    nll = token_nll(jnp.where(banned[None, None, :], -jnp.inf, logits), x0)
    loss = jnp.where(drawn.corrupted, drawn.weight * nll, 0.0).sum(axis=-1)
    return loss.reshape(rows, chunk).mean(axis=1)

  return jax.lax.map(one_chunk, keys)
