"""Log-probabilities of trajectories: which canvases a generated token is scored on, and the passes that score it.

Batch contract: the fields of `Trajectories` (decoding/trajectory.py) by their names, and for block models `copy`: the C
passes of each trajectory that are replayed, in rising order, mostly 0 to C - 1. C is a shape, so that batches of a like
number of passes share a program.

    autoregressive   one causal pass; logit i - 1 scores token i
    replay           a noisy block for each pass of the decoder, as the pass saw it: MASK where it had not written yet.
                     All of them are read in one forward beside the clean row (two_stream.py), where decoding took one a
                     pass. The log-probabilities are the decoder's (TraceRL, arXiv 2509.06949; contract 8)

    step map of a block        1 0 1 2      copy 0   M M M M    scores b
    tokens                     a b c d      copy 1   M b M M    scores a and c
                                            copy 2   a b c M    scores d

Cheaper estimators score a block on canvases that the decoder never saw; all treat its tokens as if independent:

    mean_field   all of it masked (diffu-GRPO, arXiv 2504.12216; the prompt is not masked here: it is the clean stream)
    coupled      half of it, the other half, and all of it: the mean of the two readings of each token (coupled-GRPO,
                 arXiv 2506.20639)
    elbo         `draws` random canvases of k masks, weighted by (tokens of the block) / k: the bound of its likelihood
    sandwiched   the same where the advantage is positive, and an upper bound where it is negative, mixed with the lower
                 one (SPG, arXiv 2510.09541): lowering a lower bound proves nothing
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.trajectory import generated, is_generated
from diffgr_jax.models.attention import Layout
from diffgr_jax.models.transformer import Transformer
from diffgr_jax.stages.stage import Batch
from diffgr_jax.stages.two_stream import Clean, read_noisy

REPLAY, SANDWICHED = "replay", "sandwiched"
ESTIMATORS = (REPLAY, "mean_field", "coupled", "elbo", SANDWICHED)


@struct.dataclass
class Copies:
  """C noisy blocks of S positions for each row, and the K readings of each of its G generated tokens."""

  block: Int[Array, "B C"]  # which block of the row; -1: none
  hidden: Bool[Array, "B C S"]  # MASK stands there
  copy: Int[Array, "B K G"]  # where a token is read
  weight: Float[Array, "B K G"]  # 0: it is not


def causal_states(model: Transformer, batch: Batch, room: int) -> Float[Array, "B G D"]:
  """The hidden states that predict the generated tokens, of an autoregressive model."""
  tokens = batch["tokens"]
  position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  layout = Layout(position, jnp.ones_like(tokens), jnp.zeros_like(tokens))
  hidden = model(tokens, layout, pattern="causal", aligned=True)
  return generated(hidden, batch["start"] - 1, room)


def copied_states(
  model: Transformer, batch: Batch, copies: Copies, block_size: int, mask_id: int
) -> Float[Array, "B K G D"]:
  """The same of a block-diffusion model, on noisy blocks."""
  tokens = batch["tokens"]
  (rows, count), (_, readings, room) = copies.block.shape, copies.copy.shape
  slots = copies.block[..., None] * block_size + jnp.arange(block_size)[None, None]
  at = jnp.where(copies.block[..., None] >= 0, slots, -1).reshape(rows, -1)
  x_t = jnp.take_along_axis(tokens, jnp.maximum(at, 0), axis=1)
  x_t = jnp.where(copies.hidden.reshape(rows, -1), mask_id, x_t)
  stream = jnp.broadcast_to(jnp.arange(1, count + 1).repeat(block_size)[None], at.shape)
  position = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
  read = read_noisy(model, Clean(tokens, position, jnp.ones_like(tokens)), x_t, at, stream, block_size)
  offset = (batch["start"][:, None] + jnp.arange(room)[None]) % block_size
  place = (copies.copy * block_size + offset[:, None]).reshape(rows, -1)
  return jnp.take_along_axis(read, place[..., None], axis=1).reshape(rows, readings, room, -1)


def token_log_probs(
  model: Transformer,
  states: Float[Array, "B N D"],
  tokens: Int[Array, "B N"],
  banned: Bool[Array, "V"],
  temperature: float,
) -> Float[Array, "B N"]:
  """log p of tokens under the distribution that they were drawn from."""
  log_probs = log_probabilities(model.logits(states) / temperature, banned)
  return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


# --- the canvases of an estimator ---


def replayed_copies(batch: Batch, block_size: int, room: int) -> Copies:
  """The canvases of the decoder's passes that `copy` names, in their order. Passes that wrote nothing have none."""
  step, passes = batch["step"], batch["copy"]
  rows = len(step)
  of_blocks = step.reshape(rows, 1, -1, block_size)
  wrote = (of_blocks == passes[..., None, None]).any(axis=-1)  # [B, C, blocks]
  block = jnp.where(wrote.any(axis=-1), wrote.argmax(axis=-1), -1)
  own = jnp.take_along_axis(of_blocks[:, 0], jnp.maximum(block, 0)[..., None], axis=1)
  of_token = generated(step, batch["start"], room)
  copy = jnp.minimum(jax.vmap(jnp.searchsorted)(passes, of_token), passes.shape[1] - 1)
  weight = is_generated(batch["length"], room) & (jnp.take_along_axis(passes, copy, axis=1) == of_token)
  return Copies(block, own >= passes[..., None], copy[:, None], weight[:, None].astype(jnp.float32))


def drawn_copies(batch: Batch, block_size: int, room: int, estimator: str, draws: int) -> Copies:
  """Canvases that do not depend on how the tokens came about, drawn by each row's `row_seed`."""
  blocks = -(-(block_size - 1 + room) // block_size)
  first, end = batch["start"] // block_size, batch["start"] + batch["length"]
  block = first[:, None] + jnp.arange(blocks)[None]
  place = (block[..., None] * block_size + jnp.arange(block_size)[None, None]).reshape(len(first), -1)
  behind, is_token = place >= end[:, None], (place >= batch["start"][:, None]) & (place < end[:, None])
  drawn = jax.vmap(lambda seed, own: _masks(jax.random.key(seed), own, blocks, estimator, draws))
  masked, weight = drawn(batch["row_seed"], is_token)  # [B, K, blocks * S]
  hidden = (masked & is_token[:, None]) | behind[:, None]
  there = block * block_size < end[:, None]
  every = lambda x: jnp.broadcast_to(x[:, None], (len(first), masked.shape[1], *x.shape[1:]))
  offset = (batch["start"] % block_size)[:, None] + jnp.arange(room)[None]
  copy = jnp.arange(masked.shape[1])[None, :, None] * blocks + (offset // block_size)[:, None]
  weight = jnp.take_along_axis(weight * masked, every(offset), axis=2) * is_generated(batch["length"], room)[:, None]
  return Copies(
    every(jnp.where(there, block, -1)).reshape(len(first), -1),
    hidden.reshape(len(first), -1, block_size),
    copy,
    weight,
  )


def _masks(
  key: Key[Array, ""], is_token: Bool[Array, "N"], blocks: int, estimator: str, draws: int
) -> tuple[Bool[Array, "K N"], Float[Array, "K N"]]:
  """Which positions each canvas of a row masks, and what a token counts that is read there."""
  of_blocks = is_token.reshape(blocks, -1)
  ones = jnp.ones((1, is_token.size), bool)
  if estimator == "mean_field":
    return ones, ones.astype(jnp.float32)
  count = of_blocks.sum(axis=1)
  one = lambda key: _k_of_each(key, of_blocks, count)
  if estimator == "coupled":
    half, _ = one(key)
    masked = jnp.concatenate([half[None], ~half[None], ones])
    return masked, jnp.full(masked.shape, 0.5)
  masked, k = jax.vmap(one)(jax.random.split(key, draws))
  weight = (count[None] / jnp.maximum(k, 1)).repeat(of_blocks.shape[1], axis=1) / draws
  return masked, weight


def _k_of_each(
  key: Key[Array, ""], is_token: Bool[Array, "blocks S"], count: Int[Array, "blocks"]
) -> tuple[Bool[Array, "N"], Int[Array, "blocks"]]:
  """k of each block's tokens, k uniform in 1 .. their number (contract 7)."""
  how_many, which = jax.random.split(key)
  k = 1 + jnp.floor(jax.random.uniform(how_many, count.shape) * count).astype(jnp.int32)
  k = jnp.minimum(k, count)
  noise = jnp.where(is_token, jax.random.uniform(which, is_token.shape), 2.0)
  rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
  return (rank < k[:, None]).reshape(-1), k


def combined(
  log_probs: Float[Array, "B K G"],
  weight: Float[Array, "B K G"],
  estimator: str,
  advantage: Float[Array, "B"],
  beta: float,
  mix: float,
) -> Float[Array, "B G"]:
  """The readings of each token as one number: their weighted sum, a lower bound; or for `sandwiched`, by the advantage.

  The upper bound is log(sum of weight * p^beta) / beta (SPG, equation of EUBO), of the tokens that were read.
  """
  lower = (weight * jnp.where(weight > 0, log_probs, 0.0)).sum(axis=1)
  if estimator != SANDWICHED:
    return lower
  read = weight.sum(axis=1) > 0
  powers = jnp.where(weight > 0, jnp.log(jnp.maximum(weight, 1e-20)) + beta * log_probs, -jnp.inf)
  upper = jnp.where(read, jax.nn.logsumexp(jnp.where(read[:, None], powers, 0.0), axis=1) / beta, 0.0)
  return jnp.where(advantage[:, None] < 0, mix * upper + (1.0 - mix) * lower, lower)
