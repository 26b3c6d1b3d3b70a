"""Constrained top-k diffusion decoding: k distinct documents that exist, by a beam over partly filled canvases.

A node is a canvas x. Its documents D(x) are those that agree with what is committed in it. The model, asked once at x,
weighs them by the positions that are still masked, renormalised over D(x); then the node commits some positions more,
and the documents that share their tokens there are its children:

    M M M M          all documents; weights w(d) = sum over masked l of log p(token l of d | query, x)
      |  commit 2         P(d | x) = softmax over D(x) of w
    M M 7 M   M M 3 M     P(child | x) = sum of P(d | x) over its documents
      |  commit 0
    4 M 7 M   9 M 7 M     ... until one DocID is left, or the steps are spent

THE SCORE. log P(d) = log P(child 1 | root) + log P(child 2 | child 1) + ... + log P(d | last node asked on d's path):
the chain rule along d's path, at most `steps` nodes deep. Which positions a node commits depends on the node alone (the
policy asks the model's own statistics there), so that every document has one path, the order needs no averaging, and
the P of all documents sum to 1. With one step it is the softmax of one-pass scores. It is what the document-level
training loss trains on partly filled canvases (stages/docid.py).

WHAT A NODE WEIGHS ITS CHILDREN BY (`weigh`). "documents": as above, by the sum over a child's documents, to which all
masked positions speak as if they were independent. "tokens": by what the model says of the committed position alone,

    P(child | x) = p(its token | query, x), renormalised over the tokens that documents of D(x) have there
    P(d | x)     = P(child of d | x) times d's share of its child, by the positions that stay masked

but for nodes of the last step, which commit nothing. Left to right, with a step a position, that is the chain rule and
the renormalised beam search of an autoregressive model; the prior correction counts where independence is assumed.

WHAT IT RANKS BY (`root`). log P(d), or a share of it and for the rest what the root alone says, which is one pass:

    (1 - root) log P(d) + root log P(d | root)

The path knows how positions depend on each other, the root has the prior correction at every position; on titles both
together find more than either (docs/docid.md). It costs no canvas, as the root is asked anyhow; with root > 0 it is no
log-probability any more.

THE SEARCH. Each step asks the model about `beam` nodes at once: the untouched groups that hold the best documents so
far, at whatever depth they are. Documents of other groups keep the score that their last node gave them, mass is only
ever moved inside a group. With a beam as wide as the corpus every group is asked, and the scores are exact.

Nothing that does not exist is ever scored, so invalid DocIDs are impossible. The cost is `canvases`: how many the model
was asked about. Diffusion decoding has no beam in DiffuGR (arXiv 2511.08150); it names that as its limit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from diffgr_jax.decoding.denoiser import Denoiser, Params, log_probabilities
from diffgr_jax.decoding.policies import Policy, position_stats, rank_positions
from diffgr_jax.decoding.ranked import Ranked
from diffgr_jax.decoding.scoring import score_documents, top_documents

WEIGHED_BY = ("documents", "tokens")


@dataclass(frozen=True)
class TopKOptions:
  """What is fixed when the decoder is compiled."""

  policy: Policy  # which positions a node commits: its most urgent ones (`takes` is not asked)
  mask_id: int
  steps: int  # forward passes, and nodes on a document's path, at most
  beam: int  # nodes that a step asks about
  commit: int = 1  # positions that a node commits
  pool: int = 0  # only groups that hold one of this many best documents are asked about; 0: 4 x beam
  weigh: str = "documents"  # what a node weighs its children by: documents | tokens
  root: float = 0.0  # share of the root's own opinion, that of one pass, in what documents are ranked by

  def __post_init__(self):
    for field, least in (("steps", 1), ("beam", 1), ("commit", 1), ("pool", 0)):
      if getattr(self, field) < least:
        raise ValueError(f"TopKOptions.{field} is {getattr(self, field)}; it must be {least} or more")
    if not 0 <= self.root < 1:
      raise ValueError(f"TopKOptions.root is {self.root}; it must be at least 0 and below 1")
    if self.weigh not in WEIGHED_BY:
      raise ValueError(f"TopKOptions.weigh is one of {', '.join(WEIGHED_BY)}, not {self.weigh!r}")
    if self.weigh == "tokens" and self.commit > 1:
      raise ValueError(f"TopKOptions.commit must be 1, not {self.commit}, where children are weighed by their tokens")

  @property
  def nodes(self) -> int:
    """Nodes that are asked about, at most."""
    return 1 + (self.steps - 1) * self.beam


@struct.dataclass
class TopKState:
  """What a step hands to the next."""

  score: Float[Array, "B N"]  # log P of each document as far as it is known
  root: Float[Array, "B N"]  # log P(d | root), by all positions: one pass
  node: Int[Array, "B N"]  # the last node asked that holds the document
  committed: Bool[Array, "B M L"]  # which positions the children of each node have committed
  nodes: Int[Array, ""]  # rows of `committed` in use
  forwards: Int[Array, "B"]  # steps in which the model was asked about something
  canvases: Int[Array, "B"]  # how many it was asked about
  step: Int[Array, ""]

  def ranks(self, options: TopKOptions) -> Float[Array, "B N"]:
    """What documents are ranked by."""
    return (1 - options.root) * self.score + options.root * self.root if options.root else self.score


def decode_topk(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  codes: Int[ArrayLike, "N L"],
  scored: Bool[ArrayLike, "N L"],
  banned: Bool[ArrayLike, "V"],
  log_prior: Float[ArrayLike, "L V"] | None = None,
  *,
  denoise: Denoiser,
  options: TopKOptions,
  k: int,
) -> Ranked:
  """Ranks the k best documents for each prompt, with their log-probabilities (`root` 0) as scores.

  Args:
    params: the model's parameters.
    prompt: the queries.
    row_seeds: one a row, for the random policy.
    codes: the DocID index.
    scored: the positions of a DocID that count.
    banned: tokens that are never produced; a document with one has probability 0.
    log_prior: subtracted from the log-probabilities (scoring.py), or None.
    denoise: the model; pass the same function object each time, another one compiles anew.
    options: the rest.
    k: documents to return.

  Raises:
    ValueError: k outside 1..N, or shapes that do not fit.
  """
  inputs = _check(prompt, row_seeds, codes, scored, banned, log_prior, k)
  return _decode(params, *inputs, denoise=denoise, options=options, k=k)


def decode_topk_steps(
  params: Params,
  prompt: Int[ArrayLike, "B P"],
  row_seeds: Int[ArrayLike, "B"],
  codes: Int[ArrayLike, "N L"],
  scored: Bool[ArrayLike, "N L"],
  banned: Bool[ArrayLike, "V"],
  log_prior: Float[ArrayLike, "L V"] | None = None,
  *,
  denoise: Denoiser,
  options: TopKOptions,
) -> Iterator[TopKState]:
  """The same, one Python step at a time: yields the state after the root and after every step."""
  prompt, row_seeds, *index = _check(prompt, row_seeds, codes, scored, banned, log_prior, 1)
  keys = jax.vmap(jax.random.key)(row_seeds)
  state = jax.jit(_root, static_argnames=("denoise", "options"))(
    params, prompt, keys, *index, denoise=denoise, options=options
  )
  yield state
  step = jax.jit(_step, static_argnames=("denoise", "options"))
  for _ in range(options.steps - 1):
    state = step(params, prompt, keys, state, *index, denoise=denoise, options=options)
    yield state


@functools.partial(jax.jit, static_argnames=("denoise", "options", "k"))
def _decode(params, prompt, row_seeds, codes, scored, banned, log_prior, *, denoise, options, k) -> Ranked:
  keys, index = jax.vmap(jax.random.key)(row_seeds), (codes, scored, banned, log_prior)
  state = _root(params, prompt, keys, *index, denoise=denoise, options=options)
  step = functools.partial(_step, denoise=denoise, options=options)
  if options.steps > 1:
    state = jax.lax.fori_loop(1, options.steps, lambda _, s: step(params, prompt, keys, s, *index), state)
  document, score = top_documents(state.ranks(options), k)
  return Ranked(document, score, state.forwards, state.canvases)


def _root(params, prompt, keys, codes, scored, banned, log_prior, *, denoise, options) -> TopKState:
  """Asks about the canvas with every position masked, which holds all documents."""
  (batch, _), (documents, length) = prompt.shape, codes.shape
  canvas = jnp.full((batch, 1, length), options.mask_id, jnp.int32)
  everything = jnp.ones((batch, 1, documents), bool)
  weights, by_documents, committed = _ask(
    params, prompt, keys, canvas, everything, jnp.int32(0), codes, scored, banned, log_prior, denoise, options
  )
  table = jnp.zeros((batch, options.nodes, length), bool).at[:, 0].set(committed[:, 0])
  return TopKState(
    score=weights[:, 0],
    root=by_documents[:, 0],
    node=jnp.zeros((batch, documents), jnp.int32),
    committed=table,
    nodes=jnp.int32(1),
    forwards=jnp.ones(batch, jnp.int32),
    canvases=jnp.ones(batch, jnp.int32),
    step=jnp.int32(1),
  )


def _step(params, prompt, keys, state, codes, scored, banned, log_prior, *, denoise, options) -> TopKState:
  """Picks the groups of the best documents, asks about their canvases, and moves the mass inside each group."""
  representative, members = _pick(state, codes, options)
  picked = members.any(axis=-1)
  row = jnp.arange(len(prompt))[:, None]
  shown = state.committed[row, state.node[row, representative]]
  canvas = jnp.where(shown, codes[representative], options.mask_id)
  inside, _, committed = _ask(
    params, prompt, keys, canvas, members, state.step, codes, scored, banned, log_prior, denoise, options
  )
  mass = jax.nn.logsumexp(jnp.where(members, state.score[:, None], -jnp.inf), axis=-1)
  scores = jnp.where(members, mass[..., None] + inside, -jnp.inf).max(axis=1)  # a document is in one group at most
  taken = members.any(axis=1)
  place = (state.nodes + jnp.argmax(members, axis=1)).astype(jnp.int32)
  return TopKState(
    score=jnp.where(taken, scores, state.score),
    root=state.root,
    node=jnp.where(taken, place, state.node),
    committed=jax.lax.dynamic_update_slice_in_dim(state.committed, shown | committed, state.nodes, axis=1),
    nodes=state.nodes + options.beam,
    forwards=state.forwards + picked.any(axis=-1),
    canvases=state.canvases + picked.sum(axis=-1),
    step=state.step + 1,
  )


def _ask(params, prompt, keys, canvas, members, step, codes, scored, banned, log_prior, denoise, options):
  """One forward pass over W canvases a row.

  Returns:
    log P(d | x) Float[B, W, N], -inf outside `members`; the same weighed by documents; and the positions that each
    node commits, Bool[B, W, L].
  """
  batch, width, length = canvas.shape
  flat = canvas.reshape(batch * width, length)
  logits = denoise(params, jnp.repeat(prompt, width, axis=0), flat)
  log_probs = log_probabilities(logits, banned.at[options.mask_id].set(True))
  masked = flat == options.mask_id
  values = log_probs if log_prior is None else log_probs - log_prior[None]
  weights = score_documents(values, codes, scored, masked).reshape(batch, width, -1)
  weights = jnp.where(members, weights, -jnp.inf)
  total = jax.nn.logsumexp(weights, axis=-1, keepdims=True)
  inside = by_documents = jnp.where(members & (total > -jnp.inf), weights - total, -jnp.inf)
  node_keys = jnp.repeat(jax.vmap(lambda key: jax.random.fold_in(key, step))(keys), width)
  priority = options.policy.priority(position_stats(log_probs), node_keys)
  committed = masked & (rank_positions(priority, among=masked) < options.commit)
  if options.weigh == "tokens" and options.steps > 1:
    left = score_documents(values, codes, scored, masked & ~committed).reshape(inside.shape)
    left = jnp.where(inside > -jnp.inf, left, -jnp.inf)
    at = jnp.argmax(committed, axis=-1)
    token_log_probs = log_probs[jnp.arange(len(flat)), at].reshape(batch, width, -1)
    by_token = _weigh_tokens(token_log_probs, left, codes.T[at].reshape(batch, width, -1))
    goes_on = (step < options.steps - 1) & committed.any(axis=-1).reshape(batch, width, 1)
    inside = jnp.where(goes_on, by_token, inside)
  return inside, by_documents, committed.reshape(batch, width, length)


@functools.partial(jnp.vectorize, signature="(v),(n),(n)->(n)")
def _weigh_tokens(log_probs: Float[Array, "V"], left: Float[Array, "N"], token: Int[Array, "N"]) -> Float[Array, "N"]:
  """log P(d | x) of the documents of a node, its children weighed by their tokens alone.

  Args:
    log_probs: of the position that the node commits.
    left: log-probability of each document's other masked positions; -inf outside the node.
    token: of each document at that position.
  """
  most = jax.ops.segment_max(left, token, len(log_probs))
  most = jnp.where(most > -jnp.inf, most, 0.0)  # no document has that token
  of_child = most + jnp.log(jax.ops.segment_sum(jnp.exp(left - most[token]), token, len(log_probs)))
  child = jnp.where(of_child > -jnp.inf, log_probs, -jnp.inf)
  child -= jax.nn.logsumexp(child)
  return jnp.where(left > -jnp.inf, child[token] + left - of_child[token], -jnp.inf)


def _pick(state: TopKState, codes: Int[Array, "N L"], options: TopKOptions):
  """Finds `beam` groups to ask about, in the order of their best documents.

  The best documents are looked at one after the other. A group with one DocID has nothing to decide and is passed over.

  Returns:
    A document of each group Int[B, W]; its members Bool[B, W, N], none for a slot that stayed empty.
  """
  batch, documents = state.score.shape
  pool, ranks = min(options.pool or 4 * options.beam, documents), state.ranks(options)
  row = jnp.arange(batch)

  def look(carry):
    looked, count, open_, representative, members = carry
    best = jnp.argmax(jnp.where(open_, ranks, -jnp.inf), axis=-1)
    node = state.node[row, best]
    shown = state.committed[row, node]
    group = state.node == node[:, None]
    same = jnp.ones((batch, documents), bool)
    for level in range(codes.shape[1]):
      token = codes[:, level][None]
      equal = token == codes[best, level][:, None]
      group &= equal | ~shown[:, level][:, None]
      same &= equal
    useful = open_[row, best] & (count < options.beam) & (group & ~same & (state.score > -jnp.inf)).any(axis=-1)
    slot = jnp.where(useful, count, options.beam)  # beyond the end: dropped
    return (
      looked + 1,
      count + useful,
      open_ & ~group,
      representative.at[row, slot].set(best.astype(jnp.int32), mode="drop"),
      members.at[row, slot].set(group, mode="drop"),
    )

  def more(carry):
    looked, count, open_, *_ = carry
    return (looked < pool) & ((count < options.beam) & open_.any(axis=-1)).any()

  # Only the documents of the pool begin a group; ties at its edge all count.
  edge = jax.lax.top_k(ranks, pool)[0][:, -1:]
  open_ = (ranks >= edge) & (ranks > -jnp.inf)
  start = (
    jnp.int32(0),
    jnp.zeros(batch, jnp.int32),
    open_,
    jnp.zeros((batch, options.beam), jnp.int32),
    jnp.zeros((batch, options.beam, documents), bool),
  )
  *_, representative, members = jax.lax.while_loop(more, look, start)
  return representative, members


def _check(prompt, row_seeds, codes, scored, banned, log_prior, k):
  prompt, row_seeds = jnp.asarray(prompt, jnp.int32), jnp.asarray(row_seeds, jnp.int32)
  codes, scored, banned = jnp.asarray(codes, jnp.int32), jnp.asarray(scored, bool), jnp.asarray(banned, bool)
  if len(prompt) != len(row_seeds):
    raise ValueError(f"prompt has {len(prompt)} rows and row_seeds {len(row_seeds)}; they must be equal")
  if codes.shape != scored.shape:
    raise ValueError(f"codes has shape {codes.shape} and scored {scored.shape}; they must be equal")
  if not 1 <= k <= len(codes):
    raise ValueError(f"k is {k}; it must be in 1..{len(codes)} (the number of documents)")
  return prompt, row_seeds, codes, scored, banned, None if log_prior is None else jnp.asarray(log_prior)
