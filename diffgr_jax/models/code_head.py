"""Logits of learned DocIDs: dense retrieval with quantised documents, plus what the canvas learns.

    query   mean of the prompt's last hidden states, scaled to length 1                                    [B, D]
    logits  scale * query . centroid(level, code)  +  hidden state of the canvas position . row(level, code)  [B, L, K]

A document's vector is about the sum of its codes' centroids (residual quantisation; product quantisation with every
part lifted to the whole width). So, with the second half at zero, a document's one-pass score is scale * query . vector
less a term that is the same for all documents: before any training, one-pass scoring IS dense retrieval with quantised
vectors, and training goes on from there.
"""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffgr_jax.models.config import TransformerConfig

START_SCALE = 20.0  # of cosines in the softmax: a temperature of .05, usual for sentence encoders


class CodeHead(nnx.Module):
  """Centroids and rows of every code of every level; both start at zero (training/start.py puts the centroids in)."""

  def __init__(self, config: TransformerConfig):
    shape = (config.code_levels, config.code_size, config.d_model)
    axes = ("code_level", "code", "embed")
    self.centroids = nnx.Param(jnp.zeros(shape, config.param_dtype), axes=axes)
    self.rows = nnx.Param(jnp.zeros(shape, config.param_dtype), axes=axes)
    self.scale = nnx.Param(jnp.full((1,), START_SCALE, config.param_dtype), axes=("norm",))

  def __call__(self, query: Float[Array, "B D"], hidden: Float[Array, "B L D"]) -> Float[Array, "B L K"]:
    """Float32 logits of every level's codes.

    Args:
      query: of length 1.
      hidden: of the canvas.
    """
    in_float32 = dict(preferred_element_type=jnp.float32)
    centroids, rows = self.centroids.get_value(), self.rows.get_value()
    dense = jnp.einsum("bd,lkd->blk", query, centroids.astype(query.dtype), **in_float32)
    learned = jnp.einsum("bld,lkd->blk", hidden, rows.astype(hidden.dtype), **in_float32)
    return self.scale.get_value().astype(jnp.float32)[:, None, None] * dense + learned
