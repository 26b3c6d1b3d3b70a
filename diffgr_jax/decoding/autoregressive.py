"""Autoregressive decoding with a key/value cache: the baseline that every other decoder is compared with.

    prompts, left-padded        .  a  b  c | 1  2  3        one causal pass over the prompts, then one token a pass;
                                p  q  r  s | 4  5  EOS      every row writes at the same slot, whatever its length

One jitted step serves the `lax.while_loop` decoder and its step-by-step twin. A row that has emitted EOS or a stop
sequence is frozen and filled with PAD; decoding ends when all rows have, or when the budget is spent. A row reads its
own tokens, its own key and the step number only, so it decodes to the same tokens in any batch and padding.

Prompt width, batch and `slots` (room for new tokens) are shapes: calls that agree in them share a compiled program,
whatever the prompts' lengths, the budget and the sampling. `pad_prompts` brings prompts to such a bucket.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.sampling import Sampling, draw_tokens, filtered, make_sampling
from diffgr_jax.decoding.stopping import stop_ends, stop_table
from diffgr_jax.models import inference
from diffgr_jax.models.attention import Layout, padded_layout
from diffgr_jax.models.cache import KVCache, init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params


@struct.dataclass
class DecodedRows:
  """New tokens of each row. N is the room for them; `step` of the N columns are decoded."""

  tokens: Int[Array, "B N"]  # PAD behind the end of a row
  length: Int[Array, "B"]  # tokens of the row, its stop included
  log_prob: Float[Array, "B N"]  # of each token under what it was drawn from (greedy: the model); 0 behind the end
  ended: Bool[Array, "B"]  # emitted a stop
  step: Int[Array, ""]


@struct.dataclass
class _Setting:
  """What a step reads beside the state; all of it traced."""

  prompt_length: Int[Array, "B"]
  row_keys: Key[Array, "B"]
  banned: Bool[Array, "V"]
  stops: Int[Array, "K M"]
  sampling: Sampling
  pad_id: Int[Array, ""]


def decode_autoregressive(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  max_new_tokens: int,
  pad_id: int,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  slots: int | None = None,
) -> DecodedRows:
  """Decodes until every row has stopped or `max_new_tokens` are out, without leaving the device.

  Args:
    params: the model's parameters, as trained or laid out by `inference.decoding_params`.
    prompt: left-padded tokens; `pad_prompts` makes them.
    valid: False on the padding; a row that is all padding is decoded as ended.
    row_seeds: one seed a row; a row's draws depend on it alone.
    banned: tokens that are never produced (`denoiser.banned_tokens` builds it).
    config: of the model.
    max_new_tokens: the budget of every row.
    pad_id: fills a row behind its end.
    sampling: temperature, top-k, top-p (`sampling.make_sampling`); None: the most likely token.
    stops: sequences of token ids that end a row; EOS is one of length 1. The stop is kept.
    slots: room for new tokens, a shape; None: `max_new_tokens`.

  Returns:
    The rows; tokens from `step` on were not decoded.

  Raises:
    ValueError: shapes that do not fit, or a budget below 1 or above `slots`.
  """
  prompt, valid, setting, slots = _prepare(
    prompt, valid, row_seeds, banned, max_new_tokens, pad_id, sampling, stops, slots
  )
  return _decode_loop(params, prompt, valid, setting, jnp.int32(max_new_tokens), config=config, slots=slots)


def decode_autoregressive_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  banned: Bool[ArrayLike, "V"],
  *,
  config: TransformerConfig,
  max_new_tokens: int,
  pad_id: int,
  sampling: Sampling | None = None,
  stops: Sequence[Sequence[int]] = (),
  slots: int | None = None,
) -> Iterator[tuple[DecodedRows, Float[Array, "B V"]]]:
  """The same decoder, one Python step at a time, for notebooks and streaming.

  Takes what `decode_autoregressive` takes and chooses the same tokens.

  Yields:
    The rows after each token, and the raw logits that it was chosen from.
  """
  prompt, valid, setting, slots = _prepare(
    prompt, valid, row_seeds, banned, max_new_tokens, pad_id, sampling, stops, slots
  )
  params = inference.decoding_params(config, params)
  rows, cache, logits = _first_step(params, prompt, valid, setting, config=config, slots=slots)
  yield rows, logits
  while int(rows.step) < max_new_tokens and not bool(rows.ended.all()):
    rows, cache, logits = _next_step(params, rows, cache, setting, config=config)
    yield rows, logits


def pad_prompts(
  prompts: Sequence[Sequence[int]], pad_id: int, *, width: int = 0, rows: int = 0
) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"]]:
  """Left-pads prompts to one width, and the batch with empty rows: tokens, and which of them are valid.

  Args:
    prompts: token ids.
    pad_id: what the padding holds (nothing reads it).
    width: of the bucket; 0: the longest prompt.
    rows: of the bucket; 0: as many as prompts. Added rows have no valid token, and count as ended from the start.

  Raises:
    ValueError: a prompt longer than `width`, or more prompts than `rows`.
  """
  longest = max((len(prompt) for prompt in prompts), default=0)
  width, rows = width or longest, rows or len(prompts)
  if longest > width or len(prompts) > rows:
    raise ValueError(f"{len(prompts)} prompts of up to {longest} tokens do not fit a bucket of {rows} rows of {width}")
  tokens, valid = np.full((rows, width), pad_id, np.int32), np.zeros((rows, width), bool)
  for row, is_token, prompt in zip(tokens, valid, prompts, strict=False):
    if len(prompt):
      row[-len(prompt) :], is_token[-len(prompt) :] = prompt, True
  return tokens, valid


# --- steps ---


@functools.partial(jax.jit, static_argnames=("config", "slots"))
def _decode_loop(params, prompt, valid, setting, max_new_tokens, *, config, slots) -> DecodedRows:
  def more(carry: tuple[DecodedRows, KVCache]) -> Bool[Array, ""]:
    return (carry[0].step < max_new_tokens) & ~carry[0].ended.all()

  def body(carry: tuple[DecodedRows, KVCache]) -> tuple[DecodedRows, KVCache]:
    return _next(params, *carry, setting, config=config)[:2]

  params = inference.decoding_params(config, params)
  first = _first(params, prompt, valid, setting, config=config, slots=slots)
  return jax.lax.while_loop(more, body, first[:2])[0]


def _first(params, prompt, valid, setting, *, config, slots) -> tuple[DecodedRows, KVCache, Float[Array, "B V"]]:
  """Reads the prompts in one pass, and chooses the first token."""
  layout, (batch, width) = padded_layout(valid), prompt.shape
  cache = init_cache(config, batch, width + slots - 1)
  hidden, cache = inference.extend(config, params, prompt, layout, cache, 0, pattern=config.prompt_pattern)
  rows = DecodedRows(
    tokens=jnp.full((batch, slots), setting.pad_id, jnp.int32),
    length=jnp.zeros(batch, jnp.int32),
    log_prob=jnp.zeros((batch, slots), jnp.float32),
    ended=setting.prompt_length == 0,
    step=jnp.int32(0),
  )
  logits = inference.logits(config, params, hidden[:, -1:])[:, 0]
  return _choose(rows, logits, setting), cache, logits


def _next(params, rows, cache, setting, *, config) -> tuple[DecodedRows, KVCache, Float[Array, "B V"]]:
  """Reads the last token against the cache, and chooses the next."""
  place = rows.step - 1
  token = jax.lax.dynamic_slice_in_dim(rows.tokens, place, 1, axis=1)
  position = (setting.prompt_length + place)[:, None]
  layout = Layout(position, jnp.ones_like(position), jnp.zeros_like(position))
  width = cache.layout.position.shape[1] - rows.tokens.shape[1] + 1
  hidden, cache = inference.extend(config, params, token, layout, cache, width + place, pattern="causal")
  logits = inference.logits(config, params, hidden)[:, 0]
  return _choose(rows, logits, setting), cache, logits


_first_step = jax.jit(_first, static_argnames=("config", "slots"))
_next_step = jax.jit(_next, static_argnames=("config",), donate_argnames=("cache",))


def _choose(rows: DecodedRows, logits: Float[Array, "B V"], setting: _Setting) -> DecodedRows:
  """Chooses one token a row; rows that have ended get PAD."""
  log_probs = log_probabilities(logits[:, None], setting.banned)[:, 0]
  keys = jax.vmap(lambda key: jax.random.fold_in(key, rows.step))(setting.row_keys)
  token = draw_tokens(logits[:, None], setting.banned, setting.sampling, keys)[:, 0]
  drawn_from = lambda: filtered(log_probs, setting.sampling)
  log_probs = jax.lax.cond(setting.sampling.temperature > 0, drawn_from, lambda: log_probs)
  log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
  put = lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new[:, None], rows.step, axis=1)
  tokens = put(rows.tokens, jnp.where(rows.ended, setting.pad_id, token))
  return replace(
    rows,
    tokens=tokens,
    length=rows.length + ~rows.ended,
    log_prob=put(rows.log_prob, jnp.where(rows.ended, 0.0, log_prob)),
    ended=rows.ended | _stops_here(tokens, rows.step, setting.stops),
    step=rows.step + 1,
  )


def _stops_here(tokens: Int[Array, "B N"], step: Int[Array, ""], stops: Int[Array, "K M"]) -> Bool[Array, "B"]:
  """Whether the token at `step` completes a stop sequence."""
  width = stops.shape[1]
  recent = jax.lax.dynamic_slice_in_dim(jnp.pad(tokens, ((0, 0), (width - 1, 0))), step, width, axis=1)
  there = jnp.arange(width) + step >= width - 1  # the padding was not generated
  return stop_ends(recent, jnp.broadcast_to(there[None], recent.shape), stops)[:, -1]


def _prepare(prompt, valid, row_seeds, banned, max_new_tokens, pad_id, sampling, stops, slots):
  prompt, valid = np.asarray(prompt, np.int32), np.asarray(valid, bool)
  slots = max_new_tokens if slots is None else slots
  if prompt.shape != valid.shape or len(row_seeds) != len(prompt):
    raise ValueError(
      f"prompt has shape {prompt.shape}, valid {valid.shape} and row_seeds {len(row_seeds)} rows; they must agree"
    )
  if (valid[:, :-1] & ~valid[:, 1:]).any():
    raise ValueError("prompts are left-padded: valid must not be False behind a True")
  if not 1 <= max_new_tokens <= slots:
    raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be in 1..{slots}, the slots for new tokens")
  setting = _Setting(
    prompt_length=jnp.asarray(valid.sum(axis=1), jnp.int32),
    row_keys=jax.vmap(jax.random.key)(jnp.asarray(row_seeds)),
    banned=jnp.asarray(banned, bool),
    stops=stop_table(stops),
    sampling=sampling or make_sampling(),
    pad_id=jnp.int32(pad_id),
  )
  return jnp.asarray(prompt), jnp.asarray(valid), setting, slots
