"""A transformer as the decoders see it: prompt and canvas in, logits of the canvas out.

    prompt (left-padded)      canvas
    .  .  BOS q1 q2 SEP   |   M  M  M  M        one bidirectional pass; logits are taken at the canvas only
    0  0   0  0  0   0    |   1  2  3  4        slots: which place of the DocID a position is, as a learned vector

Without slots an all-masked canvas is the same vector everywhere, and positions must tell its places apart. Rotary ones
do, by their distance to the prompt. A learned table (BERT) knows no distances: there the canvas always stands at the
positions from the prompt's width on, however long the query is, so that a place of the DocID has one position vector.

    . . . BOS q1 SEP | M M M        rotary:  . . . 0 1 2 | 3 4 5        learned:  . . . 0 1 2 | 6 7 8
    . BOS q1 q2 q3 SEP | M M M               . 0 1 2 3 4 | 5 6 7                  . 0 1 2 3 4 | 6 7 8

The autoregressive rival is the same model with `prefix_causal` attention, shifted, on a canvas that holds the DocID
itself (process "clean"): logit l is then that of log p(token l | query, tokens before l), at the positions that its
decoders count.

A canvas of learned DocIDs holds at level l one of that level's K codes and never anything else. So its tokens are the
codes themselves, 0 to K - 1, with MASK as K, and logits are K + 1 columns instead of the whole vocabulary:

    canvas of codes       3        K        0
    token of the model    <d0_3>   MASK     <d2_0>

With a code head and `first_pass="prompt"` an all-masked canvas says nothing by definition: its logits are those of the
query, and one pass reads the prompt alone, which is a small part of prompt and canvas. What the canvas says counts as
soon as something on it is visible.

    all masked        BOS q1 q2 SEP                  query . centroids
    partly filled     BOS q1 q2 SEP | 3 M M M        query . centroids + hidden . rows
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.encoder import mean_pool, unit_length
from diffgr_jax.models.transformer import Params, Transformer, bind
from diffgr_jax.parallel.rules import constrain

LOWEST_LOGIT = -1e30  # stands for -inf, so that a distribution over the allowed tokens always exists


@dataclass(frozen=True)
class CanvasDenoiser:
  """The bidirectional denoiser of DocID retrieval; equal values hash equal, so decoders compile once for each.

  A `shifted` model (logit i-1 predicts token i) is read one position to the left, beginning at the prompt's last token.
  """

  config: TransformerConfig
  pad_id: int
  slots: bool = False  # canvas position l carries token type l + 1: the config has a row for each and for the prompt
  pattern: str = "bidirectional"  # bidirectional | prefix: the prompt does not see the canvas | prefix_causal

  def features(
    self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]
  ) -> tuple[Transformer, Float[Array, "B L D"]]:
    """The bound model and what its unembedding multiplies at each canvas position (a loss may chunk the vocabulary)."""
    model = bind(self.config, params)
    _, hidden = self.read(model, prompt, canvas)
    return model, model.output_features(hidden)

  def __call__(self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> Float[Array, "B L V"]:
    model, features = self.features(params, prompt, canvas)
    return model.project(features)

  def read(
    self, model: Transformer, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]
  ) -> tuple[Float[Array, "B P D"], Float[Array, "B L D"]]:
    """One pass: the hidden states of the prompt, and those that the canvas' logits are read from."""
    width, length = prompt.shape[1], canvas.shape[1]
    tokens = jnp.concatenate([prompt, canvas], axis=-1)
    valid = jnp.concatenate([prompt != self.pad_id, jnp.ones_like(canvas, dtype=bool)], axis=-1)
    layout = padded_layout(valid)
    layout = dataclasses.replace(layout, stream=layout.stream.at[:, width:].set(1))
    if self.config.position_encoding == "learned" and self.pattern != "prefix_causal":
      fixed = jnp.broadcast_to(width + jnp.arange(length), canvas.shape)
      layout = dataclasses.replace(layout, position=layout.position.at[:, width:].set(fixed))
    types = None
    if self.slots:
      slot = jnp.concatenate([jnp.zeros(width, jnp.int32), 1 + jnp.arange(length)])
      types = jnp.broadcast_to(slot[None], tokens.shape)
    hidden = model(tokens, layout, pattern=self.pattern, token_types=types)
    first = width - (self.config.alignment == "shifted")
    at_canvas = hidden[:, first : first + length]
    at_canvas = constrain(at_canvas, "hidden states of the canvas", ("batch", "canvas", "features"), self.config.rules)
    return hidden[:, :width], at_canvas


@dataclass(frozen=True)
class CodeDenoiser:
  """The denoiser of learned DocIDs: a canvas of codes in, logits of every level's codes out.

  Without a code head of its own (config.code_levels), the rows of the codes in the token table are the output, tied.
  """

  canvas: CanvasDenoiser
  mask_token: int  # MASK in the model's vocabulary
  first_code: int  # the vocabulary's row of code 0 of level 0; the levels follow one another
  size: int  # K: codes a level, and so the canvas' MASK

  @property
  def config(self) -> TransformerConfig:
    return self.canvas.config

  def __call__(self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> Float[Array, "B L V"]:
    """Logits of K + 1 columns; MASK's own is the lowest number."""
    model = bind(self.config, params)
    prompt_hidden, hidden = self.canvas.read(model, prompt, self.tokens(canvas))
    if self.config.code_levels:
      if self.config.first_pass == "prompt":
        visible = (canvas != self.size).any(axis=-1)
        hidden = jnp.where(visible[:, None, None], hidden, 0.0)
      logits = model.code_head(self._query(prompt_hidden, prompt), hidden, prompt)
    else:
      matrix, bias = model.unembedding()
      rows = lambda table: table[self.first_code : self.first_code + canvas.shape[1] * self.size]
      matrix = rows(matrix).reshape(canvas.shape[1], self.size, -1)
      features = model.output_features(hidden)
      logits = jnp.einsum("bld,lkd->blk", features, matrix.astype(features.dtype), preferred_element_type=jnp.float32)
      if bias is not None:
        logits = logits + rows(bias).reshape(1, canvas.shape[1], self.size).astype(jnp.float32)
    return _with_mask(logits)

  def all_masked(self, params: Params, prompt: Int[Array, "B P"], length: int) -> Float[Array, "B {length} V"]:
    """The logits where all of a canvas of `length` levels is masked, from as little as the model needs for them."""
    if self.config.first_pass == "canvas":
      return self(params, prompt, jnp.full((len(prompt), length), self.size, jnp.int32))
    model = bind(self.config, params)
    prompt_hidden, _ = self.canvas.read(model, prompt, jnp.zeros((len(prompt), 0), jnp.int32))
    return _with_mask(model.code_head(self._query(prompt_hidden, prompt), None, prompt))

  def _query(self, prompt_hidden: Float[Array, "B P D"], prompt: Int[Array, "B P"]) -> Float[Array, "B D"]:
    return unit_length(mean_pool(prompt_hidden, prompt != self.canvas.pad_id))

  def tokens(self, canvas: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """A canvas of codes as tokens of the model's vocabulary."""
    token = self.first_code + self.size * jnp.arange(canvas.shape[1])[None] + canvas
    return jnp.where(canvas == self.size, self.mask_token, token).astype(jnp.int32)


def _with_mask(logits: Float[Array, "B L K"]) -> Float[Array, "B L V"]:
  """Logits of the codes, with a column for MASK."""
  return jnp.pad(logits, ((0, 0), (0, 0), (0, 1)), constant_values=LOWEST_LOGIT)
