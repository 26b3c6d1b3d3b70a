"""A run: a config and what follows from it before any weight exists - data, vocabulary, DocIDs, model, stage.

`prepare_run` makes these from a config and keeps them in the workdir; `open_run` reads them back, so that a checkpoint
is always read with the vocabulary and the identifiers that it was trained with.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import json
from pathlib import Path
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int
import ml_collections
import numpy as np

from diffgr_jax.data.collection import Selection, load_collection
from diffgr_jax.data.pretrained_vocab import pretrained_vocabulary
from diffgr_jax.data.records import Collection, Document
from diffgr_jax.data.vocab import Vocabulary, train_vocabulary
from diffgr_jax.decoding.constraint import used_rows
from diffgr_jax.decoding.denoiser import banned_tokens
from diffgr_jax.docid.codes import CodeIndex, code_tokens, docid_index
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.linguistic import build_linguistic_index
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.parallel.distributed import check_shared, in_turn
from diffgr_jax.parallel.rules import DECODE_RULES, Rules, frozen_rules
from diffgr_jax.stages.docid import DocIdStage
from diffgr_jax.training.fields import Config, set_fields
from diffgr_jax.training.options import AUTOREGRESSIVE, CODES, docid_rows, holds_codes, masked_by, pattern_of
from diffgr_jax.training.start import docid_model, pretrained_folder

# A run that goes on in its workdir may change these; anything else would change what the weights mean.
_MAY_CHANGE = {
  "steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "keep_every", "keep_best", "best_metric",
  "mesh", "rules", "decode_rules", "attention", "microbatches", "remat", "data_dir", "dataset_path", "dataset_manifest",
  "decode_steps", "policy", "threshold", "remask", "eval_batch_size", "eval_splits", "eval_limit", "relevant_grade",
  "ce_chunk", "show_queries", "dense", "nelbo_queries", "decodings", "topk_steps", "topk_beam", "topk_commit",
  "topk_policy", "topk_weigh", "topk_root", "beam_widths", "beam_scores", "start_share", "temperature", "samples",
  "pool", "block_length", "beam_canvases", "chain_candidates", "chain_steps", "sweep_steps",
}  # fmt: skip

# What a field was before it existed.
_OLDER = {
  "attention": "auto", "decode_rules": DECODE_RULES, "docid": "title", "docid_index": "", "docid_levels": 0,
  "docid_codes": 0, "embedding_rate": 1.0, "optimizer": "adamw", "nelbo_queries": 256,
  "lora_rank": 0, "lora_alpha": 16.0, "lora_targets": ["query", "value"],
  "pattern": "bidirectional", "code_head": False, "spare_unasked": False,
  "paradigm": "diffusion", "label_smoothing": 0.0, "beam_widths": [], "beam_scores": ["renormalised"],
  "topk_beam": 8, "topk_commit": 1, "topk_policy": "confidence", "topk_weigh": ["documents"], "topk_root": [0.0],
  "temperature": 1.0, "samples": 8, "pool": 100, "block_length": 4, "beam_canvases": 8, "chain_candidates": 20,
  "chain_steps": 0, "sweep_steps": [],
  "keep_every": 0, "keep_best": 0, "best_metric": "valid MRR@100",
  "dataset_words": 512, "dataset_limit": 0, "dataset_part": "documents", "dataset_manifest": "",
  "pseudo_queries": "spans", "relevant_grade": 1, "diffusion_weight": 1.0, "start_share": 0.0,
  "eval_limit": 0, "document_negatives": 0, "head_rate": 1.0, "code_scale": 20.0,
}  # fmt: skip

CODES_FILE = Path("index") / "codes.npz"  # of a run on learned DocIDs, in its workdir

# How a run decodes: free to change for a checkpoint, with `--set field=value`.
DECODING_FIELDS = {
  "decode_steps": int, "policy": str, "threshold": float, "remask": int, "prior_weight": float,
  "eval_batch_size": int, "eval_splits": list[str], "eval_limit": int, "relevant_grade": int,
  "dense": str, "nelbo_queries": int, "beam_widths": list[int], "beam_scores": list[str],
  "topk_steps": int, "topk_beam": int, "topk_commit": int, "topk_policy": str, "topk_weigh": list[str],
  "topk_root": list[float], "start_share": float, "decodings": list[str], "temperature": float, "samples": int,
  "pool": int, "block_length": int, "beam_canvases": int, "chain_candidates": int, "chain_steps": int,
  "sweep_steps": list[int],
}  # fmt: skip


@dataclass(frozen=True)
class Run:
  """What a checkpoint needs beside its weights."""

  workdir: Path
  config: Config
  vocab: Vocabulary
  index: DocIdIndex
  model: TransformerConfig

  @property
  def denoiser(self) -> CanvasDenoiser | CodeDenoiser:
    """As decoding asks it."""
    return self._denoiser(self.config.decode_rules)

  def _denoiser(self, rules: Rules) -> CanvasDenoiser | CodeDenoiser:
    vocab = self.vocab
    model = dataclasses.replace(self.model, attention=self.config.attention, rules=frozen_rules(rules))
    canvas = CanvasDenoiser(model, vocab.pad_id, slots=self.config.slot_embeddings, pattern=self.pattern)
    if not self.canvas_of_codes:
      return canvas
    return CodeDenoiser(canvas, vocab.mask_id, vocab.docid_token(0, 0), vocab.docid_codes)

  @property
  def pattern(self) -> str:
    """Of attention, over prompt and canvas."""
    return pattern_of(self.config)

  @property
  def autoregressive(self) -> bool:
    return self.config.paradigm == AUTOREGRESSIVE

  @property
  def renormalises(self) -> bool:
    """How a beam is scored where one kind of score is asked for: the first of `config.beam_scores`."""
    return self.config.beam_scores[0] == "renormalised"

  # What a canvas may hold: tokens of the vocabulary, or the codes of each level with MASK behind them.

  @property
  def canvas_of_codes(self) -> bool:
    return holds_codes(self.config)

  @property
  def mask_id(self) -> int:
    return self.vocab.docid_codes if self.canvas_of_codes else self.vocab.mask_id

  @property
  def canvas_rows(self) -> int:
    """Columns of a canvas position's logits."""
    return self.vocab.docid_codes + 1 if self.canvas_of_codes else self.model.vocab_size

  @property
  def valid_rows(self) -> tuple[int, int]:
    """The columns that a loss normalises over: first, and behind the last."""
    if self.canvas_of_codes:
      return 0, self.mask_id
    return (self.vocab.docid_token(0, 0) if self.config.docid == CODES else 0), self.vocab.size

  @property
  def codes(self) -> CodeDenoiser | None:
    """How an autoregressive model with a code head reads a canvas of codes (decoding/beam.py)."""
    denoiser = self.denoiser
    return denoiser if isinstance(denoiser, CodeDenoiser) and self.config.code_head else None

  @property
  def banned(self) -> Bool[Array, "V"]:
    """What no DocID may hold: MASK, the prompt's specials, and the rows that only pad."""
    (first, end), vocab = self.valid_rows, self.vocab
    specials = [] if self.canvas_of_codes else [vocab.mask_id, vocab.bos_id, vocab.sep_id, *range(first)]
    return banned_tokens(self.canvas_rows, end, specials)

  @property
  def docid_tokens(self) -> Int[np.ndarray, "N L"]:
    """The DocIDs as rows of the token table."""
    return code_tokens(self.index.codes, self.vocab) if self.canvas_of_codes else self.index.codes

  def piece(self, token: int) -> str:
    """How a canvas token reads."""
    return str(token) if self.canvas_of_codes else self.vocab.piece(token)

  def device_index(self, index: DocIdIndex | None = None) -> dict[str, Array]:
    """What scoring and decoding read of a DocID index (default: the run's own): codes, scored, log_frequency, rows."""
    index = self.index if index is None else index
    log_frequency = index.log_frequency(self.canvas_rows)
    return {
      "codes": jnp.asarray(index.codes),
      "scored": jnp.asarray(index.scored),
      "log_frequency": jnp.asarray(log_frequency),
      "rows": jnp.asarray(used_rows(index.codes)),
    }

  def set_decoding(self, assignments: Sequence[str]) -> None:
    """Changes how the run decodes and is evaluated, from `field=value` strings; training fields stay.

    Raises:
      ValueError: not of that form, a field that is not about decoding, or a value of another type.
    """
    set_fields(self.config, assignments, DECODING_FIELDS)

  @property
  def stage(self) -> DocIdStage:
    config = self.config
    return DocIdStage(
      denoiser=self._denoiser(config.rules),
      **masked_by(config, self.model),
      mask_id=self.mask_id,
      pad_id=self.index.pad_id,
      valid_size=self.valid_rows[1],
      first_valid=self.valid_rows[0],
      label_smoothing=config.label_smoothing,
      antithetic=config.antithetic,
      ce_chunk=config.ce_chunk,
      diffusion_weight=config.diffusion_weight,
      document_weight=config.document_weight,
      document_negatives=config.document_negatives,
      prior_weight=config.prior_weight,
      spare_unasked=config.spare_unasked,
    )


def load_data(config: Config, workdir: Path) -> Collection:
  """The collection that the config names, built on the first call."""
  data_dir = config.data_dir or str(Path(workdir) / "data")
  selection = Selection(config.dataset_words, config.dataset_limit, config.dataset_part, config.dataset_manifest)
  how = dict(path=config.dataset_path, data_dir=data_dir, on_bad_row=config.on_bad_row, selection=selection)
  return load_collection(config.dataset, **how)


def prepare_run(config: Config, workdir: Path) -> tuple[Run, Collection]:
  """Builds (or, in a workdir that has them, reads) the vocabulary and the DocIDs, and returns them with the data.

  In a job of several processes the first builds and writes, the others read.

  Raises:
    ValueError: the workdir belongs to a run with another config, or the data has changed since; says which field. Or a
      code head that nothing would put centroids into (a preflight, which reads no weights, may plan one all the same).
    FileNotFoundError: the processes do not share the workdir.
  """
  if config.code_head and config.start != "pretrained":
    raise ValueError(
      f"config.code_head needs config.start to be 'pretrained', not {config.start!r}: it begins as retrieval by that"
      " encoder's vectors"
    )
  with in_turn("data, vocabulary and DocIDs"):
    if jax.process_index():
      check_shared(Path(workdir) / "config.json")
    return _prepare(config, Path(workdir))


def _prepare(config: Config, workdir: Path) -> tuple[Run, Collection]:
  collection = load_data(config, workdir)
  if (workdir / "config.json").exists():
    _check_same_run(config, collection, workdir)
    run = open_run(workdir)
    return dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, remat=config.remat)), collection
  codes = CodeIndex.load(config.docid_index) if config.docid == CODES else None
  code_rows = docid_rows(config, codes)
  if config.start == "pretrained":
    vocab = pretrained_vocabulary(pretrained_folder(config.pretrained), **code_rows)
  else:
    vocab = train_vocabulary(_training_texts(collection), config.vocab_size, split_case=config.split_case, **code_rows)
  index = make_docids(config, collection.documents, vocab, codes, config.canvas_length or None)
  pieces = vocab.tokenizer.size
  model = docid_model(config, vocab.padded_size, index.canvas_length, codes, vocab.docid_codes, pieces)
  run = Run(workdir, config, vocab, index, model)
  vocab.save(workdir / "vocab")
  index.save(workdir / "index")
  if codes is not None:  # its codebooks go with the weights
    shutil.copyfile(config.docid_index, workdir / CODES_FILE)
  record = {
    "fingerprint": collection.fingerprint,
    "model": model.to_dict(),
    "config": json.loads(config.to_json()),
  }
  (workdir / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
  return run, collection


def make_docids(
  config: Config, documents: Sequence[Document], vocab: Vocabulary, codes: CodeIndex | None, max_length: int | None
) -> DocIdIndex:
  """The identifiers that the config asks for: words of the documents, or codes that were given to them.

  Args:
    config: its `docid`.
    documents: the corpus.
    vocab: of the run.
    codes: of these documents, with docid codes.
    max_length: of a linguistic DocID; None: as long as the longest.
  """
  if config.docid != CODES:
    return build_linguistic_index(documents, vocab, max_length, source=config.docid)
  if codes is None:
    raise ValueError("a run on codes needs an index of codes for other documents: --docid_index=FILE.npz")
  index = docid_index(codes, documents, vocab, "the index of codes")
  return index if holds_codes(config) else dataclasses.replace(index, codes=code_tokens(index.codes, vocab))


def open_run(workdir: Path) -> Run:
  """Reads what `prepare_run` kept.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: a run on codes from before canvases held codes.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"{workdir} holds no run (no config.json): train one with python -m diffgr_jax.main")
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  if record["config"].get("task", "docid") != "docid":
    raise ValueError(f"{workdir} holds a re-ranking run, not one on DocIDs: python -m diffgr_jax.evaluate reads it")
  run = Run(
    workdir,
    ml_collections.ConfigDict(_fields(record["config"])),
    Vocabulary.load(workdir / "vocab"),
    DocIdIndex.load(workdir / "index"),
    TransformerConfig.from_dict(record["model"]),
  )
  if run.canvas_of_codes and run.index.codes.max() >= run.mask_id:
    raise ValueError(
      f"{workdir} holds a run on codes of an older version, whose canvas held tokens instead of codes: train it anew"
    )
  return run


def _fields(record: dict[str, Any]) -> dict[str, Any]:
  """The config of a run's record, with what an older one did not have yet."""
  topk = record.get("topk_steps", 0)  # before `decodings`, 0 left top-k decoding out
  older = {"decodings": ["one_pass", *(["topk"] if topk else []), "constrained", "free"]}
  return _OLDER | older | record | {"topk_steps": topk or 4}


def _check_same_run(config: Config, collection: Collection, workdir: Path) -> None:
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  old, new = _fields(record["config"]), json.loads(config.to_json())
  for field in sorted(set(old) | set(new)):
    if field not in _MAY_CHANGE and old.get(field) != new.get(field):
      raise ValueError(
        f"{workdir} holds a run with {field}={old.get(field)!r}, not {new.get(field)!r}:"
        " take another --workdir, or that value"
      )
  if record["fingerprint"] != collection.fingerprint:
    raise ValueError(f"the data of {workdir} has changed since its run began: take another --workdir")


def _training_texts(collection: Collection):
  """What the vocabulary is learned from: titles, texts and training queries."""
  for document in collection.documents:
    yield document.title
    yield document.text
  for query in collection.queries.get("train", ()):
    yield query.query
