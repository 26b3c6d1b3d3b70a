"""Conversion fine-tuning (CFT): masked diffusion on the assistant's message, block by block, in two streams.

Batch contract (made by data/packing.py, with align = block size): as for stages/sft.py; `target_at` names all slots of
the blocks that hold a token to be learned. Every such block draws its own corruption; its other positions are what they
are in decoding: the end of a prompt stands there clean, and what is behind the message's end is MASK (contract 10).

    clean stream x_0   p p p p | p r r r | r a a E | . . . .      all of the row: what a cache would hold
    noisy stream x_t             p M r M   r M M E                the blocks that are learned, and no others
    sees                         itself and every CLEAN block before it (models/attention.py, two_stream)

So the prompt is read once, clean, and logits are those of cached block decoding (contract 1). With `whole_stream` x_t
has a slot for every slot of the row, which the Splash kernel asks for (its mask is a rule on two equal halves).

Alignment. `same_position`: logit i predicts token i. `shifted`: logit i - 1 does, and the first position of a block is
read from the CLEAN token before it (contract 2), as in decoding: so a converted model keeps its autoregressive head.

Sources: BD3-LM (arXiv 2503.09573) for the two streams; Fast-dLLM v2 (arXiv 2509.26328) for complementary masks and the
shift; Diffusion-GR2 (arXiv 2607.01170) for the use. What it does not state is chosen here: clean context, the bound's
weights in each block, the parts' weights.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from diffgr_jax.data.parts import BEHIND
from diffgr_jax.diffusion.corruption import Process, draw, draw_complementary
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, Transformer, bind
from diffgr_jax.stages.sft import EVEN, TokenWeights, answer_nll, gather, target_weights, weighted_loss
from diffgr_jax.stages.stage import Batch, Metrics
from diffgr_jax.stages.two_stream import Clean, read_noisy


@dataclass(frozen=True)
class CftStage:
  """Masked diffusion in blocks on packed messages."""

  model: TransformerConfig
  process: Process
  block_size: int
  mask_id: int
  valid_size: int  # rows of the vocabulary in use
  weights: TokenWeights = EVEN
  antithetic: bool = True
  complementary: bool = False  # every block twice, the second time with the other positions masked
  whole_stream: bool = False  # x_t as long as x_0
  ce_chunk: int = 0

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Corrupts every block of the global batch; complementary rows stand behind the others."""
    weight = target_weights(batch, self.weights)
    blocks = lambda x: x.reshape(-1, self.block_size)
    x_0, target = gather(batch["tokens"], batch["target_at"]), _is_target(batch)
    how: dict[str, Any] = dict(mask_id=self.mask_id, target=blocks(target))
    if self.complementary:
      drawn = draw_complementary(key, blocks(x_0), **how)
    else:
      drawn = [draw(key, self.process, blocks(x_0), antithetic=self.antithetic, **how)]
    # Behind the end, and where there is no block, the noisy stream holds MASK, as a decoder's canvas does.
    masked = (gather(batch["part"], batch["target_at"]) == BEHIND) | (batch["target_at"] < 0)
    copies = [
      batch
      | {
        "x_t": jnp.where(masked, self.mask_id, one.x_t.reshape(x_0.shape)),
        "weight": weight * (one.corrupted * one.weight).reshape(x_0.shape),
      }
      for one in drawn
    ]
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *copies)
    return together, len(copies) * weight.sum()

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """The bound's weighted cross-entropy at the masked positions over the targets' weights, in nats a token."""
    del shared, row_count
    model = bind(self.model, params)
    read = self.read(model, batch)
    nll = answer_nll(model, read, gather(batch["tokens"], batch["target_at"]), self.valid_size, self.ce_chunk)
    return weighted_loss(nll, batch["weight"], batch, target_count)

  def read(self, model: Transformer, batch: Batch) -> Float[Array, "B N D"]:
    """The hidden state that each position of x_t is predicted from."""
    clean = Clean(batch["tokens"], batch["position"], batch["segment"])
    at = batch["target_at"]
    return read_noisy(model, clean, batch["x_t"], at, jnp.ones_like(at), self.block_size, self.whole_stream)


def _is_target(batch: Batch) -> Bool[Array, "B N"]:
  part = gather(batch["part"], batch["target_at"])
  return (batch["target_at"] >= 0) & (part > 0) & (part != BEHIND)
