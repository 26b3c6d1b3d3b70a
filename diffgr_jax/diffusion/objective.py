"""The losses of a masked diffusion retriever.

    masked_diffusion_loss   sum over masked positions of weight * -log p(x_0 | x_t), over the number of answer positions
    document_nll            -log of the right document's share among ALL documents, by its one-pass score

The first is, with the weights of a process that is a bound, an upper bound of -log p(x_0) per answer position
(MDLM, arXiv 2406.07524). The second asks for what a retriever is measured by: the right document above every other.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_diffusion_loss(
  nll: Float[Array, "B L"],
  corrupted: Bool[Array, "B L"],
  weight: Float[Array, "B 1"] | Float[Array, "B L"],
  target_count: Int[Array, ""] | Float[Array, ""] | int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Weighted cross-entropy of the masked positions over the number of answer positions, in nats per position.

  Args:
    nll: -log p(x_0 | x_t) at every canvas position; what stands outside `corrupted` is not read, and may be infinite.
    corrupted: the masked answer positions, the only ones with loss.
    weight: of the forward process, per row or per position.
    target_count: answer positions, masked or not, of the GLOBAL batch: over all microbatches and hosts, so that the
      parts' losses and gradients ADD UP to the whole batch's, however unevenly the answers are spread. 0 gives loss 0.

  Returns:
    The loss, and sums that add up over parts in the same way: `masked_nll_sum` (unweighted) and `masked_count`.
  """
  masked_nll = jnp.where(corrupted, nll.astype(jnp.float32), 0.0)
  count = jnp.maximum(jnp.asarray(target_count, jnp.float32), 1.0)
  sums = {
    "masked_nll_sum": masked_nll.sum(),
    "masked_count": corrupted.sum().astype(jnp.float32),
  }
  return (weight * masked_nll).sum() / count, sums


def document_nll(scores: Float[Array, "B N"], doc_index: Int[Array, "B"]) -> Float[Array, "B"]:
  """-log softmax over all documents of the one-pass score, in nats.

  Args:
    scores: of every document for every query (the sum of its DocID's log-probabilities on the all-masked canvas);
      -inf leaves a document out of a query's comparison.
    doc_index: the right document of each query.
  """
  scores = scores.astype(jnp.float32)
  right = jnp.take_along_axis(scores, doc_index[:, None], axis=-1)[:, 0]
  return jax.nn.logsumexp(scores, axis=-1) - right
