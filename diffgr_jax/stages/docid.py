"""The DocID stage: a query is a clean prefix, its document's identifier a canvas that the model learns to denoise.

Batch contract (made by data/pipeline.py): `prompt` Int[B, P], left-padded; `docid` Int[B, L], tokens, EOS, then PAD;
`doc_index` Int[B]; `asked` Bool[B], whether the prompt is a question of the training set. Every canvas position is a
target (the model must also say where an identifier ends); an autoregressive model stops at EOS, so the PAD behind it is
none.

    step:   prepare (draw x_t for the GLOBAL batch)  ->  loss of each microbatch  ->  the parts add up

The loss is the masked-diffusion bound (DiffuGR, arXiv 2511.08150; MDLM, arXiv 2406.07524) times `diffusion_weight`,
and, with `document_weight` > 0, a retrieval-aware term beside it: the right document against all others, by the score
that one-pass retrieval ranks by. Where scoring all of them is too much, `document_negatives` compares it with a pool
that every row shares:

    pool       documents of the batch's B rows, drawn by the mixture (share q of each) | n more, drawn evenly of N
    expected   (B - 1) q(d) + n / N  times in the pool, beside a row's own draw
    loss       -log of  e^s(right) / (e^s(right) + sum over the pool's other documents of e^s(d) / expected(d))

so that the denominator is right on average (logQ correction of sampled softmax, with mixed negative sampling).

Rows whose canvas is all masked are drawn by the process (`all_masked_fraction`), or, where the model reads the prompt
alone for them (models/denoiser.py), are the batch's first ones: a batch of their own, without a canvas.

    masked_prompt, masked_docid, ...   row_0 ... row_n-1    prompts alone
    prompt, docid, x_t, ...            row_n ...            prompts and canvases, corrupted by the process
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from diffgr_jax.decoding.scoring import score_documents
from diffgr_jax.diffusion.corruption import Clean, Process, draw
from diffgr_jax.diffusion.cross_entropy import chunked_token_nll
from diffgr_jax.diffusion.objective import document_nll, masked_diffusion_loss
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.models.transformer import Params
from diffgr_jax.parallel.rules import split_of
from diffgr_jax.stages.stage import Batch, Metrics

_MASKED = "masked_"  # of the leaves of a prepared batch that are of rows without a canvas


@dataclass(frozen=True)
class DocIdStage:
  """Loss of the DocID stage; hashable, so that a jitted step takes it as a static argument."""

  denoiser: CanvasDenoiser | CodeDenoiser
  process: Process
  mask_id: int
  valid_size: int  # columns of the logits in use
  pad_id: int = -1  # what stands behind EOS; learned DocIDs have neither
  first_valid: int = 0  # columns before this one are never predicted
  antithetic: bool = True
  ce_chunk: int = 0  # vocabulary rows a chunk of the cross-entropy; 0 holds all logits at once
  diffusion_weight: float = 1.0  # of the diffusion loss
  document_weight: float = 0.0  # of the document-level softmax
  document_negatives: int = 0  # documents drawn for it beside the batch's own; 0: it is over all documents
  prior_weight: float = 0.0  # share of the tokens' log frequency that is subtracted in that score
  label_smoothing: float = 0.0  # share of the target that is spread evenly over the columns in use
  spare_unasked: bool = False  # questions are not compared with documents that no training question asks for
  masked_share: float = 0.0  # of a batch's rows, its first, whose canvas is all masked and not read; a CodeDenoiser's

  @property
  def model(self) -> TransformerConfig:
    return self.denoiser.config

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Corrupts the global batch; returns it with x_t, corrupted and weight, and its count of target positions."""
    rows, everything = len(batch["docid"]), jnp.ones_like(batch["docid"], dtype=bool)
    target = batch["docid"] != self.pad_id if isinstance(self.process, Clean) else everything
    drawn = draw(key, self.process, batch["docid"], mask_id=self.mask_id, target=target, antithetic=self.antithetic)
    batch = batch | drawn._asdict()
    if self.document_weight and self.document_negatives:
      # Every row carries the whole pool, for a microbatch is made of rows. Bits: N is not known here.
      bits = jax.random.bits(jax.random.fold_in(key, 1), (self.document_negatives,))
      batch |= {
        "together": jnp.broadcast_to(batch["doc_index"][None], (rows, rows)),
        "drawn": jnp.broadcast_to(bits[None], (rows, self.document_negatives)),
      }
    if apart := masked_rows(self.masked_share, rows):
      batch = self._set_apart(batch, apart, drawn._fields)
    return batch, target.sum().astype(jnp.float32)

  def _set_apart(self, batch: Batch, apart: int, drawn: tuple[str, ...]) -> Batch:
    """The first rows without a canvas; where the mesh divides them not, with one that is masked: to the same loss."""
    rows, parts = len(batch["docid"]), split_of("batch", self.model.rules)
    if apart % parts or rows % parts:
      first = (jnp.arange(rows) < apart)[:, None]
      return batch | {
        "x_t": jnp.where(first, self.mask_id, batch["x_t"]),
        "corrupted": first | batch["corrupted"],
        "weight": jnp.where(first, 1.0, batch["weight"]),
      }
    masked = {_MASKED + name: leaf[:apart] for name, leaf in batch.items() if name not in drawn}
    return masked | {name: leaf[apart:] for name, leaf in batch.items()}

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """Loss of a (micro)batch that `prepare` made. Losses, gradients and metrics of the parts of a batch add up.

    Args:
      params: the model's parameters.
      batch: prompt, docid, doc_index, asked, x_t, corrupted, weight; with `document_negatives` the pool.
      shared: `codes` Int[N, L], `scored` Bool[N, L], `log_frequency` Float[L, V] of the documents that exist,
        `asked` Bool[N]: which of them some training question asks for, and `share` Float[N]: of the training examples.
      target_count: target positions of the whole global batch.
      row_count: rows of the whole global batch.
    """
    masked = {name.removeprefix(_MASKED): leaf for name, leaf in batch.items() if name.startswith(_MASKED)}
    how = (shared, target_count, row_count)
    if not masked:
      return self._loss(params, batch, *how)
    rest = {name: leaf for name, leaf in batch.items() if not name.startswith(_MASKED)}
    rows, levels = masked["docid"].shape
    masked |= {"corrupted": jnp.ones((rows, levels), bool), "weight": jnp.ones((rows, 1))}
    of_masked = self._loss(params, masked, *how)
    if not len(rest["docid"]):
      return of_masked
    return jax.tree.map(jnp.add, of_masked, self._loss(params, rest, *how))

  def _loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """The same of rows that are all alike: with a canvas `x_t`, or without one."""
    if self.ce_chunk:  # without the document term (training/options.py)
      nll, logits, log_sum = self._chunked_nll(params, batch), None, None
    else:
      if "x_t" in batch:
        logits = self.denoiser(params, batch["prompt"], batch["x_t"])
      else:
        assert isinstance(self.denoiser, CodeDenoiser)  # others read every canvas
        logits = self.denoiser.all_masked(params, batch["prompt"], batch["docid"].shape[1])
      column = jnp.arange(logits.shape[-1])
      in_use = ((column >= self.first_valid) & (column < self.valid_size))[None, None, :]
      log_sum = jax.nn.logsumexp(jnp.where(in_use, logits, -jnp.inf), axis=-1)
      nll = log_sum - jnp.take_along_axis(logits, batch["docid"][..., None], axis=-1)[..., 0]
      if self.label_smoothing:
        even = log_sum - jnp.where(in_use, logits, 0.0).sum(axis=-1) / (self.valid_size - self.first_valid)
        nll = (1.0 - self.label_smoothing) * nll + self.label_smoothing * even
    loss, sums = masked_diffusion_loss(nll, batch["corrupted"], batch["weight"], target_count)
    metrics = {"diffusion_loss": loss} | sums
    loss = self.diffusion_weight * loss
    if logits is not None and log_sum is not None and self.document_weight > 0.0:
      if self.document_negatives:
        document_loss, hits = self._sampled_document_loss(logits, log_sum, batch, shared, row_count)
      else:
        document_loss, hits = self._document_loss(logits, log_sum, batch, shared)
      loss = loss + self.document_weight * document_loss / row_count
      metrics |= {"document_loss": document_loss / row_count, "document_hits": hits / row_count}
    return loss, metrics | {"loss": loss}

  def _chunked_nll(self, params: Params, batch: Batch) -> Float[Array, "B L"]:
    assert isinstance(self.denoiser, CanvasDenoiser)  # a level of codes is small enough
    model, features = self.denoiser.features(params, batch["prompt"], batch["x_t"])
    matrix, bias = model.unembedding()
    flat, docid, rules = features.reshape(-1, features.shape[-1]), batch["docid"], self.denoiser.config.rules
    nll = chunked_token_nll(flat, matrix, bias, docid.reshape(-1), self.valid_size, self.ce_chunk, rules)
    return nll.reshape(docid.shape)

  def _document_loss(
    self, logits: Float[Array, "B L V"], log_sum: Float[Array, "B L"], batch: Batch, index: Batch
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sums over rows of -log softmax of the right document, and of whether it comes first."""
    scores = self._document_scores(logits, log_sum, batch, index)
    right = jnp.take_along_axis(scores, batch["doc_index"][:, None], axis=-1)
    return document_nll(scores, batch["doc_index"]).sum(), (scores <= right).all(axis=-1).sum().astype(jnp.float32)

  def _sampled_document_loss(
    self, logits: Float[Array, "B L V"], log_sum: Float[Array, "B L"], batch: Batch, index: Batch, row_count: int
  ) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The same against the pool; whether the right document comes first of those."""
    documents = len(index["codes"])
    pool = jnp.concatenate([batch["together"][0], (batch["drawn"][0] % documents).astype(jnp.int32)])
    of_pool = {name: index[name][pool] for name in ("codes", "scored", "asked", "share")}
    scores = self._document_scores(logits, log_sum, batch, index | of_pool)
    itself = pool[None, :] == batch["doc_index"][:, None]
    right = jnp.take_along_axis(scores, jnp.argmax(itself, axis=-1, keepdims=True), axis=-1)
    others = jnp.where(itself, -jnp.inf, scores)
    expected = (row_count - 1) * of_pool["share"] + self.document_negatives / documents
    compared = jnp.concatenate([right, others - jnp.log(expected)[None, :]], axis=-1)
    first = (others <= right).all(axis=-1).sum().astype(jnp.float32)
    return document_nll(compared, jnp.zeros(len(right), jnp.int32)).sum(), first

  def _document_scores(
    self, logits: Float[Array, "B L V"], log_sum: Float[Array, "B L"], batch: Batch, index: Batch
  ) -> Float[Array, "B N"]:
    """A document's score sums log p (less the prior's share) over the masked positions that it is scored on.

    The logits are gathered, and what is the same for all tokens of a position is a product of small matrices, so that
    nothing else has the size of the logits. Documents that disagree with what the canvas already shows are out (-inf):
    a partly filled canvas asks which of the remaining ones it is.
    """
    codes, scored, masked = index["codes"], index["scored"], batch["corrupted"]
    log_share = index["log_frequency"][jnp.arange(codes.shape[1])[None, :], codes]
    normaliser = jnp.einsum("bl,nl->bn", jnp.where(masked, log_sum, 0.0), scored.astype(jnp.float32))
    prior = jnp.einsum("bl,nl->bn", masked.astype(jnp.float32), jnp.where(scored, log_share, 0.0))
    scores = score_documents(logits, codes, scored, masked) - normaliser - self.prior_weight * prior
    compared = _agrees(codes, batch["docid"], ~masked)
    if self.spare_unasked:
      compared &= index["asked"][None, :] | ~batch["asked"][:, None]
    return jnp.where(compared, scores, -jnp.inf)


def masked_rows(share: float, rows: int) -> int:
  """How many of a batch's rows are without a canvas."""
  return round(share * rows)


def _agrees(codes: Int[Array, "N L"], docid: Int[Array, "B L"], visible: Bool[Array, "B L"]) -> Bool[Array, "B N"]:
  """Which documents carry the row's tokens at every visible position."""

  def one_position(agree, column):
    code, token, shown = column
    return agree & (~shown[:, None] | (code[None, :] == token[:, None])), None

  start = jnp.ones((docid.shape[0], codes.shape[0]), bool)
  agree, _ = jax.lax.scan(one_position, start, (codes.T, docid.T, visible.T))
  return agree
