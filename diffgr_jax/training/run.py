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

import jax.numpy as jnp
from jaxtyping import Array, Bool
import ml_collections

from diffgr_jax.data.collection import load_collection
from diffgr_jax.data.pretrained_vocab import pretrained_vocabulary
from diffgr_jax.data.records import Collection, Document
from diffgr_jax.data.vocab import Vocabulary, train_vocabulary
from diffgr_jax.decoding.constraint import used_rows
from diffgr_jax.decoding.denoiser import banned_tokens
from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.docid.codes import CodeIndex, docid_index, vocabulary_size
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.linguistic import build_linguistic_index
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.parallel.rules import DECODE_RULES, Rules, frozen_rules
from diffgr_jax.stages.docid import DocIdStage
from diffgr_jax.training.options import CODES, Config, lora_fields, transformer_config
from diffgr_jax.training.start import pretrained_folder, pretrained_model

# A run that goes on in its workdir may change these; anything else would change what the weights mean.
_MAY_CHANGE = {
  "steps", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "mesh", "rules", "decode_rules",
  "attention", "microbatches", "remat", "data_dir", "dataset_path", "decode_steps", "policy", "threshold", "remask",
  "eval_batch_size", "eval_splits", "ce_chunk", "show_queries", "dense", "nelbo_queries",
}  # fmt: skip

# What a field was before it existed.
_OLDER = {
  "attention": "auto", "decode_rules": DECODE_RULES, "docid": "title", "docid_index": "", "docid_levels": 0,
  "docid_codes": 0, "embedding_rate": 1.0, "nelbo_queries": 256,
  "lora_rank": 0, "lora_alpha": 16.0, "lora_targets": ["query", "value"],
}  # fmt: skip

# How a run decodes: free to change for a checkpoint, with `--set field=value`.
DECODING_FIELDS = {
  "decode_steps": int, "policy": str, "threshold": float, "remask": int, "prior_weight": float,
  "eval_batch_size": int, "eval_splits": list, "dense": str, "nelbo_queries": int,
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
  def denoiser(self) -> CanvasDenoiser:
    """As decoding asks it."""
    return self._denoiser(self.config.decode_rules)

  def _denoiser(self, rules: Rules) -> CanvasDenoiser:
    model = dataclasses.replace(self.model, attention=self.config.attention, rules=frozen_rules(rules))
    return CanvasDenoiser(model, self.vocab.pad_id, slots=self.config.slot_embeddings)

  @property
  def banned(self) -> Bool[Array, "V"]:
    """Vocabulary rows that no DocID may hold: MASK, the prompt's specials, and the rows that only pad."""
    vocab = self.vocab
    return banned_tokens(self.model.vocab_size, vocab.size, [vocab.mask_id, vocab.bos_id, vocab.sep_id])

  def device_index(self, index: DocIdIndex | None = None) -> dict[str, Array]:
    """What scoring and decoding read of a DocID index (default: the run's own): codes, scored, log_frequency, rows."""
    index = self.index if index is None else index
    log_frequency = index.log_frequency(self.model.vocab_size)
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
    for assignment in assignments:
      field, equals, value = assignment.partition("=")
      if not equals or field not in DECODING_FIELDS:
        raise ValueError(f"--set {assignment}: field=value with one of the fields {', '.join(DECODING_FIELDS)}")
      kind = DECODING_FIELDS[field]
      try:
        self.config[field] = [x for x in value.split(",") if x] if kind is list else kind(value)
      except ValueError:
        raise ValueError(f"--set {assignment}: {field} is of type {kind.__name__}, not {value!r}") from None

  @property
  def stage(self) -> DocIdStage:
    config = self.config
    return DocIdStage(
      denoiser=self._denoiser(config.rules),
      process=make_process(config.process, config.schedule, config.all_masked_fraction),
      mask_id=self.vocab.mask_id,
      valid_size=self.vocab.size,
      antithetic=config.antithetic,
      ce_chunk=config.ce_chunk,
      document_weight=config.document_weight,
      prior_weight=config.prior_weight,
    )


def load_data(config: Config, workdir: Path) -> Collection:
  """The collection that the config names, built on the first call."""
  data_dir = config.data_dir or str(Path(workdir) / "data")
  return load_collection(config.dataset, path=config.dataset_path, data_dir=data_dir, on_bad_row=config.on_bad_row)


def prepare_run(config: Config, workdir: Path) -> tuple[Run, Collection]:
  """Builds (or, in a workdir that has them, reads) the vocabulary and the DocIDs, and returns them with the data.

  Raises:
    ValueError: the workdir belongs to a run with another config, or the data has changed since; says which field.
  """
  workdir = Path(workdir)
  collection = load_data(config, workdir)
  if (workdir / "config.json").exists():
    _check_same_run(config, collection, workdir)
    run = open_run(workdir)
    return dataclasses.replace(run, config=config, model=dataclasses.replace(run.model, remat=config.remat)), collection
  codes = CodeIndex.load(config.docid_index) if config.docid == CODES else None
  code_rows = _code_rows(config, codes)
  if config.start == "pretrained":
    vocab = pretrained_vocabulary(pretrained_folder(config.pretrained), **code_rows)
  else:
    vocab = train_vocabulary(_training_texts(collection), config.vocab_size, split_case=config.split_case, **code_rows)
  index = make_docids(config, collection.documents, vocab, codes, config.canvas_length or None)
  if config.start == "pretrained":
    model = pretrained_model(pretrained_folder(config.pretrained), vocab, config.remat, config.compute_dtype)
    model = dataclasses.replace(model, **lora_fields(config))
  else:
    model = transformer_config(config, vocab.padded_size, index.canvas_length)
  if model.position_encoding == "learned" and model.max_positions < config.prompt_length + index.canvas_length:
    raise ValueError(
      f"the pretrained model has {model.max_positions} positions, but config.prompt_length ({config.prompt_length})"
      f" and the canvas ({index.canvas_length}) need {config.prompt_length + index.canvas_length}"
    )
  run = Run(workdir, config, vocab, index, model)
  vocab.save(workdir / "vocab")
  index.save(workdir / "index")
  if codes is not None:  # its codebooks go with the weights
    shutil.copyfile(config.docid_index, workdir / "index" / "codes.npz")
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
  return docid_index(codes, documents, vocab, "the index of codes")


def open_run(workdir: Path) -> Run:
  """Reads what `prepare_run` kept.

  Raises:
    FileNotFoundError: the folder holds no run.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"{workdir} holds no run (no config.json): train one with python -m diffgr_jax.main")
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  return Run(
    workdir,
    ml_collections.ConfigDict(_OLDER | record["config"]),
    Vocabulary.load(workdir / "vocab"),
    DocIdIndex.load(workdir / "index"),
    TransformerConfig.from_dict(record["model"]),
  )


def _code_rows(config: Config, codes: CodeIndex | None) -> dict[str, int]:
  """Levels and codes of a level that the vocabulary gets: what the config asks for, else what the index needs."""
  levels, size = config.docid_levels, config.docid_codes
  if codes is not None and not levels:
    levels, size = vocabulary_size(codes)
  return {"docid_levels": levels, "docid_codes": size}


def _check_same_run(config: Config, collection: Collection, workdir: Path) -> None:
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  old, new = _OLDER | record["config"], json.loads(config.to_json())
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
