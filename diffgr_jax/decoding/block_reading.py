"""Block decoding: what the model says of a block's open positions, and no logits of any other.

    block     7  M  9  M | M  M  M  M     two rows' blocks of 4: up to 4 positions are open, so 4 are unembedded
    block     7  M  9  5 | M  8  4  3     one each: a quarter of a block is enough for both

A pass needs the hidden states of all positions, but the unembedding, which is 40% of the products of a small model with
a large vocabulary, only where a token may be committed. The open positions of each row are moved to the front, as many
quarters of a block as the fullest row needs are unembedded (`lax.switch`: a program for each), and what is read off
the logits, a few numbers a position, is moved back.
"""

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffgr_jax.decoding.block_state import BlockOptions, Setting
from diffgr_jax.decoding.denoiser import log_probabilities, probability_of
from diffgr_jax.decoding.policies import Stats, position_stats
from diffgr_jax.decoding.sampling import draw_tokens, filtered
from diffgr_jax.models import inference
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import DecodingParams


@struct.dataclass
class Reading:
  """Of each position of a block; 0 where it was not read."""

  tokens: Int[Array, "B L"]  # to write there
  confidence: Float[Array, "B L"]  # their probabilities
  standing: Float[Array, "B L"]  # probability, now, of the token that stands there
  stats: Stats  # what policies look at


def read_block(
  config: TransformerConfig,
  params: DecodingParams,
  hidden: Float[Array, "B L D"],
  old: Int[Array, "B L"],
  token_keys: Key[Array, "B"],
  setting: Setting,
  options: BlockOptions,
) -> Reading:
  """Reads every position of a block.

  Args:
    config: of the model.
    params: laid out by `inference.decoding_params`.
    hidden: states that predict each position.
    old: what stands there.
    token_keys: one key a row, for drawing.
    setting: what is banned, and how tokens are drawn.
    options: of the decoder.
  """
  place = jnp.broadcast_to(jnp.arange(hidden.shape[1]), old.shape)
  return _read(config, params, hidden, old, place, token_keys, setting, options)


def read_open(
  config: TransformerConfig,
  params: DecodingParams,
  hidden: Float[Array, "B L D"],
  old: Int[Array, "B L"],
  open_: Bool[Array, "B L"],
  token_keys: Key[Array, "B"],
  setting: Setting,
  options: BlockOptions,
) -> Reading:
  """The same where `open_`: `read_block`, to rounding, in less time."""
  sizes = unembedded_sizes(hidden.shape[1])
  number = jnp.cumsum(open_, axis=-1) - 1  # of each open position in its row

  def read_first(size: int) -> Reading:
    is_nth = open_[:, None] & (number[:, None] == jnp.arange(size)[None, :, None])  # [B, size, L]
    place = jnp.argmax(is_nth, axis=-1).astype(jnp.int32)  # 0, and nothing of it is kept, if none
    few = jnp.take_along_axis(hidden, place[..., None], axis=1), jnp.take_along_axis(old, place, axis=1)
    reading = _read(config, params, *few, place, token_keys, setting, options)
    back = jnp.where(open_, number, 0)
    return jax.tree.map(lambda x: jnp.where(open_, jnp.take_along_axis(x, back, axis=1), 0), reading)

  needed = jnp.searchsorted(jnp.asarray(sizes), open_.sum(axis=-1).max())
  return jax.lax.switch(needed, [lambda size=size: read_first(size) for size in sizes])


def unembedded_sizes(block_size: int) -> tuple[int, ...]:
  """How many positions of a block may be unembedded: its quarters; all of a block too short for them to matter."""
  if block_size < 8 or block_size % 4:
    return (block_size,)
  return tuple(block_size * quarters // 4 for quarters in (1, 2, 3, 4))


def _read(
  config: TransformerConfig,
  params: DecodingParams,
  hidden: Float[Array, "B N D"],
  old: Int[Array, "B N"],
  place: Int[Array, "B N"],
  token_keys: Key[Array, "B"],
  setting: Setting,
  options: BlockOptions,
) -> Reading:
  logits = inference.logits(config, params, hidden)
  log_probs = log_probabilities(logits, setting.banned)
  tokens = draw_tokens(logits, setting.banned, setting.sampling, token_keys, place)
  judged = filtered(log_probs, setting.sampling) if options.judge == "filtered" else log_probs
  recorded = filtered(log_probs, setting.sampling) if options.records == "drawn" else judged
  return Reading(tokens, probability_of(recorded, tokens), probability_of(judged, old), position_stats(judged))
