"""Generated codes that need not exist, matched to documents that do: generate and match, and best of n.

    generated  4 1 9 E P      mismatches       E: EOS, P: PAD
    d0         4 1 8 E P      1                the count of positions that differ; all that stands behind a generated
    d1         4 1 E P P      2                EOS reads as PAD, so that 0 is the DocID itself, and a DocID of another
    d2         7 2 8 E P      3                length differs by what is missing

    nearest 2                 d0 d1            ties in the count go by the one-pass score
    ranked by                 the one-pass score of each (scoring.py)

Generate and match takes one code, the most likely token of every position of the all-masked canvas: 1 canvas. Best of n
draws n codes by T-step decoding at a temperature, without the constraint; the nearest documents of all of them are one
pool: 1 + n (T - 1) canvases, since all draws share the first pass. Both rank the pool by the one-pass score and nothing
else: what they add to one-pass scoring is what they leave out. With a pool of all documents they are one-pass scoring.

Source: arXiv 2610.08716 (nearest 100 codes; 8 samples), as far as its digest says; how its ties go, and that every
sample brings its own nearest documents, is our choice.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.canvas import DecodeOptions, check_inputs, commit_step, finish, forwards_per_row, init_state
from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.decoding.ranked import Ranked
from diffgr_jax.decoding.scoring import one_pass_log_probs, score_documents


def mismatch_counts(canvas: Int[Array, "B L"], codes: Int[Array, "N L"], eos_id: int, pad_id: int) -> Int[Array, "B N"]:
  """Counts the positions at which each document's DocID differs from a canvas.

  Args:
    canvas: generated tokens.
    codes: the DocID index: tokens, EOS, PAD.
    eos_id: ends a DocID; -1 where DocIDs have no end (learned codes).
    pad_id: fills what is behind it.
  """
  ended = jnp.cumsum(canvas == eos_id, axis=-1) - (canvas == eos_id) > 0
  canvas = jnp.where(ended, pad_id, canvas)

  def add(level, count):
    return count + (canvas[:, level][:, None] != codes[:, level][None])

  return jax.lax.fori_loop(0, canvas.shape[1], add, jnp.zeros((len(canvas), len(codes)), jnp.int32))


def nearest_documents(
  mismatches: Int[Array, "B N"], scores: Float[Array, "B N"], count: int
) -> Int[Array, "B {count}"]:
  """Picks the documents of fewest mismatches; where several have the last count that fits, those of highest score.

  The order of the result says nothing.
  """
  edge = -jax.lax.top_k(-mismatches.astype(jnp.float32), count)[0][:, -1:]
  at_edge = jnp.where(mismatches == edge, _above_nothing(scores), -jnp.inf)
  return jax.lax.top_k(jnp.where(mismatches < edge, jnp.inf, at_edge), count)[1]


def generate_and_match(
  params: Params,
  prompt: Int[Array, "B P"],
  codes: Int[Array, "N L"],
  scored: Bool[Array, "N L"],
  banned: Bool[Array, "V"],
  log_prior: Float[Array, "L V"] | None = None,
  *,
  denoise: Denoiser,
  mask_id: int,
  eos_id: int,
  pad_id: int,
  pool: int,
) -> Ranked:
  """Ranks the `pool` documents that are nearest to the most likely token of every position.

  Args:
    params: the model's parameters.
    prompt: the queries.
    codes: the DocID index.
    scored: the positions of a DocID that count in the score.
    banned: tokens that are never produced.
    log_prior: subtracted from the log-probabilities in the score (scoring.py), or None.
    denoise: the model; pass the same function object each time, another one compiles anew.
    mask_id: the id of MASK.
    eos_id, pad_id: of the index.
    pool: documents to match, and to return.

  Raises:
    ValueError: a pool outside 1..N.
  """
  _check_pool("pool", pool, len(codes))
  how = dict(denoise=denoise, mask_id=mask_id, eos_id=eos_id, pad_id=pad_id, pool=pool)
  return _match(params, prompt, codes, scored, banned, log_prior, **how)


@functools.partial(jax.jit, static_argnames=("denoise", "mask_id", "eos_id", "pad_id", "pool"))
def _match(params, prompt, codes, scored, banned, log_prior, *, denoise, mask_id, eos_id, pad_id, pool) -> Ranked:
  log_probs = one_pass_log_probs(params, prompt, banned, denoise=denoise, mask_id=mask_id, length=codes.shape[1])
  scores = score_documents(log_probs if log_prior is None else log_probs - log_prior[None], codes, scored)
  code = jnp.argmax(log_probs, axis=-1).astype(jnp.int32)
  near = nearest_documents(mismatch_counts(code, codes, eos_id, pad_id), scores, pool)
  one = jnp.ones(len(prompt), jnp.int32)
  return Ranked(*_rank_pool(_mark(jnp.zeros(scores.shape, bool), near), scores, pool), one, one)


def best_of_n(
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
  temperature: float,
  samples: int,
  pool: int,
  eos_id: int,
  pad_id: int,
  k: int,
) -> Ranked:
  """Ranks the documents that are nearest to any of several sampled codes.

  Args:
    params: the model's parameters.
    prompt: the queries.
    row_seeds: one a query. Sample i of the row with seed s is what `decode_canvas` draws with the seed
      s * samples + i: let the seeds of a batch differ.
    codes, scored, banned, log_prior, denoise, eos_id, pad_id: as in `generate_and_match`.
    options: how a sample is denoised.
    steps: T.
    temperature: of the samples; 0: all of them are the most likely tokens.
    samples: n.
    pool: documents that each sample is matched to.
    k: documents to return; a pool of fewer leaves -1 behind them.

  Raises:
    ValueError: a pool or k outside 1..N, no sample, or what `decode_canvas` refuses.
  """
  codes = jnp.asarray(codes, jnp.int32)
  for name, value in (("pool", pool), ("k", k)):
    _check_pool(name, value, len(codes))
  if samples < 1:
    raise ValueError(f"samples is {samples}; it must be 1 or more")
  prompt = jnp.asarray(prompt, jnp.int32)
  canvas = jnp.full((len(prompt), codes.shape[1]), options.mask_id, jnp.int32)
  prompt, canvas, row_seeds, banned, _, steps_, sampling = check_inputs(
    prompt, canvas, row_seeds, banned, None, steps, (temperature, 0, 1.0), options
  )
  index = codes, jnp.asarray(scored, bool), banned, None if log_prior is None else jnp.asarray(log_prior)
  how = dict(denoise=denoise, options=options, samples=samples, pool=pool, eos_id=eos_id, pad_id=pad_id, k=k)
  return _sample(params, prompt, canvas, row_seeds, *index, steps_, sampling, **how)


@functools.partial(jax.jit, static_argnames=("denoise", "options", "samples", "pool", "eos_id", "pad_id", "k"))
def _sample(
  params, prompt, canvas, row_seeds, codes, scored, banned, log_prior, steps, sampling,
  *, denoise, options, samples, pool, eos_id, pad_id, k,
) -> Ranked:  # fmt: skip
  logits = denoise(params, prompt, canvas)
  log_probs = log_probabilities(logits, banned.at[options.mask_id].set(True))
  scores = score_documents(log_probs if log_prior is None else log_probs - log_prior[None], codes, scored)

  def draw(carry, sample):  # one sample after the other: memory holds one canvas a query
    pooled, forwards, canvases = carry
    state = init_state(canvas, row_seeds * samples + sample, banned, None, options.mask_id)
    state, _ = commit_step(state, logits, banned, None, steps, sampling, options=options)
    state = finish(params, prompt, state, banned, None, steps, sampling, denoise=denoise, options=options)
    near = nearest_documents(mismatch_counts(state.canvas, codes, eos_id, pad_id), scores, pool)
    spent = forwards_per_row(state)
    return (_mark(pooled, near), jnp.maximum(forwards, spent), canvases + spent - 1), None

  one = jnp.ones(len(prompt), jnp.int32)
  start = (jnp.zeros(scores.shape, bool), one, one)
  (pooled, forwards, canvases), _ = jax.lax.scan(draw, start, jnp.arange(samples, dtype=row_seeds.dtype))
  return Ranked(*_rank_pool(pooled, scores, k), forwards, canvases)


def _mark(pooled: Bool[Array, "B N"], near: Int[Array, "B M"]) -> Bool[Array, "B N"]:
  return pooled.at[jnp.arange(len(near))[:, None], near].set(True)


def _rank_pool(
  pooled: Bool[Array, "B N"], scores: Float[Array, "B N"], k: int
) -> tuple[Int[Array, "B k"], Float[Array, "B k"]]:
  """The k best documents of the pool, -1 behind them where it has fewer."""
  best, document = jax.lax.top_k(jnp.where(pooled, _above_nothing(scores), -jnp.inf), k)
  found = best > -jnp.inf
  score = jnp.take_along_axis(scores, document, axis=-1)
  return jnp.where(found, document, -1), jnp.where(found, score, -jnp.inf)


def _above_nothing(scores: Float[Array, "B N"]) -> Float[Array, "B N"]:
  """A document of probability 0 (-inf) stands above those that are left out."""
  return jnp.maximum(scores, jnp.finfo(scores.dtype).min)


def _check_pool(name: str, value: int, documents: int) -> None:
  if not 1 <= value <= documents:
    raise ValueError(f"{name} is {value}; it must be in 1..{documents} (the number of documents)")
