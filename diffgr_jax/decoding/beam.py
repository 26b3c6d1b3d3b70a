"""Beam search over the DocIDs that exist: an autoregressive model, a prefix trie, W hypotheses a query.

    step 0   the prompt's last logit scores the children of the root; the best W become beams
    step t   the W newest tokens of a row are read in one pass; each beam's children in the trie are scored;
             the best W of all of them stay

The beams of a row share the cache of its prompt. Their own tokens are written once and never moved: slot (t, w) holds
what beam w read at step t, and a beam remembers which slots its ancestors wrote, so that choosing other parents changes
an index and a mask, not the cache:

    slots     prompt | 0,0 0,1 0,2 | 1,0 1,1 1,2        beam 2 descends from (0,0) and (1,1):
    it sees   x x x  |  x   .   .  |  .   x   .

A score is the sum of log-probabilities of a DocID's tokens and EOS; a beam as wide as the corpus is enumeration. With
`renormalise`, probabilities are those among the children of a node, so that the scores of all DocIDs sum to 1.
"""

from dataclasses import replace
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
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import Params


@struct.dataclass
class Beams:
  """W hypotheses a row, best first. A row with fewer DocIDs than W has hypotheses of score -inf behind them."""

  tokens: Int[Array, "B W L"]  # -1 behind EOS
  score: Float[Array, "B W"]
  document: Int[Array, "B W"]  # the lowest row of the DocID index with these tokens; -1: none


@struct.dataclass
class _Search:
  """What one step hands to the next."""

  tokens: Int[Array, "B W L"]
  score: Float[Array, "B X"]  # X is 1 at the root, then W
  node: Int[Array, "B X"]
  ancestor: Int[Array, "B W L"]  # which beam's slot of step t the beam descends from
  step: Int[Array, ""]  # tokens chosen


def decode_beams(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  valid: Bool[ArrayLike, "B P"],
  banned: Bool[ArrayLike, "V"],
  trie: PrefixTrie,
  *,
  config: TransformerConfig,
  width: int,
  renormalise: bool = False,
) -> Beams:
  """Finds the `width` DocIDs of highest score for each prompt (exactly so if the beam never drops their prefixes).

  Args:
    params: the model's parameters.
    prompt: left-padded tokens.
    valid: False on the padding.
    banned: tokens of probability 0.
    trie: of the DocID index.
    config: of the model.
    width: beams a row.
    renormalise: score each token among the children of its prefix, not among the whole vocabulary.

  Raises:
    ValueError: shapes that do not fit, or a width below 1.
  """
  prompt, valid = np.asarray(prompt, np.int32), np.asarray(valid, bool)
  if prompt.shape != valid.shape or not valid[:, -1:].all():
    raise ValueError(f"prompt {prompt.shape} and valid {valid.shape} must agree, and no prompt may be empty")
  if width < 1:
    raise ValueError(f"width is {width}; a beam search keeps 1 hypothesis or more")
  arrays = tuple(jnp.asarray(x) for x in (trie.first, trie.token, trie.document))
  shape = dict(depth=trie.depth, root_fan_out=trie.root_fan_out, fan_out=trie.fan_out)
  how = dict(config=config, width=width, renormalise=renormalise, **shape)
  return _search(params, jnp.asarray(prompt), jnp.asarray(valid), jnp.asarray(banned, bool), *arrays, **how)


@functools.partial(jax.jit, static_argnames=("config", "width", "renormalise", "depth", "root_fan_out", "fan_out"))
def _search(
  params, prompt, valid, banned, first, token, document, *, config, width, renormalise, depth, root_fan_out, fan_out
) -> Beams:
  params, layout, (batch, prompt_width) = decoding_params(config, params), padded_layout(valid), prompt.shape
  expand = functools.partial(_expand, first=first, token=token, renormalise=renormalise)
  cache = init_cache(config, batch, prompt_width + max(depth - 1, 1) * width)
  hidden, cache = inference.extend(config, params, prompt, layout, cache, 0, pattern=config.prompt_pattern)
  alone = jnp.full((batch, width), -jnp.inf).at[:, 0].set(0.0)  # one beam, at the root
  search = _Search(
    tokens=jnp.full((batch, width, depth), -1, jnp.int32),
    score=alone,
    node=jnp.zeros((batch, width), jnp.int32),
    ancestor=jnp.zeros((batch, width, depth), jnp.int32),
    step=jnp.int32(0),
  )
  log_probs = log_probabilities(inference.logits(config, params, hidden[:, -1:]), banned)
  root = replace(search, score=alone[:, :1], node=search.node[:, :1])
  search = expand(root, log_probs, fan_out=root_fan_out)

  def more(carry: tuple[_Search, KVCache]) -> Bool[Array, ""]:
    search = carry[0]
    open_ = (first[search.node + 1] > first[search.node]) & (search.score > -jnp.inf)
    return (search.step < depth) & open_.any()

  def body(carry: tuple[_Search, KVCache]) -> tuple[_Search, KVCache]:
    search, cache = carry
    hidden, cache, search = _read(params, search, cache, valid.sum(axis=-1), prompt_width, config)
    log_probs = log_probabilities(inference.logits(config, params, hidden), banned)
    return expand(search, log_probs, fan_out=fan_out), cache

  search, _ = jax.lax.while_loop(more, body, (search, cache))
  found = jnp.where(search.score > -jnp.inf, document[search.node], -1)
  return Beams(search.tokens, search.score, found)


def _read(
  params: Params, search: _Search, cache: KVCache, prompt_length: Int[Array, "B"], prompt_width: int, config
) -> tuple[Float[Array, "B W D"], KVCache, _Search]:
  """Reads the newest token of every beam: a token sees its prompt, the slots of its ancestors, and itself."""
  batch, width, depth = search.tokens.shape
  place = search.step - 1
  newest = jax.lax.dynamic_index_in_dim(search.tokens, place, axis=2, keepdims=False)
  position = jnp.broadcast_to((prompt_length + place)[:, None], (batch, width)).astype(jnp.int32)
  layout = Layout(position, jnp.ones_like(position), jnp.zeros_like(position, bool))
  slots = cache.layout.position.shape[1] - prompt_width
  of_step, of_beam = jnp.arange(slots) // width, jnp.arange(slots) % width
  wrote = search.ancestor[:, :, : slots // width] if slots // width < depth else search.ancestor
  mine = jnp.repeat(wrote, width, axis=-1) == of_beam[None, None]
  mine &= (of_step < place)[None, None]
  itself = (of_step[None] == place) & (of_beam[None] == jnp.arange(width)[:, None])
  prompt = jnp.broadcast_to((cache.layout.segment[:, None, :prompt_width] > 0), (batch, width, prompt_width))
  mask = jnp.concatenate([prompt, mine | itself[None]], axis=-1)
  offset = prompt_width + place * width
  hidden, cache = inference.extend(config, params, jnp.maximum(newest, 0), layout, cache, offset, mask=mask)
  own = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :, None], (batch, width, 1))
  ancestor = jax.lax.dynamic_update_slice_in_dim(search.ancestor, own, place, axis=2)
  return hidden, cache, replace(search, ancestor=ancestor)


def _expand(
  search: _Search,
  log_probs: Float[Array, "B X V"],
  *,
  first: Int[Array, "M_plus_1"],
  token: Int[Array, "E"],
  fan_out: int,
  renormalise: bool,
) -> _Search:
  """Scores the children of all beams (X of them: 1 at the root, then W) and keeps the W best. A leaf keeps itself."""
  batch, width = search.tokens.shape[:2]
  begin, end = first[search.node], first[search.node + 1]
  edge = begin[..., None] + jnp.arange(fan_out)[None, None]
  child, leaf = edge < end[..., None], (begin == end)[..., None]
  edge = jnp.minimum(edge, len(token) - 1)
  gained = jnp.where(child, jnp.take_along_axis(log_probs, token[edge], axis=-1), -jnp.inf)
  if renormalise:
    total = jax.nn.logsumexp(gained, axis=-1, keepdims=True)
    gained = jnp.where(child & (total > -jnp.inf), gained - total, -jnp.inf)
  itself = leaf & (jnp.arange(fan_out) == 0)[None, None]
  score = search.score[..., None] + jnp.where(itself, 0.0, gained)
  flat = score.reshape(batch, -1)
  flat = jnp.pad(flat, ((0, 0), (0, max(width - flat.shape[1], 0))), constant_values=-jnp.inf)
  best, place = jax.lax.top_k(flat, width)
  parent = jnp.minimum(place // fan_out, search.node.shape[1] - 1)
  pick = lambda x: jnp.take_along_axis(x.reshape(batch, -1), jnp.minimum(place, x[0].size - 1), axis=-1)
  follow = lambda x: jnp.take_along_axis(x, parent[..., None], axis=1)
  stays = jnp.take_along_axis(leaf[..., 0], parent, axis=-1)
  new_token = jnp.where(stays, -1, pick(token[edge]))
  new_node = jnp.where(stays, jnp.take_along_axis(search.node, parent, axis=-1), pick(edge) + 1)
  tokens = jax.lax.dynamic_update_slice_in_dim(follow(search.tokens), new_token[..., None], search.step, axis=2)
  return _Search(tokens, best, new_node, follow(search.ancestor), search.step + 1)
