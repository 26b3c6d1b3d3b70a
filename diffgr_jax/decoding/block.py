"""Block diffusion with an exact cache: blocks go left to right, positions inside a block in any order.

With block size 4 and a prompt of 6 tokens (two of them are left over after its whole block):

    slots      a b c d | e f M M | M M M M      a..d context, to be cached; e f given: fixed positions of block one
    forward 1  -------   -------                context and first block in one pass: the context's keys are kept
    forward 2            e f 7 M                the block against the cache; its own slots are written anew each pass
    forward 3            e f 7 9 | M M M M      the finished block is committed to the cache in the pass that also
                         -------   -------      denoises the next block for the first time: committing costs no pass

The model is block-causal: a block sees itself, masks and all, and every CLEAN block before it. The cache is exact: the
logits are those of an uncached pass, and of the x_t half of a two-stream training pass, on the same canvas (BD3-LM,
arXiv 2503.09573; SDAR, arXiv 2510.06303). Rows are left-padded by whole blocks, so blocks begin at absolute position 0
of every row and at the same slots in all rows; a row that finishes its block early waits, unchanged, for the others.

Alignment is the model's (`config.alignment`). `shifted` reads the first position of a block from the clean token before
it, which the committing pass yields; at block size 1 that is autoregressive decoding. `shifted_first="noisy"` is how
Fast-dLLM v2 (arXiv 2509.26328) decodes: the committing pass writes the first token of the next block, which is then
never read. `window="sub_block"` is its approximate cache: inside a block only the current sub-block is recomputed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
import functools

import jax
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.block_passes import commit, denoise_block, open_block
from diffgr_jax.decoding.block_state import (
  BlockOptions,
  BlockState,
  close_block,
  more_blocks,
  open_masks,
  prepare,
)
from diffgr_jax.decoding.block_window import denoise_window
from diffgr_jax.decoding.policies import Confidence, Stats
from diffgr_jax.decoding.sampling import Sampling
from diffgr_jax.decoding.schedules import EVEN
from diffgr_jax.models.cache import KVCache, init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import DecodingParams, decoding_params
from diffgr_jax.models.transformer import Params


def decode_blocks(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  options: BlockOptions,
  max_new_tokens: int,
  steps: int | None = None,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  context: int | None = None,
  blocks: int | None = None,
) -> BlockState:
  """Decodes block after block until every row has stopped or is full, without leaving the device.

  Args:
    params: the model's parameters, as trained or laid out by `inference.decoding_params`.
    prompt: left-padded tokens.
    valid: False on the padding.
    row_seeds: one seed a row; a row's draws depend on it alone.
    banned: tokens that are never produced; MASK is one of them in any case.
    config: of the model; its `alignment` is honoured, its `pattern` is block_causal or causal weights converted.
    options: the rest of what is compiled in.
    max_new_tokens: how many tokens each row generates at most.
    steps: passes a block may take; at the last one everything left is committed. None: as many as positions.
    sampling: temperature, top-k, top-p; None: the most likely token.
    stops: sequences of token ids that end a row; EOS is one of length 1.
    context: slots for whole prompt blocks; None: what the longest prompt needs. Calls that agree in batch, `context`
      and `blocks` share a compiled program.
    blocks: blocks after them; None: what the longest row needs.

  Returns:
    The last state; `answers` reads the generated tokens off it.

  Raises:
    ValueError: shapes that do not fit, a prompt too long for its bucket, or an empty prompt for a shifted model.
  """
  state, setting, context = prepare(
    prompt, valid, row_seeds, banned, config, options, max_new_tokens, steps, sampling, stops, context, blocks
  )
  return _decode_loop(params, state, setting, config=config, options=options, context=context)


def decode_blocks_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  options: BlockOptions,
  max_new_tokens: int,
  steps: int | None = None,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  context: int | None = None,
  blocks: int | None = None,
) -> Iterator[tuple[BlockState, Stats | None]]:
  """The same decoder, one Python step at a time, for notebooks, streaming and traces.

  Takes what `decode_blocks` takes and commits the same tokens in the same passes.

  Yields:
    The state before the first pass (with None); after every pass, with the statistics of the block that led to it; and
    after the tokens that committing passes write (with None).
  """
  state, setting, context = prepare(
    prompt, valid, row_seeds, banned, config, options, max_new_tokens, steps, sampling, stops, context, blocks
  )
  # Passes do not ask the policy: programs are shared by all that read the canvas alike.
  reading = replace(
    options, policy=Confidence(), schedule=EVEN, stop_check="step", judge="model", records="judged", remask=0
  )
  static = dict(config=config, options=reading, context=context)
  params, cache = decoding_params(config, params), init_cache(config, *state.canvas.shape)
  yield state, None
  while bool(more_blocks(state, options, context)):
    state, cache, hidden = _open_step(params, state, cache, setting, first=int(state.block) < 0, **static)
    if hidden is None:
      yield state, None  # with the first token that the committing pass wrote
    while bool(open_masks(state, options, context).any()):
      if hidden is None:
        hidden, cache = _denoise_step(params, state, cache, **static)
      (state, stats), hidden = _commit_step(params, state, hidden, setting, **static | {"options": options}), None
      yield state, stats
    state = close_block(state, setting, options)


# --- the loop ---


_Carry = tuple[BlockState, KVCache]


@functools.partial(jax.jit, static_argnames=("config", "options", "context"))
def _decode_loop(params, state, setting, *, config, options, context) -> BlockState:
  params, static = decoding_params(config, params), dict(config=config, options=options, context=context)

  def enter(carry: _Carry, first: bool) -> _Carry:
    state, cache, hidden = open_block(params, carry[0], carry[1], setting, first=first, **static)
    if hidden is not None:  # a block that begins is open nearly everywhere
      state, _ = commit(params, state, hidden, setting, read_all=True, **static)
    return state, cache

  def step(carry: _Carry) -> _Carry:
    hidden, cache = _denoise_pass(params, carry[0], carry[1], **static)
    return commit(params, carry[0], hidden, setting, **static)[0], cache

  def finish_block(carry: _Carry) -> _Carry:
    state, cache = jax.lax.while_loop(lambda carry: open_masks(carry[0], options, context).any(), step, carry)
    carry = close_block(state, setting, options), cache
    more = more_blocks(carry[0], options, context)
    return jax.lax.cond(more, lambda carry: enter(carry, first=False), lambda carry: carry, carry)

  def unfinished(carry: _Carry) -> Bool[Array, ""]:
    return open_masks(carry[0], options, context).any() | more_blocks(carry[0], options, context)

  carry = enter((state, init_cache(config, *state.canvas.shape)), first=True)
  return jax.lax.while_loop(unfinished, finish_block, carry)[0]


def _denoise_pass(
  params: DecodingParams,
  state: BlockState,
  cache: KVCache,
  *,
  config: TransformerConfig,
  options: BlockOptions,
  context: int,
) -> tuple[Float[Array, "B L D"], KVCache]:
  """Hidden states that predict the current block, which is not committed."""
  how = denoise_window if options.window == "sub_block" else denoise_block
  return how(config, params, state, cache, options, context)


_static_names = ("config", "options", "context")
_open_step = jax.jit(open_block, static_argnames=(*_static_names, "first"), donate_argnames=("cache",))
_denoise_step = jax.jit(_denoise_pass, static_argnames=_static_names, donate_argnames=("cache",))
_commit_step = jax.jit(functools.partial(commit, read_all=True), static_argnames=_static_names)
