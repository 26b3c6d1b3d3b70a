"""Supervised fine-tuning of an autoregressive model on messages: the assistant's part, token by token.

Batch contract (made by data/packing.py, with align 1): `tokens`, `position`, `segment`, `part` Int[B, T], `target_at`
Int[B, N], the slots of the tokens to be learned, -1 behind the last. Reasoning and answer weigh apart (GR2, arXiv
2602.07774: the reasoning less than the answer); parts are those of rerank/chat.py.

    slots        0    1   2   3   4   5   6
    tokens       [BOS] p  [SEP] r  r  a  [EOS]       target_at  3 4 5 6
    read from             ----- -- -- --             logit i - 1 predicts token i

Mid-training is the same stage on other examples. Logits are computed at the targets alone.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from diffgr_jax.diffusion.cross_entropy import chunked_token_nll, token_nll
from diffgr_jax.models.attention import Layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, Transformer, bind
from diffgr_jax.stages.stage import Batch, Metrics

PARTS = ("prompt", "reasoning", "answer", "end")  # rerank/chat.py, Part


@dataclass(frozen=True)
class TokenWeights:
  """What the tokens of a message weigh in the loss: by their part, and where a reasoning names a candidate.

      reasoning      so  b <c3> <c7>  comes first   ...  then  d <c1> <c4>
      weight         1  10    1    1      1     1          1  10    1    1       choice = 10

  A candidate's label is where the choice is made: a token or three of a hundred and fifty, in a loss of which most is
  wording. It is a label of the template before an ID; templates without labels have no choice to weigh.
  """

  reasoning: float = 1.0
  answer: float = 1.0
  end: float = 1.0
  choice: float = 1.0
  labels: tuple[int, ...] = ()  # the labels' tokens
  first_codes: tuple[int, int] = (0, 0)  # the tokens of an ID's first code: from, up to


EVEN = TokenWeights()


@dataclass(frozen=True)
class SftStage:
  """Teacher forcing on packed messages."""

  model: TransformerConfig
  valid_size: int  # rows of the vocabulary in use
  weights: TokenWeights = EVEN
  ce_chunk: int = 0  # vocabulary rows a chunk of the cross-entropy; 0 holds the logits of all targets at once

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Nothing is drawn; counts the targets' weights."""
    del key
    weight = target_weights(batch, self.weights)
    return batch | {"weight": weight}, weight.sum()

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """Weighted cross-entropy over the targets' weights, in nats a token."""
    del shared, row_count
    model = bind(self.model, params)
    layout = Layout(batch["position"], batch["segment"], jnp.zeros_like(batch["segment"]))
    hidden = model(batch["tokens"], layout, pattern="causal", aligned=True)
    read = gather(hidden, batch["target_at"] - 1)
    nll = answer_nll(model, read, gather(batch["tokens"], batch["target_at"]), self.valid_size, self.ce_chunk)
    return weighted_loss(nll, batch["weight"], batch, target_count)


def gather(x: Array, at: Int[Array, "B N"]) -> Array:
  """The slots `at` of each row; those below 0 give slot 0, which the caller weighs with 0."""
  at = jnp.maximum(at, 0)
  return jnp.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - 2)), axis=1)


def target_weights(batch: Batch, weights: TokenWeights) -> Float[Array, "B N"]:
  """What each slot of `target_at` weighs: 0 for a prompt, for what stands behind an end, and where there is none."""
  at, of_part = batch["target_at"], [0.0, weights.reasoning, weights.answer, weights.end, 0.0]  # the last: BEHIND
  weight = jnp.where(at >= 0, jnp.asarray(of_part, jnp.float32)[gather(batch["part"], at)], 0.0)
  if not weights.labels or weights.choice == 1.0:
    return weight
  behind = jnp.pad(batch["tokens"][:, 1:], ((0, 0), (0, 1)))
  first, end = weights.first_codes
  named = jnp.isin(batch["tokens"], jnp.asarray(weights.labels)) & (behind >= first) & (behind < end)
  chosen = named & (batch["part"] == PARTS.index("reasoning"))
  return jnp.where(gather(chosen, at), weights.choice * weight, weight)


def answer_nll(
  model: Transformer, hidden: Float[Array, "B N D"], targets: Int[Array, "B N"], valid_size: int, ce_chunk: int
) -> Float[Array, "B N"]:
  """-log p of the targets, read off hidden states."""
  features = model.output_features(hidden)
  if not ce_chunk:
    return token_nll(model.project(features), targets, valid_size)
  flat, (matrix, bias) = features.reshape(-1, features.shape[-1]), model.unembedding()
  nll = chunked_token_nll(flat, matrix, bias, targets.reshape(-1), valid_size, ce_chunk, model.config.rules)
  return nll.reshape(targets.shape)


def weighted_loss(
  nll: Float[Array, "B N"], weight: Float[Array, "B N"], batch: Batch, target_count: Float[Array, ""]
) -> tuple[Float[Array, ""], Metrics]:
  """Sum of weight * nll over the count, and the shares of the parts in it."""
  count = jnp.maximum(target_count, 1e-6)
  terms = jnp.where(weight > 0, weight * nll.astype(jnp.float32), 0.0)
  part = gather(batch["part"], batch["target_at"])
  shares = {f"{name}_loss": jnp.where(part == at, terms, 0.0).sum() / count for at, name in enumerate(PARTS) if at}
  loss = jax.tree.reduce(jnp.add, shares)
  return loss, {"loss": loss} | shares
