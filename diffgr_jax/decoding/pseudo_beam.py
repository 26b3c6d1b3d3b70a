"""Pseudo beam search: W canvases a query that begin differently, each denoised under the constraint, then ranked.

    M M M M       one pass; the policy takes position 2 first, where existing documents have, by falling probability,
                  the tokens 7, 3 and 9
    M M 7 M       canvas 0 commits the 1st of them, and what else the first step commits
    M M 3 M       canvas 1 the 2nd
    M M 9 M       canvas 2 the 3rd; each then takes its T - 1 further steps by itself

Every canvas ends as a DocID that exists (constraint.py). The distinct documents are ranked by their one-pass score,
which the first pass gave: how a canvas was reached does not enter. It costs 1 + W (T - 1) canvases at most; canvases
that are finished earlier, and those for which position 2 has no further token, cost less.

DiffuGR (arXiv 2511.08150) decodes so for robustness; the digest of it that could be read does not say how its canvases
begin and are ranked: this definition is ours. W = 1 is constrained T-step decoding.
"""

from dataclasses import replace
import functools

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.canvas import DecodeOptions, check_inputs, commit_step, finish, init_state, step_keys
from diffgr_jax.decoding.constraint import first_choices
from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.decoding.ranked import Ranked, order_found
from diffgr_jax.decoding.scoring import score_documents


def pseudo_beam(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  codes: Int[ArrayLike, "N L"],
  scored: Bool[ArrayLike, "N L"],
  banned: Bool[ArrayLike, "V"],
  log_prior: Float[ArrayLike, "L V"] | None = None,
  *,
  denoise: Denoiser,
  options: DecodeOptions,
  steps: int,
  width: int,
  rows: Int[ArrayLike, "U"] | None = None,
) -> Ranked:
  """Finds up to `width` distinct documents for each prompt.

  Args:
    params: the model's parameters.
    prompt: the queries.
    row_seeds: one a query, for the random policy.
    codes: the DocID index.
    scored: the positions of a DocID that count in the score.
    banned: tokens that are never produced.
    log_prior: subtracted from the log-probabilities in the score (scoring.py), or None.
    denoise: the model; pass the same function object each time, another one compiles anew.
    options: how each canvas is denoised; no blocks.
    steps: T, the first pass included.
    width: W, the canvases of a query.
    rows: `constraint.used_rows(codes)`, or None.

  Returns:
    Documents by falling score; of several with one DocID the first.

  Raises:
    ValueError: a width below 1, or what `decode_canvas` refuses of a constrained decode.
  """
  if width < 1:
    raise ValueError(f"width is {width}; a pseudo beam has 1 canvas or more")
  codes = jnp.asarray(codes, jnp.int32)
  prompt = jnp.asarray(prompt, jnp.int32)
  canvas = jnp.full((len(prompt), codes.shape[1]), options.mask_id, jnp.int32)
  inputs = check_inputs(prompt, canvas, row_seeds, banned, codes, steps, (0.0, 0, 1.0), options)
  scored, log_prior = jnp.asarray(scored, bool), None if log_prior is None else jnp.asarray(log_prior)
  rows = None if rows is None else jnp.asarray(rows, jnp.int32)
  return _search(params, *inputs, scored, log_prior, rows, denoise=denoise, options=options, width=width)


@functools.partial(jax.jit, static_argnames=("denoise", "options", "width"))
def _search(
  params, prompt, canvas, row_seeds, banned, codes, steps, sampling, scored, log_prior, rows, *, denoise, options, width
) -> Ranked:
  banned = banned.at[options.mask_id].set(True)
  logits = denoise(params, prompt, canvas)
  log_probs = log_probabilities(logits, banned)
  scores = score_documents(log_probs if log_prior is None else log_probs - log_prior[None], codes, scored)

  state = init_state(canvas, row_seeds, banned, codes, options.mask_id)
  what = dict(codes=codes, width=width, rows=rows)
  assert state.alive is not None  # there are codes
  place, tokens, there = first_choices(log_probs, state.alive, step_keys(state)[0], options.policy, **what)

  def widen(x):  # from here on W rows a query
    return jnp.repeat(x, width, axis=0) if x.ndim else x

  state, used = jax.tree.map(widen, state), there.reshape(-1)
  state = replace(state, canvas=jnp.where(used[:, None], state.canvas, codes[:1]))  # without a MASK it costs nothing
  first = (widen(place), tokens.reshape(-1))
  how = dict(options=options, rows=rows)
  state, _ = commit_step(state, widen(logits), banned, codes, steps, sampling, first=first, **how)
  state = finish(params, widen(prompt), state, banned, codes, steps, sampling, rows, denoise=denoise, options=options)

  assert state.alive is not None
  found = jnp.where(used & state.alive.any(axis=-1), jnp.argmax(state.alive, axis=-1), -1).reshape(there.shape)
  document, score = order_found(found, jnp.take_along_axis(scores, jnp.maximum(found, 0), axis=-1))
  further = jnp.maximum(state.step_map.max(axis=-1), 0).reshape(there.shape)  # passes after the one that all share
  return Ranked(document, score, 1 + further.max(axis=-1), 1 + further.sum(axis=-1))
