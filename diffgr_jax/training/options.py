"""Fails fast: a DocID run's config is checked as a whole before any data is read or any device memory is taken."""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from diffgr_jax.data.vocab import SPECIAL_TOKENS
from diffgr_jax.decoding.policies import POLICIES, make_policy
from diffgr_jax.decoding.topk import WEIGHED_BY
from diffgr_jax.diffusion.corruption import PROCESSES, SCHEDULES, make_process
from diffgr_jax.docid.codes import CodeIndex, vocabulary_size
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.parallel.mesh import batch_shards
from diffgr_jax.parallel.rules import check_divides
from diffgr_jax.stages.docid import masked_rows
from diffgr_jax.training.fields import Config, FieldRules, check_fields, check_training

STARTS = ("random", "corpus", "pretrained")
CODES = "codes"
AUTOREGRESSIVE = "autoregressive"
BEAM_SCORES = ("renormalised", "plain")
DOCIDS = ("title", "leading", CODES)
DECODINGS = (
  "one_pass", "topk", "constrained", "free", "argmax", "stochastic", "blocks", "pseudo_beam", "best_of_n", "match",
  "chain",
)  # fmt: skip
_RULES = FieldRules(
  choices={
    "start": STARTS,
    "docid": DOCIDS,
    "task": ("docid",),
    "paradigm": ("diffusion", AUTOREGRESSIVE),
    "dataset": ("pydocs", "folder", "nq320k", "msmarco"),
    "dataset_part": ("documents", "passages"),
    "on_bad_row": ("error", "skip"),
    "process": PROCESSES,
    "schedule": tuple(SCHEDULES),
    "pattern": ("bidirectional", "prefix"),
    "first_pass": ("canvas", "prompt"),
    "policy": tuple(POLICIES),
    "topk_policy": ("random", "confidence", "margin", "entropy", "sequential"),
    "best_metric": ("valid MRR@100", "valid Hit@1"),
  },
  at_least={
    "steps": 1, "prompt_length": 4, "canvas_length": 0, "vocab_size": 300, "decode_steps": 1, "eval_batch_size": 1,
    "diffusion_weight": 0, "document_weight": 0, "prior_weight": 0, "remask": 0, "docid_levels": 0, "docid_codes": 0,
    "nelbo_queries": 0, "topk_steps": 1, "topk_beam": 1, "topk_commit": 1, "samples": 1, "pool": 1, "block_length": 1,
    "beam_canvases": 1, "chain_candidates": 1, "chain_steps": 0, "dataset_words": 0, "dataset_limit": 0,
    "relevant_grade": 1, "eval_limit": 0, "document_negatives": 0,
  },
  above_zero=("temperature", "code_scale"),
  shares=("all_masked_fraction", "label_smoothing", "start_share"),
)  # fmt: skip


def check_config(config: Config) -> None:
  """Raises ValueError with one line that names the field, its value and what it may be."""
  check_fields(config, _RULES)
  check_training(config)
  if config.dataset == "folder" and not config.dataset_path:
    raise ValueError("config.dataset_path must name the folder with corpus.jsonl when config.dataset is 'folder'")
  if config.dataset in ("nq320k", "msmarco") and not config.dataset_path:
    raise ValueError(
      f"config.dataset_path must name the folder or the URL of the files of {config.dataset}, or be 'public' for its"
      " publisher's"
    )
  if config.pseudo_queries != "spans" and not Path(config.pseudo_queries).is_file():
    raise ValueError(f"config.pseudo_queries is 'spans' or a .jsonl file that exists, not {config.pseudo_queries!r}")
  if (config.docid == CODES) != bool(config.docid_index):
    raise ValueError(
      f"config.docid_index must name a file when config.docid is 'codes', and only then: they are"
      f" {config.docid_index!r} and {config.docid!r} (python -m diffgr_jax.index build makes one)"
    )
  _check_paradigm(config)
  if config.docid != CODES and config.code_head:
    raise ValueError(f"config.code_head is for learned DocIDs: it must be False when config.docid is {config.docid!r}")
  if config.get("first_pass", "canvas") == "prompt":
    _check_first_pass(config)
  if config.docid == CODES and config.ce_chunk:
    raise ValueError("config.ce_chunk must be 0 when config.docid is 'codes': logits of a level are few")
  if min(config.mixture.values()) < 0 or sum(config.mixture.values()) <= 0:
    raise ValueError(f"config.mixture holds weights of at least 0, one of them above 0, not {config.mixture.to_dict()}")
  if (config.docid_levels == 0) != (config.docid_codes == 0):
    raise ValueError(
      "config.docid_levels and config.docid_codes are both 0 (no DocID code rows) or both above it, not"
      f" {config.docid_levels} and {config.docid_codes}"
    )
  make_policy(config.policy, config.threshold)
  make_process(config.process, config.schedule, config.all_masked_fraction)
  _check_start(config)
  if not config.diffusion_weight and not config.document_weight:
    raise ValueError("config.diffusion_weight and config.document_weight are both 0: one of them must be above it")
  if config.document_negatives and not config.document_weight:
    raise ValueError("config.document_negatives is of the document-level softmax: it must be 0 at document_weight 0")
  if config.document_weight > 0 and config.ce_chunk:
    raise ValueError(
      "config.ce_chunk must be 0 when config.document_weight > 0: that term needs all logits of the canvas"
    )


def _check_first_pass(config: Config) -> None:
  """Where an all-masked canvas is not read, the query's vector must not depend on one."""
  for field, needed in (("code_head", True), ("pattern", "prefix"), ("paradigm", "diffusion")):
    if config[field] != needed:
      raise ValueError(f"config.first_pass 'prompt' needs config.{field} to be {needed!r}, not {config[field]!r}")
  apart = masked_rows(config.all_masked_fraction, config.batch_size)
  if apart % config.microbatches:
    raise ValueError(
      f"config.all_masked_fraction {config.all_masked_fraction} sets {apart} of {config.batch_size} rows apart, which"
      f" config.microbatches ({config.microbatches}) does not divide"
    )


def _check_paradigm(config: Config) -> None:
  """An autoregressive model has no masks, and so nothing that is defined by them."""
  if (config.paradigm == AUTOREGRESSIVE) != (config.process == "clean"):
    raise ValueError(
      "config.process must be 'clean' when config.paradigm is 'autoregressive', and only then: they are"
      f" {config.process!r} and {config.paradigm!r}"
    )
  if config.paradigm != AUTOREGRESSIVE:
    if config.beam_widths:
      raise ValueError("config.beam_widths is for the paradigm 'autoregressive'; a denoiser has config.decodings")
    unknown = [name for name in config.decodings if name not in DECODINGS]
    if unknown or not config.decodings or len(set(config.decodings)) < len(config.decodings):
      raise ValueError(
        f"config.decodings holds some of {', '.join(DECODINGS)}, each once, not {list(config.decodings)}"
      )
    if not config.topk_weigh or not set(config.topk_weigh) <= set(WEIGHED_BY):
      raise ValueError(f"config.topk_weigh holds some of {', '.join(WEIGHED_BY)}, not {list(config.topk_weigh)}")
    if not config.topk_root or not all(0 <= share < 1 for share in config.topk_root):
      raise ValueError(f"config.topk_root holds shares of at least 0 and below 1, not {list(config.topk_root)}")
    if "tokens" in config.topk_weigh and config.topk_commit > 1:
      raise ValueError(f"config.topk_commit must be 1, not {config.topk_commit}, where config.topk_weigh holds tokens")
    if min(config.sweep_steps, default=1) < 1:
      raise ValueError(f"config.sweep_steps holds numbers of at least 1, not {tuple(config.sweep_steps)}")
    return
  if config.sweep_steps:
    raise ValueError("config.sweep_steps is for denoisers; the paradigm 'autoregressive' has config.beam_widths")
  if max(config.beam_widths, default=0) < 1 or min(config.beam_widths) < 0:
    raise ValueError(
      f"config.beam_widths holds widths of at least 1, and 0 beside them or not; not {tuple(config.beam_widths)}"
    )
  if not config.beam_scores or not set(config.beam_scores) <= set(BEAM_SCORES):
    raise ValueError(f"config.beam_scores holds some of {', '.join(BEAM_SCORES)}, not {list(config.beam_scores)}")
  for field in ("document_weight", "all_masked_fraction", "slot_embeddings", "show_queries"):
    if config[field]:
      raise ValueError(f"config.{field} must be {type(config[field])()} when config.paradigm is 'autoregressive'")


def _check_start(config: Config) -> None:
  if config.start_share and (config.start != "pretrained" or config.lora_rank):
    raise ValueError(
      "config.start_share must be 0 unless config.start is 'pretrained' and config.lora_rank is 0: it averages whole"
      " weights with pretrained ones"
    )
  if config.start == "pretrained":
    if not config.pretrained:
      raise ValueError("config.pretrained must name a folder, or minilm, when config.start is 'pretrained'")
    if config.slot_embeddings:
      raise ValueError("config.slot_embeddings must be False when config.start is 'pretrained': the model has no slots")
    return
  model = transformer_config(config, config.vocab_size, canvas_length=1)
  if (
    config.start == "corpus"
    and not model.d_model == model.n_heads * model.head_dim == model.n_kv_heads * model.head_dim
  ):
    raise ValueError(
      "config.start 'corpus' needs n_heads = n_kv_heads and n_heads * head_dim = d_model, not"
      f" {model.n_heads}, {model.n_kv_heads}, {model.head_dim} and {model.d_model}"
    )


def check_batch(config: Config, shards: int, processes: int) -> None:
  """Raises ValueError where the global batch does not split over the mesh, the hosts and the microbatches."""
  parts = shards * config.microbatches
  if config.batch_size % parts or config.batch_size % processes:
    raise ValueError(
      f"config.batch_size ({config.batch_size}) must be a multiple of {parts}: {shards} batch shards of the mesh"
      f" x {config.microbatches} microbatches, and of the {processes} processes"
    )


def check_mesh(config: Config, model: TransformerConfig, canvas_length: int, mesh: Mesh) -> None:
  """Raises ValueError, with the numbers, where the mesh does not divide what the rules split over it."""
  sizes = {
    "batch": config.batch_size // config.microbatches, "lookup": config.batch_size // config.microbatches,
    "length": config.prompt_length + canvas_length, "canvas": canvas_length, "features": model.d_model,
    "heads": model.n_heads, "kv_heads": model.n_kv_heads, "mlp": model.d_ff, "vocab": model.vocab_size,
  }  # fmt: skip
  check_divides(sizes, mesh, config.rules)
  if model.first_pass == "prompt":
    apart = masked_rows(config.all_masked_fraction, config.batch_size)
    if apart % batch_shards(mesh) == 0:  # else they are not apart (stages/docid.py)
      for rows in (apart, config.batch_size - apart):
        check_divides({"batch": rows // config.microbatches}, mesh, config.rules)


def holds_codes(config: Config) -> bool:
  """Whether a canvas holds codes themselves. The rival's are tokens of the vocabulary, unless it has a code head."""
  return config.docid == CODES and (config.paradigm != AUTOREGRESSIVE or config.code_head)


def head_scale(config: Config) -> float:
  """What a code head multiplies cosines by at its start; 0: the run has no such head."""
  return config.code_scale if config.code_head else 0.0


def pattern_of(config: Config) -> str:
  """Of attention, over prompt and canvas."""
  return "prefix_causal" if config.paradigm == AUTOREGRESSIVE else config.pattern


def masked_by(config: Config, model: TransformerConfig) -> dict[str, Any]:
  """Fields of a stage: what masks a batch's rows. Rows that are read without a canvas are set apart by the stage."""
  apart = model.first_pass == "prompt"
  share = config.all_masked_fraction
  process = make_process(config.process, config.schedule, 0.0 if apart else share)
  return {"process": process, "masked_share": share if apart else 0.0}


def docid_rows(config: Config, codes: CodeIndex | None) -> dict[str, int]:
  """Levels and codes of a level that the vocabulary gets: what the config asks for, else what the index needs."""
  levels, size = config.docid_levels, config.docid_codes
  if codes is not None and not levels:
    levels, size = vocabulary_size(codes)
  return {"docid_levels": levels, "docid_codes": size}


def code_head_fields(config: Config, codes: CodeIndex, size: int, pieces: int) -> dict[str, Any]:
  """What a model with a code head knows of the index.

  Args:
    config: of the run.
    codes: the index.
    size: codes of a level in the run's vocabulary.
    pieces: of its tokenizer.

  Raises:
    ValueError: levels that name words, where they cannot be scored or are of another tokenizer.
  """
  fields = {"code_levels": codes.levels, "code_size": size, "first_pass": config.first_pass}
  words, first = codes.words, len(SPECIAL_TOKENS)
  if words is None:
    return fields
  if config.paradigm == AUTOREGRESSIVE:
    raise ValueError(
      "config.docid_index has levels that name words, which a code head scores in one pass: build it without"
      " --word_levels for config.paradigm 'autoregressive'"
    )
  if (len(words.idf), words.codes) != (pieces, size):
    raise ValueError(
      f"config.docid_index names words in {len(words.idf)} pieces and {words.codes} codes a level, but"
      f" config.pretrained has {pieces} pieces and the run {size} codes"
    )
  return fields | {"word_levels": words.levels, "word_rows": (first, first + pieces)}


def transformer_config(config: Config, vocab_size: int, canvas_length: int) -> TransformerConfig:
  """The transformer that the flat fields of a config describe (a pretrained start brings its own).

  Raises:
    ValueError: sizes or parts that do not go together, by field.
  """
  return TransformerConfig(
    vocab_size=vocab_size,
    d_model=config.d_model,
    n_layers=config.n_layers,
    n_heads=config.n_heads,
    n_kv_heads=config.n_kv_heads,
    head_dim=config.head_dim or config.d_model // config.n_heads,
    d_ff=config.d_ff,
    qk_norm=config.qk_norm,
    qkv_bias=config.qkv_bias,
    tie_embeddings=config.tie_embeddings,
    rope_theta=config.rope_theta,
    token_types=1 + canvas_length if config.slot_embeddings else 0,
    remat=config.remat,
    param_dtype=config.param_dtype,
    compute_dtype=config.compute_dtype,
    attention=config.attention,
    **lora_fields(config),
  )


def lora_fields(config: Config) -> dict[str, Any]:
  """What a config says of adapters, as fields of a transformer."""
  targets = tuple(config.lora_targets) if config.lora_rank else ()
  return {"lora_rank": config.lora_rank, "lora_alpha": float(config.lora_alpha), "lora_targets": targets}
