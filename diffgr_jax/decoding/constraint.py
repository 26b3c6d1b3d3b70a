"""Decoding constrained to the DocIDs that exist, in any order of positions.

A prefix trie answers "which tokens may follow this prefix?", which is no use to a decoder that fills position 5 first.
Here the set is the code matrix itself, and the question is asked of all positions at once:

    codes          canvas  M 4 M        alive: rows that agree with every committed position
    d0  1 4 9                           d0 yes, d1 no, d2 yes
    d1  1 5 9              {1,7} 4 {9}  allowed: the tokens that an alive row has at a position
    d2  7 4 9

Positions that are allowed one by one need not be allowed together ({1,7} x {8,9} may hold a pair that no row has), so
a step that commits several positions commits them in turn, and narrows `alive` after each (no further forward pass).
Whatever the order, the canvas can then always be completed to a row, and ends as one. Priorities are recomputed after
each commitment, from the model's probabilities renormalised over the tokens still allowed: a position that the
earlier commitments have decided has confidence 1.

Cost of a turn: O(B N L) time for the allowed tokens and O(B L U) for the statistics; memory O(B N + B L U). U is the
number of vocabulary rows that some DocID holds where `rows` names them, and V otherwise: a token that no DocID holds is
never allowed, so leaving it out changes nothing.
Rows of `codes` that are equal (colliding DocIDs) live and die together, which changes nothing.
"""

import functools

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.policies import Budget, Commits, Policy, Stats, position_stats


def used_rows(codes: Int[np.ndarray, "N L"]) -> Int[np.ndarray, "U"]:
  """The vocabulary rows that some DocID holds, rising: what `rows` takes."""
  return np.unique(codes)


def agreeing_documents(canvas: Int[Array, "B L"], codes: Int[Array, "N L"], mask_id: int) -> Bool[Array, "B N"]:
  """Finds the rows of `codes` that agree with a canvas at every position that does not hold MASK."""

  def narrow(level, agree):
    token = canvas[:, level][:, None]
    return agree & ((token == mask_id) | (token == codes[:, level][None]))

  start = jnp.ones((canvas.shape[0], codes.shape[0]), bool)
  return jax.lax.fori_loop(0, canvas.shape[1], narrow, start)


def possible_documents(
  canvas: Int[Array, "B L"], codes: Int[Array, "N L"], banned: Bool[Array, "V"], mask_id: int
) -> Bool[Array, "B N"]:
  """Finds the documents that a canvas can still become: they agree with it and hold no banned token."""
  return agreeing_documents(canvas, codes, mask_id) & ~banned[codes].any(axis=-1)[None]


@jax.jit
def matching_documents(
  canvas: Int[Array, "B L"], codes: Int[Array, "N L"], scored: Bool[Array, "N L"]
) -> Bool[Array, "B N"]:
  """Finds the documents whose DocID a finished canvas spells, up to and including EOS.

  Args:
    canvas: decoded tokens.
    codes: the DocID index.
    scored: the positions of a DocID that count: its tokens and its EOS; what stands after EOS is not compared.

  Returns:
    True for each document that matches: several where DocIDs collide, none where the canvas names no document.
  """

  def narrow(level, match):
    return match & ((canvas[:, level][:, None] == codes[:, level][None]) | ~scored[:, level][None])

  start = jnp.ones((canvas.shape[0], codes.shape[0]), bool)
  return jax.lax.fori_loop(0, canvas.shape[1], narrow, start)


def allowed_tokens(alive: Bool[Array, "B N"], codes: Int[Array, "N L"], vocab: int) -> Bool[Array, "B L V"]:
  """Marks the tokens that at least one alive document has at each position."""
  alive_NxB = alive.T  # rows last, so that each document scatters one contiguous vector

  def level(tokens: Int[Array, "N"]) -> Bool[Array, "V B"]:
    return jnp.zeros((vocab, alive.shape[0]), bool).at[tokens].max(alive_NxB)

  return jnp.transpose(jax.lax.map(level, codes.T), (2, 0, 1))


def restrict(log_probs: Float[Array, "B L V"], allowed: Bool[Array, "B L V"]) -> Float[Array, "B L V"]:
  """Renormalises over the allowed tokens (-inf elsewhere). A position without any gets -inf throughout."""
  restricted = jnp.where(allowed, log_probs, -jnp.inf)
  total = jax.nn.logsumexp(restricted, axis=-1, keepdims=True)
  return jnp.where(allowed, log_probs - total, -jnp.inf)


def first_choices(
  log_probs: Float[Array, "B L V"],
  alive: Bool[Array, "B N"],
  row_keys: Key[Array, "B"],
  policy: Policy,
  *,
  codes: Int[Array, "N L"],
  width: int,
  rows: Int[Array, "U"] | None = None,
) -> tuple[Int[Array, "B"], Int[Array, "B W"], Bool[Array, "B W"]]:
  """Finds where `commit_in_turn` commits first on a canvas of MASKs, and the tokens that may stand there.

  Args:
    log_probs, alive, row_keys, policy, codes, rows: as `commit_in_turn` gets them.
    width: tokens to find.

  Returns:
    The position; its most likely allowed tokens, best first; False where there are fewer of them than `width`.
  """
  vocab = log_probs.shape[-1]
  if rows is not None:
    log_probs = log_probs[:, :, rows]
  rows, columns, _ = _columns(codes, rows, vocab)
  restricted = restrict(log_probs, allowed_tokens(alive, columns, len(rows)))
  place = jnp.argmax(policy.priority(position_stats(restricted), row_keys), axis=-1)
  there = restricted[jnp.arange(len(alive)), place]
  there = jnp.pad(there, ((0, 0), (0, max(width - len(rows), 0))), constant_values=-jnp.inf)
  best, column = jax.lax.top_k(there, width)
  return place, rows[jnp.minimum(column, len(rows) - 1)], best > -jnp.inf


@struct.dataclass
class _Turns:
  """What one turn of `commit_in_turn` hands to the next."""

  canvas: Int[Array, "B L"]
  alive: Bool[Array, "B N"]
  confidence: Float[Array, "B L"]
  base: Int[Array, "B"]  # commitments that the policy took
  going: Bool[Array, "B"]  # the policy may still take more
  turn: Int[Array, ""]


def commit_in_turn(
  log_probs: Float[Array, "B L V"],
  scores: Float[Array, "B L V"],
  canvas: Int[Array, "B L"],
  alive: Bool[Array, "B N"],
  row_keys: Key[Array, "B"],
  budget: Budget,
  policy: Policy,
  *,
  codes: Int[Array, "N L"],
  mask_id: int,
  finish_when_unique: bool,
  rows: Int[Array, "U"] | None = None,
  first: tuple[Int[Array, "B"], Int[Array, "B"]] | None = None,
) -> tuple[Commits, Bool[Array, "B N"], Stats]:
  """Commits the positions that the policy takes one after the other, so that the canvas never leaves the set.

  Args:
    log_probs: the model's distribution over the tokens that are not banned.
    scores: what the token is chosen by, among the allowed ones: `log_probs`, or with temperature and Gumbel noise.
    canvas: tokens, MASK where nothing is committed yet.
    alive: the documents that the canvas can still become. A row without any is left as it is.
    row_keys: one key a row, for policies that draw.
    budget: quota, floor and spare of each row.
    policy: chooses the positions.
    codes: the DocID index.
    mask_id: the id of MASK.
    finish_when_unique: when one DocID is left alive, also commits everything that is still masked, and reopens nothing.
    rows: `used_rows` of the codes, to spend nothing on the other tokens; None: all.
    first: a position and an allowed token of each row, to be committed before the policy is asked; None: nothing.

  Returns:
    What to write; the documents alive after it; and the statistics at the start of the step.
  """
  vocab = log_probs.shape[-1]
  if rows is not None:
    log_probs, scores = log_probs[:, :, rows], scores[:, :, rows]
  rows, columns, column_of = _columns(codes, rows, vocab)
  row = jnp.arange(canvas.shape[0])
  masked_count = jnp.sum(canvas == mask_id, axis=-1)

  def extra(base: Int[Array, "B"]) -> Int[Array, "B"]:
    return jnp.minimum(budget.spare, masked_count - base)

  def unfinished(t: _Turns) -> Bool[Array, "B"]:
    more = t.going | (t.turn < t.base + extra(t.base))
    return more & (t.canvas == mask_id).any(axis=-1) & t.alive.any(axis=-1)

  def turn(t: _Turns) -> _Turns:
    allowed = allowed_tokens(t.alive, columns, len(rows))
    restricted = restrict(log_probs, allowed)
    priority = policy.priority(position_stats(restricted), row_keys)
    place = jnp.argmax(jnp.where(t.canvas == mask_id, priority, -jnp.inf), axis=-1)
    takes = functools.partial(_takes, policy, budget)
    taken = unfinished(t) & t.going & takes(priority[row, place], t.turn)
    if first is not None:
      place = jnp.where(t.turn == 0, first[0], place)
      taken |= unfinished(t) & (t.turn == 0)
    base = jnp.where(taken, t.turn + 1, t.base)
    commit = unfinished(t) & (taken | (t.turn < base + extra(base)))

    score = jnp.maximum(scores[row, place], jnp.finfo(scores.dtype).min)  # allowed stays above -inf
    column = jnp.argmax(jnp.where(allowed[row, place], score, -jnp.inf), axis=-1)
    if first is not None:
      column = jnp.where(t.turn == 0, column_of[first[1]], column)
    token = rows[column].astype(canvas.dtype)
    probability = jnp.exp(restricted[row, place, column])
    agrees = columns.T[place] == column[:, None]
    return _Turns(
      canvas=t.canvas.at[row, place].set(jnp.where(commit, token, t.canvas[row, place])),
      alive=jnp.where(commit[:, None], t.alive & agrees, t.alive),
      confidence=t.confidence.at[row, place].set(jnp.where(commit, probability, t.confidence[row, place])),
      base=base,
      # If no priority, however high, would go on, the next turn need not be computed.
      going=taken & takes(jnp.full_like(probability, jnp.inf), t.turn + 1),
      turn=t.turn + 1,
    )

  start = _Turns(
    canvas=canvas,
    alive=alive,
    confidence=jnp.zeros(canvas.shape, jnp.float32),
    base=jnp.zeros_like(masked_count),
    going=jnp.ones(canvas.shape[0], bool),
    turn=jnp.int32(0),
  )
  last = jax.lax.while_loop(lambda t: unfinished(t).any(), turn, start)
  stats = position_stats(restrict(log_probs, allowed_tokens(alive, columns, len(rows))))

  tokens, confidence, reopen = last.canvas, last.confidence, extra(last.base)
  if finish_when_unique:
    survivor = codes[jnp.argmax(last.alive, axis=-1)]
    others = last.alive & ~agreeing_documents(survivor, codes, mask_id)  # equal DocIDs count as one
    unique = last.alive.any(axis=-1) & ~others.any(axis=-1)
    fill = unique[:, None] & (tokens == mask_id)
    tokens, confidence = jnp.where(fill, survivor, tokens), jnp.where(fill, 1.0, confidence)
    reopen = jnp.where(unique, 0, reopen)
  chosen = (canvas == mask_id) & (tokens != mask_id)
  return Commits(chosen, tokens, confidence, reopen), last.alive, stats


def _columns(
  codes: Int[Array, "N L"], rows: Int[Array, "U"] | None, vocab: int
) -> tuple[Int[Array, "U"], Int[Array, "N L"], Int[Array, "V"]]:
  """Counts tokens as columns, their places in `rows` (None: all). -> rows, codes as columns, each token's column."""
  if rows is None:
    rows = jnp.arange(vocab, dtype=codes.dtype)
    return rows, codes, rows
  column_of = jnp.zeros((vocab,), codes.dtype).at[rows].set(jnp.arange(len(rows), dtype=codes.dtype))
  return rows, column_of[codes], column_of


def _takes(policy: Policy, budget: Budget, priority: Float[Array, "B"], turn: Int[Array, ""]) -> Bool[Array, "B"]:
  """Asks the policy about one position a row, at rank `turn`."""
  rank = jnp.full((priority.shape[0], 1), turn)
  return policy.takes(priority[:, None], rank, budget.quota[:, None])[:, 0] | (turn < budget.floor)
