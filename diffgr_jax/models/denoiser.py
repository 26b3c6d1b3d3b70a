"""A transformer as the decoders see it: prompt and canvas in, logits of the canvas out.

    prompt (left-padded)      canvas
    .  .  BOS q1 q2 SEP   |   M  M  M  M        one bidirectional pass; logits are taken at the canvas only
    0  0   0  0  0   0    |   1  2  3  4        slots: which place of the DocID a position is, as a learned vector

Without slots an all-masked canvas is the same vector everywhere, and positions must tell its places apart. Rotary ones
do, by their distance to the prompt. A learned table (BERT) knows no distances: there the canvas always stands at the
positions from the prompt's width on, however long the query is, so that a place of the DocID has one position vector.

    . . . BOS q1 SEP | M M M        rotary:  . . . 0 1 2 | 3 4 5        learned:  . . . 0 1 2 | 6 7 8
    . BOS q1 q2 q3 SEP | M M M               . 0 1 2 3 4 | 5 6 7                  . 0 1 2 3 4 | 6 7 8
"""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, Transformer, bind
from diffgr_jax.parallel.rules import constrain


@dataclass(frozen=True)
class CanvasDenoiser:
  """The bidirectional denoiser of DocID retrieval; equal values hash equal, so decoders compile once for each.

  A `shifted` model (logit i-1 predicts token i) is read one position to the left, beginning at the prompt's last token.
  """

  config: TransformerConfig
  pad_id: int
  slots: bool = False  # canvas position l carries token type l + 1: the config has a row for each and for the prompt

  def features(
    self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]
  ) -> tuple[Transformer, Float[Array, "B L D"]]:
    """The bound model and what its unembedding multiplies at each canvas position (a loss may chunk the vocabulary)."""
    model = bind(self.config, params)
    tokens = jnp.concatenate([prompt, canvas], axis=-1)
    valid = jnp.concatenate([prompt != self.pad_id, jnp.ones_like(canvas, dtype=bool)], axis=-1)
    layout = padded_layout(valid)
    if self.config.position_encoding == "learned":
      fixed = jnp.broadcast_to(prompt.shape[1] + jnp.arange(canvas.shape[1]), canvas.shape)
      layout = dataclasses.replace(layout, position=layout.position.at[:, prompt.shape[1] :].set(fixed))
    types = None
    if self.slots:
      slot = jnp.concatenate([jnp.zeros(prompt.shape[1], jnp.int32), 1 + jnp.arange(canvas.shape[1])])
      types = jnp.broadcast_to(slot[None], tokens.shape)
    hidden = model(tokens, layout, pattern="bidirectional", token_types=types)
    first = prompt.shape[1] - (self.config.alignment == "shifted")
    at_canvas = hidden[:, first : first + canvas.shape[1]]
    at_canvas = constrain(at_canvas, "hidden states of the canvas", ("batch", "canvas", "features"), self.config.rules)
    return model, model.output_features(at_canvas)

  def __call__(self, params: Params, prompt: Int[Array, "B P"], canvas: Int[Array, "B L"]) -> Float[Array, "B L V"]:
    model, features = self.features(params, prompt, canvas)
    return model.project(features)
