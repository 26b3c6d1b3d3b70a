"""Cross-entropy of token ids, plain and in vocabulary chunks.

With a batch of T tokens and a vocabulary of V rows the logits are T x V floats, often the largest array of a training
step. `chunked_token_nll` walks over the unembedding in chunks of rows and keeps, per token, only a running maximum, a
running sum of exponentials and the target's logit:

    unembedding   [ chunk 0 | chunk 1 | ... | chunk n-1 ]      V rows; the rows from valid_size on are padding
    logits        T x chunk, one at a time                     log sum exp = maximum + log(sum)

The backward pass computes each chunk's logits again, from which exp(logit - logsumexp) is the probability, so neither
pass holds T x V. The price is one more matrix product per chunk.

On a mesh that splits the vocabulary over S devices, a chunk takes an S-th of its rows from every device, so that all of
them work on it and the unembedding stays where it is (here S = 2, n = 2):

    device 0      [ chunk 0 | chunk 1 ]      rows 0 .. V/2 - 1
    device 1      [ chunk 0 | chunk 1 ]      rows V/2 .. V - 1
"""

from dataclasses import dataclass
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.parallel.rules import Rules, constrain, frozen_rules, split_of


def token_nll(
  logits: Float[Array, "B L V"], targets: Int[Array, "B L"], valid_size: int | None = None
) -> Float[Array, "B L"]:
  """-log softmax(logits)[target], in float32 and in nats.

  Args:
    logits: scores of all vocabulary rows.
    targets: token ids.
    valid_size: rows in use; the rows from there on (padding) are left out of the softmax. None: all are in use.
  """
  logits = logits.astype(jnp.float32)
  if valid_size is not None:
    logits = jnp.where(jnp.arange(logits.shape[-1])[None, None, :] < valid_size, logits, -jnp.inf)
  at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - at_target


def chunked_token_nll(
  hidden: Float[Array, "T D"],
  unembedding: Float[Array, "V D"],
  bias: Float[Array, "V"] | None,
  targets: Int[Array, "T"],
  valid_size: int,
  chunk: int,
  rules: Rules = (),
) -> Float[Array, "T"]:
  """`token_nll` of hidden @ unembedding.T + bias, without ever holding all logits.

  Logits, reductions and the sums of the gradients are float32 whatever the inputs' dtypes; the gradients are returned
  in the dtypes of hidden, unembedding and bias.

  Args:
    hidden: the last layer's output, one row per token.
    unembedding: one row per vocabulary entry.
    bias: added to the logits, or None.
    targets: token ids below valid_size (at or above it the result is +inf).
    valid_size: rows in use; the rows from there on are left out of the softmax and get no gradient.
    chunk: vocabulary rows taken at a time; need not divide V.
    rules: on a mesh, where rows, columns and tokens lie (parallel/rules.py).

  Raises:
    ValueError: valid_size is not in [1, V], or chunk is below 1.
  """
  rows = unembedding.shape[0]
  if not 1 <= valid_size <= rows:
    raise ValueError(f"valid_size is between 1 and the {rows} rows of the unembedding, not {valid_size}")
  if chunk < 1:
    raise ValueError(f"chunk is a number of vocabulary rows, at least 1, not {chunk}")
  shards = split_of("vocab", rules)
  if rows % shards:
    raise ValueError(f"the {rows} rows of the unembedding cannot be split over {shards} devices")
  part = _Part(rows // shards, min(-(-chunk // shards), rows // shards), valid_size, frozen_rules(rules))
  by_device = unembedding.reshape(shards, part.rows, -1)
  return _chunked_nll(part, hidden, by_device, None if bias is None else bias.reshape(shards, -1), targets)


@dataclass(frozen=True)
class _Part:
  """What a device has of the vocabulary, and takes of it at a time."""

  rows: int
  chunk: int
  valid_size: int  # of the whole vocabulary
  rules: Rules

  @property
  def chunks(self) -> int:
    return -(-min(self.rows, self.valid_size) // self.chunk)

  def start(self, index: Int[Array, ""]) -> Int[Array, ""]:
    """First row of a chunk. The last chunk is moved back to end at the last row rather than padded."""
    return jnp.minimum(index * self.chunk, self.rows - self.chunk)

  def take(self, whole: Array, index: Int[Array, ""]) -> Array:
    """A chunk of the rows of every device (dimension 1), complete in its other dimensions."""
    rows = jax.lax.dynamic_slice_in_dim(whole, self.start(index), self.chunk, axis=1)
    return constrain(rows, "unembedding", ("vocab", None, None)[: rows.ndim], self.rules)

  def add(self, whole: Array, rows: Array, index: Int[Array, ""]) -> Array:
    """`whole` with the rows of a chunk added; the rows that two chunks share get zero from the second."""
    axes = ("vocab", None, "embed")[: rows.ndim]
    rows = constrain(rows.astype(whole.dtype), "gradient of the unembedding", axes, self.rules)
    start = self.start(index)
    old = jax.lax.dynamic_slice_in_dim(whole, start, self.chunk, axis=1)
    added = jax.lax.dynamic_update_slice_in_dim(whole, old + rows, start, axis=1)
    return constrain(added, "gradient of the unembedding", axes, self.rules)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_nll(part, hidden, unembedding, bias, targets):
  return _forward(part, hidden, unembedding, bias, targets)[0]


def _forward(part, hidden, unembedding, bias, targets):
  tokens = hidden.shape[0]

  def body(carry, index):
    maximum, total, at_target = carry
    logits, column = _chunk_logits(part, index, hidden, unembedding, bias)
    new_maximum = jnp.maximum(maximum, logits.max(axis=(1, 2)))
    total = total * jnp.exp(maximum - new_maximum) + jnp.exp(logits - new_maximum[:, None, None]).sum(axis=(1, 2))
    is_target = (column[None] == targets[:, None, None]) & jnp.isfinite(logits)
    found = jnp.where(is_target, logits, -jnp.inf).max(axis=(1, 2))
    return (new_maximum, total, jnp.maximum(at_target, found)), None

  lowest = jnp.full((tokens,), -jnp.inf, jnp.float32)
  start = (lowest, jnp.zeros((tokens,), jnp.float32), lowest)
  (maximum, total, at_target), _ = jax.lax.scan(body, start, jnp.arange(part.chunks))
  log_sum = maximum + jnp.log(total)
  return log_sum - at_target, (hidden, unembedding, bias, targets, log_sum)


def _backward(part, residuals, cotangent):
  hidden, unembedding, bias, targets, log_sum = residuals
  tokens_f32 = hidden.astype(jnp.float32)

  def body(carry, index):
    d_hidden, d_unembedding, d_bias = carry
    logits, column = _chunk_logits(part, index, hidden, unembedding, bias)
    probability = jnp.exp(logits - log_sum[:, None, None])  # 0 where the logit is -inf
    is_target = (column[None] == targets[:, None, None]) & jnp.isfinite(logits)
    d_logits = (probability - is_target.astype(jnp.float32)) * cotangent[:, None, None]
    d_hidden = d_hidden + jnp.einsum("tsc,scd->td", d_logits, part.take(unembedding, index).astype(jnp.float32))
    d_unembedding = part.add(d_unembedding, jnp.einsum("tsc,td->scd", d_logits, tokens_f32), index)
    if d_bias is not None:
      d_bias = part.add(d_bias, d_logits.sum(axis=0), index)
    return (d_hidden, d_unembedding, d_bias), None

  zeros = (
    jnp.zeros(hidden.shape, jnp.float32),
    jnp.zeros_like(unembedding),  # each row gets its gradient once, so its own dtype loses nothing more
    None if bias is None else jnp.zeros_like(bias),
  )
  (d_hidden, d_unembedding, d_bias), _ = jax.lax.scan(body, zeros, jnp.arange(part.chunks))
  return d_hidden.astype(hidden.dtype), d_unembedding, d_bias, None


_chunked_nll.defvjp(_forward, _backward)


def _chunk_logits(part, index, hidden, unembedding, bias):
  """Logits of one chunk, [T, S, C], and its rows' ids, [S, C].

  They are -inf for padding and for rows that the chunk before already had.
  """
  logits = jnp.einsum("td,scd->tsc", hidden, part.take(unembedding, index), preferred_element_type=jnp.float32)
  logits = constrain(logits, "logits", ("batch", "vocab", None), part.rules)
  if bias is not None:
    logits = logits + part.take(bias, index).astype(jnp.float32)[None]
  row = part.start(index) + jnp.arange(part.chunk)
  column = jnp.arange(unembedding.shape[0])[:, None] * part.rows + row[None, :]
  live = (row >= index * part.chunk)[None, :] & (column < part.valid_size)
  return jnp.where(live[None], logits, -jnp.inf), column
