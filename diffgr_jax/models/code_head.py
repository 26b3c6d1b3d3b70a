"""Logits of learned DocIDs: dense retrieval with quantised documents, plus what the canvas learns.

    query   mean of the prompt's last hidden states, scaled to length 1                                    [B, D]
    logits  scale * query . centroid(level, code)  +  hidden state of the canvas position . row(level, code)  [B, L, K]
            + scale * sum of term(piece) over the prompt's distinct pieces of text, at the level and code of the piece

A document's vector is about the sum of its codes' centroids (residual quantisation; product quantisation with every
part lifted to the whole width). So, with the second half at zero, a document's one-pass score is scale * query . vector
less a term that is the same for all documents: before any training, one-pass scoring IS dense retrieval with quantised
vectors, and training goes on from there.

The last line is for levels that name words (docid/words.py; `config.word_levels`). A document gains a term for each of
its codes that a piece of the question asks for, and with terms in proportion to idf that is about BM25: the untrained
model then retrieves by vectors and words at once.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from diffgr_jax.docid.words import piece_codes
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
    self.config = config
    if config.word_levels:
      pieces = config.word_rows[1] - config.word_rows[0]
      self.terms = nnx.Param(jnp.zeros((pieces,), config.param_dtype), axes=("norm",))

  def __call__(
    self, query: Float[Array, "B D"], hidden: Float[Array, "B L D"] | None, prompt: Int[Array, "B P"]
  ) -> Float[Array, "B L K"]:
    """Float32 logits of every level's codes.

    Args:
      query: of length 1.
      hidden: of the canvas; None: it says nothing.
      prompt: tokens; read for the levels that name words.
    """
    in_float32 = dict(preferred_element_type=jnp.float32)
    centroids, rows = self.centroids.get_value(), self.rows.get_value()
    dense = jnp.einsum("bd,lkd->blk", query, centroids.astype(query.dtype), **in_float32)
    if self.config.word_levels:
      dense = dense.at[:, -self.config.word_levels :].add(self._named(prompt, dense.shape[-1]))
    logits = self.scale.get_value().astype(jnp.float32)[:, None, None] * dense
    if hidden is None:
      return logits
    return logits + jnp.einsum("bld,lkd->blk", hidden, rows.astype(hidden.dtype), **in_float32)

  def _named(self, prompt: Int[Array, "B P"], codes: int) -> Float[Array, "B G K"]:
    """The terms of the prompt's pieces, each once, where their codes are."""
    levels, (first, end) = self.config.word_levels, self.config.word_rows
    earlier = jnp.tril(prompt[:, :, None] == prompt[:, None, :], -1).any(axis=-1)  # the same piece, before it
    counts = (prompt >= first) & (prompt < end) & ~earlier
    piece = jnp.clip(prompt - first, 0, end - first - 1)
    term = jnp.where(counts, self.terms.get_value()[piece].astype(jnp.float32), 0.0)
    place = jax.vmap(lambda level, code, term: jnp.zeros((levels, codes)).at[level, code].add(term))
    return place(*piece_codes(piece, levels, codes), term)
