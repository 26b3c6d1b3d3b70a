"""Beam search: a causal model, W hypotheses a query; over the DocIDs that exist (a prefix trie) or over any text.

    step 0   the prompt's last logit scores the children of the root; the best W become beams
    step t   the W newest tokens of a row are read in one pass; each beam's children in the trie are scored;
             the best W of all of them stay

The beams of a row share the cache of its prompt. Their own tokens are written once and never moved: slot (t, w) holds
what beam w read at step t, and a beam remembers which slots its ancestors wrote, so that choosing other parents changes
an index and a mask, not the cache:

    slots     prompt | 0,0 0,1 0,2 | 1,0 1,1 1,2        beam 2 descends from (0,0) and (1,1):
    it sees   x x x  |  x   .   .  |  .   x   .

A score is the sum of log-probabilities of a DocID's tokens and EOS; a beam as wide as the corpus is enumeration. With
`renormalise`, probabilities are those among the children of a node, so that the scores of all DocIDs sum to 1. A model
with a code head reads learned DocIDs as the codes themselves, and its logits are those of one level (`codes`). Of any
text (`AnyText`) every token is a child, and EOS or the length ends a hypothesis; the sum favours short answers. A text
of codes is one that may name no document.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int
import numpy as np

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.docid.trie import PrefixTrie
from diffgr_jax.models import inference
from diffgr_jax.models.attention import Layout, padded_layout
from diffgr_jax.models.cache import KVCache, init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import LOWEST_LOGIT, CodeDenoiser
from diffgr_jax.models.encoder import mean_pool, unit_length
from diffgr_jax.models.inference import DecodingParams, decoding_params
from diffgr_jax.models.transformer import Params


@dataclass(frozen=True)
class AnyText:
  """No constraint: up to `length` tokens, fewer where EOS (None: there is none) ends them."""

  length: int
  eos_id: int | None = None

  def __post_init__(self):
    if self.length < 1:
      raise ValueError(f"AnyText.length is {self.length}; it must be 1 token or more")


@struct.dataclass
class Beams:
  """W hypotheses a row, best first. A row with fewer DocIDs than W has hypotheses of score -inf behind them."""

  tokens: Int[Array, "B W L"]  # -1 behind EOS
  score: Float[Array, "B W"]
  document: Int[Array, "B W"]  # the lowest row of the DocID index with these tokens; -1: none


@struct.dataclass
class BeamState:
  """Where the search stands: W hypotheses a row, best first (X is W, but 1 at the root, before the first step)."""

  tokens: Int[Array, "B W L"]  # -1 where nothing is chosen, or behind EOS
  score: Float[Array, "B X"]  # -inf: no hypothesis
  parent: Int[Array, "B X"]  # the hypothesis of the step before that each one continues
  node: Int[Array, "B X"]  # of the trie; of any text, 1 if the hypothesis has ended
  ancestor: Int[Array, "B W L"]  # which beam's slot of step t the beam descends from
  step: Int[Array, ""]  # tokens chosen
  query: Float[Array, "B D"] | None = None  # the prompt's vector, for a code head


@struct.dataclass
class _Setting:
  """What a step reads beside the state; all of it traced."""

  banned: Bool[Array, "V"]
  prompt_length: Int[Array, "B"]
  trie: tuple[Int[Array, "M_plus_1"], Int[Array, "E"]] | None  # first edge of a node, token of an edge; None: any text
  eos: Int[Array, ""]  # of any text; -1: none


@dataclass(frozen=True)
class _Shape:
  """What is fixed when the search is compiled."""

  config: TransformerConfig
  width: int
  depth: int  # tokens of the longest hypothesis
  root_fan_out: int
  fan_out: int
  renormalise: bool
  codes: CodeDenoiser | None


def decode_beams(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  banned: Bool[ArrayLike, "V"],
  allowed: PrefixTrie | AnyText,
  *,
  config: TransformerConfig,
  width: int,
  renormalise: bool = False,
  codes: CodeDenoiser | None = None,
) -> Beams:
  """Finds the `width` DocIDs of highest score for each prompt (exactly so if the beam never drops their prefixes).

  Args:
    params: the model's parameters, as trained or laid out by `inference.decoding_params`.
    prompt: left-padded tokens.
    valid: False on the padding.
    banned: tokens of probability 0.
    allowed: the trie of the DocID index, or any text.
    config: of the model.
    width: beams a row.
    renormalise: score each token among the children of its prefix, not among the whole vocabulary.
    codes: of a model with a code head, how it reads a canvas of codes; what is allowed then has codes, not tokens.

  Raises:
    ValueError: shapes that do not fit, or a width below 1.
  """
  prompt, valid, setting, shape = _prepare(prompt, valid, banned, allowed, config, width, renormalise, codes)
  return read_beams(_search_loop(params, prompt, valid, setting, shape=shape), allowed)


def decode_beams_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  banned: Bool[ArrayLike, "V"],
  allowed: PrefixTrie | AnyText,
  *,
  config: TransformerConfig,
  width: int,
  renormalise: bool = False,
  codes: CodeDenoiser | None = None,
) -> Iterator[tuple[BeamState, Float[Array, "B X V"]]]:
  """The same search, one Python step at a time, for notebooks and traces.

  Takes what `decode_beams` takes and finds the same hypotheses; `read_beams` reads them off the last state.

  Yields:
    The state after each step, and the raw logits that it chose from: those of the prompt (X = 1) at the first step,
    then one row for each hypothesis of the step before (X = W).
  """
  prompt, valid, setting, shape = _prepare(prompt, valid, banned, allowed, config, width, renormalise, codes)
  params = decoding_params(config, params)
  state, cache, logits = _first_step(params, prompt, valid, setting, shape=shape)
  yield state, logits
  while bool(_more(state, setting, shape)):
    state, cache, logits = _next_step(params, state, cache, setting, shape=shape)
    yield state, logits


def read_beams(state: BeamState, allowed: PrefixTrie | AnyText) -> Beams:
  """The hypotheses that a search has found."""
  if isinstance(allowed, AnyText):
    document = jnp.full(state.node.shape, -1)
  else:
    document = jnp.where(state.score > -jnp.inf, jnp.asarray(allowed.document)[state.node], -1)
  return Beams(state.tokens, state.score, document)


# --- steps ---


@functools.partial(jax.jit, static_argnames=("shape",))
def _search_loop(params, prompt, valid, setting, *, shape) -> BeamState:
  def body(carry: tuple[BeamState, KVCache]) -> tuple[BeamState, KVCache]:
    return _next(params, *carry, setting, shape=shape)[:2]

  params = decoding_params(shape.config, params)
  first = _first(params, prompt, valid, setting, shape=shape)[:2]
  return jax.lax.while_loop(lambda carry: _more(carry[0], setting, shape), body, first)[0]


def _first(
  params: DecodingParams, prompt: Array, valid: Array, setting: _Setting, *, shape: _Shape
) -> tuple[BeamState, KVCache, Float[Array, "B 1 V"]]:
  """Reads the prompts in one pass, and expands the root, which may have many more children than any other node."""
  (batch, prompt_width), width, depth = prompt.shape, shape.width, shape.depth
  cache = init_cache(shape.config, batch, prompt_width + max(depth - 1, 1) * width)
  pattern = shape.config.prompt_pattern
  hidden, cache = inference.extend(shape.config, params, prompt, padded_layout(valid), cache, 0, pattern=pattern)
  query = None if shape.codes is None else unit_length(mean_pool(hidden, valid))
  root = BeamState(
    tokens=jnp.full((batch, width, depth), -1, jnp.int32),
    score=jnp.zeros((batch, 1), jnp.float32),
    parent=jnp.zeros((batch, 1), jnp.int32),
    node=jnp.zeros((batch, 1), jnp.int32),
    ancestor=jnp.zeros((batch, width, depth), jnp.int32),
    step=jnp.int32(0),
    query=query,
  )
  logits = _logits(params, root, hidden[:, -1:], shape)
  return _expand(root, logits, setting, shape.root_fan_out, shape.renormalise), cache, logits


def _next(
  params: DecodingParams, state: BeamState, cache: KVCache, setting: _Setting, *, shape: _Shape
) -> tuple[BeamState, KVCache, Float[Array, "B W V"]]:
  """Reads the newest tokens, and expands every hypothesis."""
  hidden, cache, state = _read(params, state, cache, setting.prompt_length, shape)
  logits = _logits(params, state, hidden, shape)
  return _expand(state, logits, setting, shape.fan_out, shape.renormalise), cache, logits


def _logits(
  params: DecodingParams, state: BeamState, hidden: Float[Array, "B X D"], shape: _Shape
) -> Float[Array, "B X V"]:
  """Of the next token: over the vocabulary, or over the codes of its level and MASK."""
  if shape.codes is None or state.query is None:
    return inference.logits(shape.config, params, hidden)
  logits = inference.code_logits(params, state.query, hidden, state.step)
  return jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=LOWEST_LOGIT)


_first_step = jax.jit(_first, static_argnames=("shape",))
_next_step = jax.jit(_next, static_argnames=("shape",), donate_argnames=("cache",))


def _more(state: BeamState, setting: _Setting, shape: _Shape) -> Bool[Array, ""]:
  open_ = ~_is_done(state.node, setting) & (state.score > -jnp.inf)
  return (state.step < shape.depth) & open_.any()


def _is_done(node: Int[Array, "B X"], setting: _Setting) -> Bool[Array, "B X"]:
  if setting.trie is None:
    return node == 1
  first = setting.trie[0]
  return first[node] == first[node + 1]  # a leaf


def _read(
  params: DecodingParams,
  state: BeamState,
  cache: KVCache,
  prompt_length: Int[Array, "B"],
  shape: _Shape,
) -> tuple[Float[Array, "B W D"], KVCache, BeamState]:
  """Reads the newest token of every beam: a token sees its prompt, the slots of its ancestors, and itself."""
  batch, width, depth = state.tokens.shape
  place, slots = state.step - 1, max(depth - 1, 1) * width
  prompt_width = cache.layout.position.shape[1] - slots
  newest = jax.lax.dynamic_index_in_dim(state.tokens, place, axis=2, keepdims=False)
  position = jnp.broadcast_to((prompt_length + place)[:, None], (batch, width)).astype(jnp.int32)
  layout = Layout(position, jnp.ones_like(position), jnp.zeros_like(position))
  of_step, of_beam = jnp.arange(slots) // width, jnp.arange(slots) % width
  mine = jnp.repeat(state.ancestor[:, :, : slots // width], width, axis=-1) == of_beam[None, None]
  mine &= (of_step < place)[None, None]
  itself = (of_step[None] == place) & (of_beam[None] == jnp.arange(width)[:, None])
  prompt = jnp.broadcast_to((cache.layout.segment[:, None, :prompt_width] > 0), (batch, width, prompt_width))
  mask = jnp.concatenate([prompt, mine | itself[None]], axis=-1)
  offset = prompt_width + place * width
  tokens = jnp.maximum(newest, 0)
  if shape.codes is not None:
    tokens = tokens + shape.codes.first_code + shape.codes.size * place
  hidden, cache = inference.extend(shape.config, params, tokens, layout, cache, offset, mask=mask)
  own = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :, None], (batch, width, 1))
  ancestor = jax.lax.dynamic_update_slice_in_dim(state.ancestor, own, place, axis=2)
  return hidden, cache, replace(state, ancestor=ancestor)


def _expand(
  state: BeamState, logits: Float[Array, "B X V"], setting: _Setting, fan_out: int, renormalise: bool
) -> BeamState:
  """Scores the children of all beams (X of them: 1 at the root, then W) and keeps the W best. What is done stays."""
  batch, width = state.tokens.shape[:2]
  log_probs, done = log_probabilities(logits, setting.banned), _is_done(state.node, setting)
  gained, token, child = _children(state.node, log_probs, setting, fan_out)
  if renormalise:
    total = jax.nn.logsumexp(gained, axis=-1, keepdims=True)
    gained = jnp.where((gained > -jnp.inf) & (total > -jnp.inf), gained - total, -jnp.inf)
  itself = jnp.where(jnp.arange(fan_out) == 0, 0.0, -jnp.inf)[None, None]
  score = state.score[..., None] + jnp.where(done[..., None], itself, gained)
  flat = score.reshape(batch, -1)
  flat = jnp.pad(flat, ((0, 0), (0, max(width - flat.shape[1], 0))), constant_values=-jnp.inf)
  best, place = jax.lax.top_k(flat, width)
  parent = jnp.minimum(place // fan_out, state.node.shape[1] - 1)
  pick = lambda x: jnp.take_along_axis(x.reshape(batch, -1), jnp.minimum(place, x[0].size - 1), axis=-1)
  follow = lambda x: jnp.take_along_axis(x, parent[..., None], axis=1)
  stays = jnp.take_along_axis(done, parent, axis=-1)
  new_token = jnp.where(stays, -1, pick(token))
  new_node = jnp.where(stays, jnp.take_along_axis(state.node, parent, axis=-1), pick(child))
  tokens = jax.lax.dynamic_update_slice_in_dim(follow(state.tokens), new_token[..., None], state.step, axis=2)
  return BeamState(tokens, best, parent, new_node, follow(state.ancestor), state.step + 1, state.query)


def _children(
  node: Int[Array, "B X"], log_probs: Float[Array, "B X V"], setting: _Setting, fan_out: int
) -> tuple[Float[Array, "B X F"], Int[Array, "B X F"], Int[Array, "B X F"]]:
  """Log-probability, token and node of every child of a node; -inf where there are fewer than F. Of a leaf: -inf."""
  if setting.trie is None:
    token = jnp.broadcast_to(jnp.arange(fan_out, dtype=jnp.int32)[None, None], log_probs.shape)
    return log_probs, token, (token == setting.eos).astype(jnp.int32)
  first, tokens = setting.trie
  edge = first[node][..., None] + jnp.arange(fan_out, dtype=jnp.int32)[None, None]
  there = edge < first[node + 1][..., None]
  edge = jnp.minimum(edge, len(tokens) - 1)
  gained = jnp.where(there, jnp.take_along_axis(log_probs, tokens[edge], axis=-1), -jnp.inf)
  return gained, tokens[edge], edge + 1


# --- preparation, on the host ---


def _prepare(
  prompt, valid, banned, allowed, config, width, renormalise, codes
) -> tuple[Array, Array, _Setting, _Shape]:
  prompt, valid = np.asarray(prompt, np.int32), np.asarray(valid, bool)
  if prompt.shape != valid.shape or not valid[:, -1:].all():
    raise ValueError(f"prompt {prompt.shape} and valid {valid.shape} must agree, and no prompt may be empty")
  if codes is not None and not config.code_levels:
    raise ValueError("codes are for a model with a code head")
  if codes is not None and isinstance(allowed, AnyText) and allowed != AnyText(config.code_levels):
    raise ValueError(f"a text of codes has one for each of the {config.code_levels} levels and no EOS; not {allowed}")
  if width < 1:
    raise ValueError(f"width is {width}; a beam search keeps 1 hypothesis or more")
  trie, eos = None, -1
  if isinstance(allowed, AnyText):
    rows = config.vocab_size if codes is None else codes.size + 1
    eos = -1 if allowed.eos_id is None else allowed.eos_id
    shape = _Shape(config, width, allowed.length, rows, rows, renormalise, codes)
  else:
    trie = jnp.asarray(allowed.first), jnp.asarray(allowed.token)
    shape = _Shape(config, width, allowed.depth, allowed.root_fan_out, allowed.fan_out, renormalise, codes)
  length = jnp.asarray(valid.sum(axis=-1), jnp.int32)
  setting = _Setting(jnp.asarray(banned, bool), length, trie, jnp.int32(eos))
  return jnp.asarray(prompt), jnp.asarray(valid), setting, shape
