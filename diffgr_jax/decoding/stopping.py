"""Where an answer ends: EOS and stop sequences, as token ids.

    stops      (7,)  (3, 4)         one table, left-padded with ANY:   ANY  7
    tokens     5  3  9  3  4  8                                          3  4
    ends       .  .  .  .  x  .     True at the last token of a stop sequence

EOS is the stop sequence of one token. A stop sequence counts only if all of its tokens were generated.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import numpy as np

ANY = -1  # matches every token


def stop_table(stops: Sequence[Sequence[int]]) -> Int[Array, "K M"]:
  """One row a stop sequence, left-padded with ANY. No sequences make a table without rows, which stops nothing.

  Raises:
    ValueError: a stop sequence without tokens.
  """
  if any(not len(stop) for stop in stops):
    raise ValueError("a stop sequence holds at least 1 token; got an empty one")
  width = max((len(stop) for stop in stops), default=1)
  table = np.full((len(stops), width), ANY, np.int32)
  for row, stop in zip(table, stops, strict=True):
    row[width - len(stop) :] = stop
  return jnp.asarray(table)


def stop_ends(tokens: Int[Array, "B T"], generated: Bool[Array, "B T"], table: Int[Array, "K M"]) -> Bool[Array, "B T"]:
  """Marks the last token of every stop sequence that lies wholly in `generated`."""
  width = table.shape[1]
  match = jnp.ones((*tokens.shape, table.shape[0]), bool)
  for back in range(width):
    wanted = table[:, width - 1 - back][None, None, :]
    there = jnp.pad(generated, ((0, 0), (back, 0)))[:, : tokens.shape[1], None]
    token = jnp.pad(tokens, ((0, 0), (back, 0)))[:, : tokens.shape[1], None]
    match &= (wanted == ANY) | (there & (token == wanted))
  return match.any(axis=-1)


def first_stop(ends: Bool[Array, "B T"], settled: Bool[Array, "B T"]) -> Bool[Array, "B"]:
  """Finds the rows with a stop before which nothing is open any more: what follows it cannot matter."""
  settled_so_far = jnp.cumsum(~settled, axis=-1) == 0
  return (ends & settled_so_far).any(axis=-1)


def after_stop(ends: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
  """Marks what stands behind the first stop."""
  return jnp.cumsum(ends, axis=-1) - ends > 0
