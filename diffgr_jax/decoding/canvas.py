"""Denoises a canvas in T steps: ask the model, let a policy choose the positions to commit, repeat.

    canvas      M  M  M  M      step 0: the model sees the prompt and this
    commit      .  x  .  .      the policy's choice, with the model's token
    canvas      M  7  M  M      step 1
    commit      x  .  .  x
    canvas      2  7  M  5      and so on until no MASK is left
    step map    1  0 -1  1      when each position was committed

One jitted step serves the `lax.while_loop` decoder and its step-by-step twin. A row reads its own canvas, its own key
and the step number only, so it decodes to the same tokens in any batch. The last step of the budget commits all that
is left, so a canvas is always finished within T steps.

Remasking. After a step, up to `remask` doubtful tokens of EARLIER steps go back to MASK, and the step commits one more
position for each of them (remasking.py): decoding ends as early as without.

Semi-autoregressive blocks. With `block_length`, a row commits only inside the leftmost block of that length which has
MASKs, and each block has an equal share of the steps. The block is a schedule, not an attention pattern: every pass
sees the whole canvas (LLaDA, arXiv 2502.09992).

Nothing is forced after EOS: every position of a DocID canvas is a target, PAD included, and the model fills them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from diffgr_jax.decoding.constraint import commit_in_turn, possible_documents
from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities, probability_of
from diffgr_jax.decoding.policies import Budget, Policy, Stats, commit_together, position_stats, rank_positions
from diffgr_jax.decoding.remasking import check_remasking, standing_confidence
from diffgr_jax.decoding.sampling import Sampling, draw_tokens, make_sampling, token_scores
from diffgr_jax.decoding.schedules import EVEN, Schedule


@dataclass(frozen=True)
class DecodeOptions:
  """What is fixed when the decoder is compiled."""

  policy: Policy
  mask_id: int
  remask: int = 0  # tokens taken back to MASK after a step, at most
  max_reopen: int = 1  # times that one position may be taken back
  remask_by: str = "commit"  # commit: its probability when it was committed | current: what the model gives it now
  finish_when_unique: bool = True  # constrained: once one DocID is left, commit the rest of it and reopen nothing
  schedule: Schedule = EVEN
  block_length: int = 0  # commit only inside the leftmost block of this length that has MASKs; 0: anywhere

  def __post_init__(self):
    if not isinstance(self.policy, Policy):
      raise ValueError(
        f"DecodeOptions.policy is {self.policy!r}; it must have the methods priority and takes (see policies.py)"
      )
    check_remasking("DecodeOptions", self.remask, self.max_reopen, self.remask_by)
    if self.block_length < 0:
      raise ValueError(f"DecodeOptions.block_length is {self.block_length}; it must be 0 (no blocks) or more")


@struct.dataclass
class DecodeState:
  """What one denoising step carries to the next."""

  canvas: Int[Array, "B L"]
  step_map: Int[Array, "B L"]  # step at which a position was committed; -1: given, or not yet
  confidence: Float[Array, "B L"]  # probability of the token when it was committed; given: 1, not yet: 0
  reopened: Int[Array, "B L"]  # how often a position went back to MASK
  step: Int[Array, ""]  # forward passes so far
  alive: Bool[Array, "B N"] | None  # documents that the canvas can still become; None: not constrained
  row_keys: Key[Array, "B"]
  block: Int[Array, "B"]  # the block that each row worked on last; -1: none yet
  block_step: Int[Array, "B"]  # steps it has spent there
  block_masks: Int[Array, "B"]  # MASKs that the block began with


def init_state(
  canvas: Int[Array, "B L"],
  row_seeds: Int[Array, "B"],
  banned: Bool[Array, "V"],
  codes: Int[Array, "N L"] | None,
  mask_id: int,
) -> DecodeState:
  """Builds the state before the first step."""
  return DecodeState(
    canvas=canvas,
    step_map=jnp.full_like(canvas, -1),
    confidence=(canvas != mask_id).astype(jnp.float32),
    reopened=jnp.zeros_like(canvas),
    step=jnp.int32(0),
    alive=None if codes is None else possible_documents(canvas, codes, banned, mask_id),
    row_keys=jax.vmap(jax.random.key)(row_seeds),
    block=jnp.full(canvas.shape[0], -1, jnp.int32),
    block_step=jnp.zeros(canvas.shape[0], jnp.int32),
    block_masks=jnp.zeros(canvas.shape[0], jnp.int32),
  )


def unfinished_rows(state: DecodeState, mask_id: int) -> Bool[Array, "B"]:
  """Finds the rows with a MASK to fill. A constrained row that no document agrees with cannot be filled."""
  masked = (state.canvas == mask_id).any(axis=-1)
  return masked if state.alive is None else masked & state.alive.any(axis=-1)


def forwards_per_row(state: DecodeState) -> Int[Array, "B"]:
  """Counts the forward passes that each row needed (the batch runs until its slowest row is done)."""
  return state.step_map.max(axis=-1) + 1


@functools.partial(jax.jit, static_argnames=("denoise", "options"))
def denoise_step(
  params: Params,
  prompt: Int[Array, "B P"],
  state: DecodeState,
  banned: Bool[Array, "V"],
  codes: Int[Array, "N L"] | None,
  steps: Int[Array, ""],
  sampling: Sampling,
  *,
  denoise: Denoiser,
  options: DecodeOptions,
  rows: Int[Array, "U"] | None = None,
) -> tuple[DecodeState, Stats]:
  """Runs one forward pass and the commitments that follow from it. Finished rows stay as they are.

  Args:
    params: the model's parameters.
    prompt: the tokens that the model reads beside the canvas.
    state: where decoding stands.
    banned: tokens that are never produced; MASK is one of them in any case.
    codes: the DocID index, to constrain decoding to it, or None.
    steps: the whole budget T, in forward passes; `state.step` of them are spent.
    sampling: temperature, top-k and top-p.
    denoise: the model.
    options: the rest.
    rows: `constraint.used_rows` of the codes, or None.

  Returns:
    The next state, and the statistics that the policy saw at the start of this step.
  """
  logits = denoise(params, prompt, state.canvas)
  return commit_step(state, logits, banned, codes, steps, sampling, options=options, rows=rows)


def commit_step(
  state: DecodeState,
  logits: Float[Array, "B L V"],
  banned: Bool[Array, "V"],
  codes: Int[Array, "N L"] | None,
  steps: Int[Array, ""],
  sampling: Sampling,
  *,
  options: DecodeOptions,
  rows: Int[Array, "U"] | None = None,
  first: tuple[Int[Array, "B"], Int[Array, "B"]] | None = None,
) -> tuple[DecodeState, Stats]:
  """Runs what follows the forward pass of a step: the choice of tokens, the policy's choice, remasking.

  `first`, for constrained decoding, is the place and the token of the first commitment (`constraint.first_choices`).
  """
  masked = state.canvas == options.mask_id
  banned = banned.at[options.mask_id].set(True)
  log_probs = log_probabilities(logits, banned)
  place_keys, token_keys = step_keys(state)

  state, here, block_steps = enter_block(state, masked, steps, options.block_length)
  masked = masked & here
  masked_count = masked.sum(axis=-1)
  now = probability_of(log_probs, state.canvas)
  standing, doubtful = standing_confidence(now, state.confidence, options.remask_by)
  reopenable = (state.step_map >= 0) & ~masked & (state.reopened < options.max_reopen) & here & doubtful
  budget = Budget(
    quota=options.schedule.quota(masked_count, state.block_masks, state.block_step, block_steps),
    floor=jnp.where(block_steps - state.block_step <= 1, masked_count, 0),
    spare=jnp.minimum(options.remask, reopenable.sum(axis=-1)),
  )
  if codes is None or state.alive is None:
    tokens = draw_tokens(logits, banned, sampling, token_keys)
    stats, confidence = position_stats(log_probs), probability_of(log_probs, tokens)
    commits = commit_together(stats, tokens, confidence, masked, place_keys, budget, options.policy)
    alive = None
  else:
    commits, alive, stats = commit_in_turn(
      log_probs,
      token_scores(log_probs, sampling, token_keys),
      state.canvas,
      state.alive,
      place_keys,
      budget,
      options.policy,
      codes=codes,
      mask_id=options.mask_id,
      finish_when_unique=options.finish_when_unique,
      rows=rows,
      first=first,
    )

  state = replace(
    state,
    canvas=jnp.where(commits.chosen, commits.tokens, state.canvas),
    step_map=jnp.where(commits.chosen, state.step, state.step_map),
    confidence=jnp.where(commits.chosen, commits.confidence, state.confidence),
    step=state.step + 1,
    block_step=state.block_step + 1,
    alive=alive,
  )
  if options.remask:
    weakest_first = rank_positions(-standing, among=reopenable)
    state = _reopen(state, reopenable & (weakest_first < commits.extra[:, None]), options.mask_id)
    if codes is not None:
      state = replace(state, alive=possible_documents(state.canvas, codes, banned, options.mask_id))
  return state, stats


def decode_canvas(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  canvas: Int[ArrayLike, "B L"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  denoise: Denoiser,
  options: DecodeOptions,
  steps: int | Int[ArrayLike, ""],
  temperature: float | Float[ArrayLike, ""] = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  codes: Int[ArrayLike, "N L"] | None = None,
  rows: Int[ArrayLike, "U"] | None = None,
) -> DecodeState:
  """Denoises until no row has a MASK, in at most `steps` forward passes, without leaving the device.

  Args:
    params: the model's parameters.
    prompt: the tokens that the model reads beside the canvas.
    canvas: token ids, MASK where a token is to be generated; other positions are given and stay.
    row_seeds: one seed a row, for the random policy and for sampling; a row's draws depend on its seed alone.
    banned: tokens that are never produced (`denoiser.banned_tokens` builds it).
    denoise: the model; pass the same function object each time, another one compiles anew.
    options: policy, MASK, remasking.
    steps: the budget T in forward passes; another T compiles nothing anew. Rows may finish earlier.
    temperature: 0 takes the most likely token; above 0 samples from the model's distribution at that temperature.
    top_k, top_p: what sampling is cut to (`sampling.py`); 0 and 1 cut nothing.
    codes: the DocID index; when given, every canvas ends as one of its rows. A row whose given positions agree with no
      document keeps its MASKs, and has no document alive.
    rows: `constraint.used_rows(codes)`: the same DocIDs, without statistics over the tokens that none of them holds.

  Returns:
    The last state; `step` is the number of forward passes spent on the batch.

  Raises:
    ValueError: shapes that do not fit, fewer than one step, steps that the blocks do not divide, a temperature below 0,
      or a constraint with blocks or a policy that cannot serve it.
  """
  inputs = check_inputs(prompt, canvas, row_seeds, banned, codes, steps, (temperature, top_k, top_p), options)
  return _decode_loop(params, *inputs, None if rows is None else jnp.asarray(rows), denoise=denoise, options=options)


def decode_canvas_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  canvas: Int[ArrayLike, "B L"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  denoise: Denoiser,
  options: DecodeOptions,
  steps: int,
  temperature: float = 0.0,
  top_k: int = 0,
  top_p: float = 1.0,
  codes: Int[ArrayLike, "N L"] | None = None,
  rows: Int[ArrayLike, "U"] | None = None,
) -> Iterator[tuple[DecodeState, Stats | None]]:
  """The same decoder, one Python step at a time, for notebooks, streaming and traces.

  Takes what `decode_canvas` takes and commits the same tokens at the same steps.

  Yields:
    The state before the first step (with None), then every state with the statistics that led to it.
  """
  prompt, canvas, row_seeds, banned, codes, budget, sampling = check_inputs(
    prompt, canvas, row_seeds, banned, codes, steps, (temperature, top_k, top_p), options
  )
  state = init_state(canvas, row_seeds, banned, codes, options.mask_id)
  yield state, None
  rows = None if rows is None else jnp.asarray(rows)
  step = functools.partial(denoise_step, denoise=denoise, options=options, rows=rows)
  while int(state.step) < steps and bool(unfinished_rows(state, options.mask_id).any()):
    state, stats = step(params, prompt, state, banned, codes, budget, sampling)
    yield state, stats


@functools.partial(jax.jit, static_argnames=("denoise", "options"))
def _decode_loop(
  params, prompt, canvas, row_seeds, banned, codes, steps, sampling, rows, *, denoise, options
) -> DecodeState:
  state = init_state(canvas, row_seeds, banned, codes, options.mask_id)
  return finish(params, prompt, state, banned, codes, steps, sampling, rows, denoise=denoise, options=options)


def finish(
  params: Params,
  prompt: Int[Array, "B P"],
  state: DecodeState,
  banned: Bool[Array, "V"],
  codes: Int[Array, "N L"] | None,
  steps: Int[Array, ""],
  sampling: Sampling,
  rows: Int[Array, "U"] | None = None,
  *,
  denoise: Denoiser,
  options: DecodeOptions,
) -> DecodeState:
  """Runs step after step from a state on, until no row has a MASK or the budget is spent; see `denoise_step`."""

  def more(state: DecodeState) -> Bool[Array, ""]:
    return (state.step < steps) & unfinished_rows(state, options.mask_id).any()

  def body(state: DecodeState) -> DecodeState:
    how = dict(denoise=denoise, options=options, rows=rows)
    return denoise_step(params, prompt, state, banned, codes, steps, sampling, **how)[0]

  return jax.lax.while_loop(more, body, state)


def step_keys(state: DecodeState) -> tuple[Key[Array, "B"], Key[Array, "B"]]:
  """Derives each row's two keys of this step (where, what) from its own key and the step number."""
  keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, state.step)))(state.row_keys)
  return keys[:, 0], keys[:, 1]


def enter_block(
  state: DecodeState, masked: Bool[Array, "B L"], steps: Int[Array, ""], block_length: int
) -> tuple[DecodeState, Bool[Array, "B L"], Int[Array, ""]]:
  """Finds each row's block: the state with its counters, the positions of the block, and the steps that it may take."""
  length = masked.shape[1]
  size = block_length or length
  of_position = jnp.arange(length)[None] // size
  block = (jnp.argmax(masked, axis=-1) // size).astype(jnp.int32)
  here = of_position == block[:, None]
  entered = block != state.block
  state = replace(
    state,
    block=block,
    block_step=jnp.where(entered, 0, state.block_step),
    block_masks=jnp.where(entered, jnp.sum(masked & here, axis=-1), state.block_masks),
  )
  return state, here, steps // -(-length // size)


def _reopen(state: DecodeState, back: Bool[Array, "B L"], mask_id: int) -> DecodeState:
  """Takes positions back to MASK."""
  return replace(
    state,
    canvas=jnp.where(back, mask_id, state.canvas),
    step_map=jnp.where(back, -1, state.step_map),
    confidence=jnp.where(back, 0.0, state.confidence),
    reopened=state.reopened + back,
  )


def check_inputs(prompt, canvas, row_seeds, banned, codes, steps, sampling, options):
  """Checks what can be checked before anything is compiled, and moves the inputs to the device."""
  if len(prompt) != len(canvas) or len(row_seeds) != len(canvas):
    raise ValueError(
      f"prompt has {len(prompt)} rows, canvas {len(canvas)} and row_seeds {len(row_seeds)}; they must be equal"
    )
  if codes is not None and codes.shape[1] != canvas.shape[1]:
    raise ValueError(f"codes has DocIDs of length {codes.shape[1]}, canvas {canvas.shape[1]}; they must be equal")
  if not isinstance(steps, jax.Array) and steps < 1:  # an array may be traced: its value is not known yet
    raise ValueError(f"steps is {steps}; decoding needs at least 1 forward pass")
  blocks = -(-canvas.shape[1] // (options.block_length or canvas.shape[1]))
  if not isinstance(steps, jax.Array) and steps % blocks:
    raise ValueError(f"steps is {steps}; it must be a multiple of the {blocks} blocks of a canvas")
  if codes is not None and (options.block_length or getattr(options.policy, "whole_row", False)):
    raise ValueError(
      f"constrained decoding commits position after position over the whole canvas; it takes neither block_length "
      f"{options.block_length} nor a policy that judges a row as a whole ({options.policy})"
    )
  temperature, top_k, top_p = sampling
  if isinstance(temperature, jax.Array):  # perhaps traced
    sampling = replace(make_sampling(0.0, top_k, top_p), temperature=temperature.astype(jnp.float32))
  else:
    sampling = make_sampling(temperature, top_k, top_p)
  to_int = functools.partial(jnp.asarray, dtype=jnp.int32)
  return (
    to_int(prompt),
    to_int(canvas),
    jnp.asarray(row_seeds),
    jnp.asarray(banned, bool),
    None if codes is None else to_int(codes),
    to_int(steps),
    sampling,
  )
