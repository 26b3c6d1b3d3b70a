"""Cross-entropy of token ids, plain and in vocabulary chunks.

With a batch of T tokens and a vocabulary of V rows the logits are T x V floats, often the largest array of a training
step. `chunked_token_nll` walks over the unembedding in chunks of rows and keeps, per token, only a running maximum, a
running sum of exponentials and the target's logit:

    unembedding   [ chunk 0 | chunk 1 | ... | chunk n-1 ]      V rows; the rows from valid_size on are padding
    logits        T x chunk, one at a time                     log sum exp = maximum + log(sum)

The backward pass computes each chunk's logits again, from which exp(logit - logsumexp) is the probability, so neither
pass holds T x V. The price is one more matrix product per chunk.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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

  Raises:
    ValueError: valid_size is not in [1, V], or chunk is below 1.
  """
  rows = unembedding.shape[0]
  if not 1 <= valid_size <= rows:
    raise ValueError(f"valid_size is between 1 and the {rows} rows of the unembedding, not {valid_size}")
  if chunk < 1:
    raise ValueError(f"chunk is a number of vocabulary rows, at least 1, not {chunk}")
  return _chunked_nll(valid_size, min(chunk, rows), hidden, unembedding, bias, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_nll(valid_size, chunk, hidden, unembedding, bias, targets):
  return _forward(valid_size, chunk, hidden, unembedding, bias, targets)[0]


def _forward(valid_size, chunk, hidden, unembedding, bias, targets):
  tokens = hidden.shape[0]

  def body(carry, index):
    maximum, total, at_target = carry
    logits, column = _chunk_logits(index, valid_size, chunk, hidden, unembedding, bias)
    new_maximum = jnp.maximum(maximum, logits.max(axis=-1))
    total = total * jnp.exp(maximum - new_maximum) + jnp.exp(logits - new_maximum[:, None]).sum(axis=-1)
    is_target = (column[None, :] == targets[:, None]) & jnp.isfinite(logits)
    found = jnp.where(is_target, logits, -jnp.inf).max(axis=-1)
    return (new_maximum, total, jnp.maximum(at_target, found)), None

  lowest = jnp.full((tokens,), -jnp.inf, jnp.float32)
  start = (lowest, jnp.zeros((tokens,), jnp.float32), lowest)
  (maximum, total, at_target), _ = jax.lax.scan(body, start, jnp.arange(_chunks(valid_size, chunk)))
  log_sum = maximum + jnp.log(total)
  return log_sum - at_target, (hidden, unembedding, bias, targets, log_sum)


def _backward(valid_size, chunk, residuals, cotangent):
  hidden, unembedding, bias, targets, log_sum = residuals
  tokens_f32 = hidden.astype(jnp.float32)

  def body(carry, index):
    d_hidden, d_unembedding, d_bias = carry
    logits, column = _chunk_logits(index, valid_size, chunk, hidden, unembedding, bias)
    probability = jnp.exp(logits - log_sum[:, None])  # 0 where the logit is -inf
    is_target = (column[None, :] == targets[:, None]) & jnp.isfinite(logits)
    d_logits = (probability - is_target.astype(jnp.float32)) * cotangent[:, None]
    start = _start(index, chunk, unembedding.shape[0])
    weights = jax.lax.dynamic_slice_in_dim(unembedding, start, chunk).astype(jnp.float32)
    d_hidden = d_hidden + d_logits @ weights
    d_unembedding = _add_rows(d_unembedding, d_logits.T @ tokens_f32, start)
    if d_bias is not None:
      d_bias = _add_rows(d_bias, d_logits.sum(axis=0), start)
    return (d_hidden, d_unembedding, d_bias), None

  zeros = (
    jnp.zeros(hidden.shape, jnp.float32),
    jnp.zeros_like(unembedding),  # each row gets its gradient once, so its own dtype loses nothing more
    None if bias is None else jnp.zeros_like(bias),
  )
  (d_hidden, d_unembedding, d_bias), _ = jax.lax.scan(body, zeros, jnp.arange(_chunks(valid_size, chunk)))
  return d_hidden.astype(hidden.dtype), d_unembedding, d_bias, None


_chunked_nll.defvjp(_forward, _backward)


def _chunks(valid_size: int, chunk: int) -> int:
  return -(-valid_size // chunk)


def _start(index, chunk: int, rows: int):
  """First row of a chunk. The last chunk is moved back to end at the last row rather than padded."""
  return jnp.minimum(index * chunk, rows - chunk)


def _chunk_logits(index, valid_size, chunk, hidden, unembedding, bias):
  """Logits of one chunk and its rows' ids; -inf for padding and for rows that the chunk before already had."""
  start = _start(index, chunk, unembedding.shape[0])
  weights = jax.lax.dynamic_slice_in_dim(unembedding, start, chunk)
  logits = jnp.einsum("td,cd->tc", hidden, weights, preferred_element_type=jnp.float32)
  if bias is not None:
    logits = logits + jax.lax.dynamic_slice_in_dim(bias, start, chunk).astype(jnp.float32)[None, :]
  column = start + jnp.arange(chunk)
  live = (column >= index * chunk) & (column < valid_size)
  return jnp.where(live[None, :], logits, -jnp.inf), column


def _add_rows(whole, part, start):
  """whole[start : start + len(part)] += part; the rows that two chunks share get zero from the second."""
  length = part.shape[0]
  old = jax.lax.dynamic_slice_in_dim(whole, start, length)
  return jax.lax.dynamic_update_slice_in_dim(whole, old + part.astype(whole.dtype), start, axis=0)
