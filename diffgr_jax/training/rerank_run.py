"""A re-ranking run: a config and what follows from it - shop, semantic IDs, vocabulary, prompts, model, stage.

WORKDIR/config.json     config, model, and what the shop was
       /vocab /index    the vocabulary, and index/codes.npz, the items' IDs
       /retriever       weights of a generative retriever (item_retriever.py)
       /examples.npz    messages as tokens (rerank_examples.py);  traces.jsonl  the same for people
       /traces          what a teacher wrote for it, with what was not kept (sampled_traces.py)

A run that starts from another one takes over its vocabulary, IDs and weights, so both must be of one shop.
"""

from collections.abc import Callable, Sequence
import dataclasses
from dataclasses import dataclass
import functools
import json
from pathlib import Path
import shutil
from typing import Any

import jax
from jaxtyping import Array, Bool, Int, Shaped
import ml_collections
import numpy as np

from diffgr_jax.data.interactions.shop import MADE_UP, item_documents, load_shop, read_users
from diffgr_jax.data.pretrained_vocab import pretrained_vocabulary
from diffgr_jax.data.vocab import Vocabulary, train_vocabulary
from diffgr_jax.decoding.denoiser import banned_tokens
from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.docid.build import BuildOptions, build_index
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.parallel.distributed import check_shared, in_turn
from diffgr_jax.parallel.rules import frozen_rules
from diffgr_jax.rerank.answer import AnswerForm, answer_form
from diffgr_jax.rerank.candidates import ListOptions, Lists, make_lists
from diffgr_jax.rerank.chat import message_text
from diffgr_jax.rerank.counts import History
from diffgr_jax.rerank.prompt import COMPACT, FULL, PromptOptions, render
from diffgr_jax.rerank.reasoning import TraceRules
from diffgr_jax.rerank.records import Shop
from diffgr_jax.rerank.retrievers import RETRIEVERS, Retriever
from diffgr_jax.rerank.semantic_ids import item_codes
from diffgr_jax.rerank.splits import LeaveOneOut, leave_one_out
from diffgr_jax.rerank.template_traces import TemplateTraces
from diffgr_jax.stages.cft import CftStage
from diffgr_jax.stages.opd import OpdStage
from diffgr_jax.stages.policy import Policy
from diffgr_jax.stages.replay import REPLAY
from diffgr_jax.stages.rl import RlStage
from diffgr_jax.stages.sft import SftStage, TokenWeights
from diffgr_jax.training.document_vectors import document_vectors
from diffgr_jax.training.fields import Config, set_fields
from diffgr_jax.training.item_retriever import GENERATIVE, RetrieverRecipe, generative
from diffgr_jax.training.options import lora_fields, transformer_config
from diffgr_jax.training.rerank_options import CFT, CONVERT, OPD, RL, check_examples
from diffgr_jax.training.start import pretrained_folder, pretrained_model

CODES_FILE = Path("index") / "codes.npz"
RETRIEVER_FOLDER = "retriever"  # weights of a generative one
_VOCABULARY_LISTS = 2000  # messages that a vocabulary is learned from

# How a run decodes and is evaluated: free to change for a checkpoint, with `--set field=value`.
DECODING_FIELDS = {
  "decoder": str, "block_size": int, "policy": str, "threshold": float, "decode_steps": int, "temperature": float,
  "max_new_tokens": int, "eval_batch_size": int, "eval_splits": list[str], "eval_limit": int, "invalid": str,
  "attention": str, "held_out_users": str,
}  # fmt: skip
_MAY_CHANGE = {*DECODING_FIELDS} - {"block_size"} | {
  "steps", "log_every", "eval_every", "watch_lists", "checkpoint_every", "keep_checkpoints", "keep_every", "keep_best",
  "best_metric", "mesh", "rules", "decode_rules", "microbatches", "remat", "data_dir", "shop_path", "ce_chunk",
}  # fmt: skip


_NEVER_WRITTEN = (Vocabulary.pad_id, Vocabulary.bos_id, Vocabulary.mask_id)

RerankStage = SftStage | CftStage | OpdStage | RlStage


@dataclass(frozen=True)
class RerankRun:
  """What a checkpoint of a re-ranker needs beside its weights."""

  workdir: Path
  config: Config
  shop: Shop
  vocab: Vocabulary
  codes: Int[np.ndarray, "N L"]  # of the shop's items
  model: TransformerConfig

  @functools.cached_property
  def parts(self) -> LeaveOneOut:
    """The shop's users, and which of them are evaluated."""
    return leave_one_out(self.shop, _held_out(self.config))

  @functools.cached_property
  def vectors(self) -> Shaped[np.ndarray, "N D"]:
    return document_vectors(self.config.vectors, item_documents(self.shop), seed=self.config.list_seed)

  @property
  def prompts(self) -> PromptOptions:
    return prompt_options(self.config)

  def lists(self, split: str) -> Lists:
    """The lists of a split, made once; `train` of all users, valid and test of those who are evaluated."""
    if split not in self._lists:
      self._lists[split] = self._make_lists(split)
    return self._lists[split]

  @functools.cached_property
  def _lists(self) -> dict[str, Lists]:
    return {}

  def _make_lists(self, split: str) -> Lists:
    return make_lists(self.parts, split, self._make_retriever(), list_options(self.config), vectors=self.vectors)

  def _make_retriever(self) -> Callable[[Sequence[History], int], Retriever]:
    config = self.config
    if config.retriever != GENERATIVE:
      return functools.partial(RETRIEVERS[config.retriever], seed=config.list_seed)
    recipe = RetrieverRecipe(steps=config.retriever_steps, d_model=config.retriever_width)
    folder = self.workdir / RETRIEVER_FOLDER
    return functools.partial(generative, codes=self.codes, folder=folder, recipe=recipe, seed=config.list_seed)

  @property
  def converted(self) -> bool:
    """Whether the model writes block by block."""
    return self.model.pattern == "block_causal"

  @property
  def decoder(self) -> str:
    """autoregressive | block."""
    if self.config.decoder != "auto":
      return self.config.decoder
    return "block" if self.converted else "autoregressive"

  @property
  def banned(self) -> Bool[Array, "V"]:
    """What no answer may hold: specials that only prompts have, MASK, and the rows that only pad."""
    return banned_tokens(self.model.vocab_size, self.vocab.size, _NEVER_WRITTEN)

  def set_decoding(self, assignments: list[str]) -> None:
    """Changes how the run decodes and is evaluated, from `field=value` strings; training fields stay."""
    set_fields(self.config, assignments, DECODING_FIELDS)

  @property
  def stage(self) -> RerankStage:
    config = self.config
    model = dataclasses.replace(self.model, attention=config.attention, rules=frozen_rules(config.rules))
    return make_stage(config, model, self.vocab.size, answer_form(self.vocab, self.prompts.template))


def check_same_tokens(teacher: RerankRun, run: RerankRun, named: str) -> None:
  """Raises ValueError where a teacher, `named` so, writes other tokens than the run that learns from it."""
  if teacher.vocab.size != run.vocab.size or not np.array_equal(teacher.codes, run.codes):
    raise ValueError(f"{named} has other tokens than this run: they need one mid-training or SFT")


def make_stage(
  config: Config, model: TransformerConfig, valid_size: int, form: AnswerForm | None = None
) -> RerankStage:
  """The stage that a config names, on a model; `form` tells the tokens that `config.choice_weight` is of."""
  never = (*_NEVER_WRITTEN, *range(valid_size, model.vocab_size))
  if config.stage == OPD:
    policy = writing_policy(config, model)
    return OpdStage(policy, never, config.divergence, config.jsd_beta, config.teacher_top_k)
  if config.stage == RL:
    policy = writing_policy(config, model)
    return RlStage(policy, never, config.clip_low, config.clip_high, config.aggregate, config.kl_weight)
  weights = TokenWeights(
    *(float(config[f"{name}_weight"]) for name in ("reasoning", "answer", "end", "choice")),
    labels=form.labels if form else (),
    first_codes=(form.first_code, form.first_code + form.level_codes) if form else (0, 0),
  )
  if config.stage not in (CONVERT, CFT):
    return SftStage(model, valid_size, weights, config.ce_chunk)
  return CftStage(
    model=model,
    process=make_process(config.process, config.schedule, suffix_fraction=config.suffix_fraction),
    block_size=config.block_size,
    mask_id=Vocabulary.mask_id,
    valid_size=valid_size,
    weights=weights,
    antithetic=config.antithetic,
    complementary=config.complementary,
    whole_stream=config.whole_stream,
    ce_chunk=config.ce_chunk,
  )


def writing_policy(config: Config, model: TransformerConfig) -> Policy:
  """The model as it writes rollouts."""
  return Policy(
    model=model,
    room=config.max_new_tokens,
    mask_id=Vocabulary.mask_id,
    block_size=1 if model.pattern == "causal" else config.block_size,
    temperature=config.rollout_temperature,
    estimator=config.estimator,
    draws=config.estimator_draws,
    beta=config.spg_beta,
    mix=config.spg_mix,
  )


def with_pool(run: RerankRun, pool: int) -> RerankRun:
  """The run, asked lists from the retriever's first `pool` in place of its own: its first ten, or more to draw from.

  Raises:
    ValueError: the pool is smaller than a list.
  """
  config = run.config.copy_and_resolve_references().unlock()
  if pool < config.list_size:
    raise ValueError(f"a pool of {pool} holds no list of {config.list_size} candidates (config.list_size)")
  config.list_pool, config.list_draws = pool, max(config.list_draws, 3) if pool > config.list_size else 1
  return dataclasses.replace(run, config=config.lock())


def prompt_options(config: Config) -> PromptOptions:
  """The prompts of a config: a size, and what the config says otherwise."""
  base = {"compact": COMPACT, "full": FULL}[config.prompt]
  said = {name: config[name] for name in ("history_items", "title_words", "name_words", "supporters")}
  return dataclasses.replace(base, evidence=config.evidence, **{k: v for k, v in said.items() if v >= 0})


def list_options(config: Config) -> ListOptions:
  return ListOptions(
    size=config.list_size,
    pool=config.list_pool,
    draws=config.list_draws,
    folds=config.list_folds,
    seed=config.list_seed,
  )


def made_up_options(config: Config) -> str:
  """The options of a made-up shop: joined by + in a config, whose arguments are joined by commas."""
  return config.shop_path.replace("+", ",")


def shop_of(config: Config, workdir: Path) -> Shop:
  """The shop that the config names, built on the first call."""
  return load_shop(
    config.shop,
    path=made_up_options(config) if config.shop == MADE_UP else config.shop_path,
    data_dir=config.data_dir or str(workdir / "data"),
    on_bad_row=config.on_bad_row,
    category=config.shop_category,
  )


def _held_out(config: Config) -> frozenset[str]:
  if config.held_out_users:
    return read_users(config.held_out_users)
  file = Path(config.shop_path) / "held_out_users.txt"
  return read_users(file) if config.shop != MADE_UP and file.is_file() else frozenset()


# --- building and reading ---


def prepare_rerank(config: Config, workdir: Path) -> RerankRun:
  """Builds (or, in a workdir that has them, reads) IDs and vocabulary. In a job of several processes the first builds.

  Raises:
    ValueError: the workdir belongs to a run with another config, or the shop has changed since; says which field.
    FileNotFoundError: the processes do not share the workdir.
  """
  with in_turn("shop, semantic IDs and vocabulary"):
    if jax.process_index():
      check_shared(Path(workdir) / "config.json")
    return _prepare(config, Path(workdir))


def _prepare(config: Config, workdir: Path) -> RerankRun:
  if (workdir / "config.json").exists():
    run = open_rerank(workdir, config)
    return dataclasses.replace(run, model=dataclasses.replace(run.model, remat=config.remat))
  check_examples(config)
  workdir.mkdir(parents=True, exist_ok=True)
  shop = shop_of(config, workdir)
  (workdir / "index").mkdir(exist_ok=True)
  run = (_started_from if config.start == "run" else _new)(config, shop, workdir)
  labels = answer_form(run.vocab, run.prompts.template).labels
  if run.prompts.template.labels and len(labels) < config.list_size:
    raise ValueError(f"config.list_size is {config.list_size}, but only {len(labels)} labels are single tokens here")
  run.vocab.save(workdir / "vocab")
  record = {
    "task": config.task,
    "fingerprint": shop.fingerprint,
    "model": run.model.to_dict(),
    "config": json.loads(config.to_json()),
  }
  (workdir / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
  return run


def _new(config: Config, shop: Shop, workdir: Path) -> RerankRun:
  vectors = document_vectors(config.vectors, item_documents(shop), seed=config.list_seed)
  if config.item_index:
    index = CodeIndex.load(config.item_index)
  else:
    how = BuildOptions(
      method=config.item_method,
      levels=config.item_levels,
      codes=config.item_codes,
      collisions="none" if config.item_method == "random" else "random",
      seed=config.list_seed,
    )
    index = build_index([item.item_id for item in shop.items], [item.title for item in shop.items], vectors, how)
  index.save(workdir / CODES_FILE)
  codes = item_codes(index, shop, config.item_index or "the index of semantic IDs")
  levels, size = codes.shape[1], int(max(index.level_sizes))
  if config.start == "pretrained":
    folder = pretrained_folder(config.pretrained)
    vocab = pretrained_vocabulary(folder, levels, size)
    model = pretrained_model(folder, vocab.padded_size, config.remat, config.compute_dtype)
    model = dataclasses.replace(model, **lora_fields(config))
  else:
    run = RerankRun(workdir, config, shop, _no_vocabulary(), codes, transformer_config(config, 1, canvas_length=1))
    vocab = train_vocabulary(_texts(run), config.vocab_size, docid_levels=levels, docid_codes=size)
    model = transformer_config(config, vocab.padded_size, canvas_length=1)
  return RerankRun(workdir, config, shop, vocab, codes, _pattern(config, model))


def _started_from(config: Config, shop: Shop, workdir: Path) -> RerankRun:
  """A run with the vocabulary, the IDs and the model of another, as its stage reads them."""
  first = open_rerank(Path(config.start_from))
  if first.shop.fingerprint != shop.fingerprint:
    raise ValueError(f"config.start_from {config.start_from} is a run of another shop, {first.shop.name}")
  for field in ("prompt", "history_items", "title_words", "name_words", "supporters", "evidence"):
    if first.config[field] != config[field]:
      raise ValueError(
        f"config.{field} is {config[field]!r}, but {config.start_from} was trained with {first.config[field]!r}"
      )
  shutil.copyfile(Path(config.start_from) / CODES_FILE, workdir / CODES_FILE)
  if (Path(config.start_from) / RETRIEVER_FOLDER).is_dir():
    shutil.copytree(Path(config.start_from) / RETRIEVER_FOLDER, workdir / RETRIEVER_FOLDER, dirs_exist_ok=True)
  model = dataclasses.replace(
    first.model, remat=config.remat, compute_dtype=config.compute_dtype, **lora_fields(config)
  )
  if config.stage in (OPD, RL):
    if config.alignment != first.config.alignment:
      raise ValueError(
        f"config.alignment is {config.alignment!r}, but {config.start_from} reads {first.config.alignment!r}"
      )
    if config.stage == OPD and not first.converted:
      raise ValueError(f"config.start_from {config.start_from} is not converted: the stage 'opd' teaches a block model")
    if not first.converted and config.estimator != REPLAY:
      raise ValueError(
        f"config.estimator is {config.estimator!r}, but {config.start_from} is autoregressive: its one pass is 'replay'"
      )
    if first.converted and config.block_size != first.config.block_size:
      raise ValueError(
        f"config.block_size is {config.block_size}, but {config.start_from} has {first.config.block_size}"
      )
    return RerankRun(workdir, config, shop, first.vocab, first.codes, model)
  return RerankRun(workdir, config, shop, first.vocab, first.codes, _pattern(config, model))


def _pattern(config: Config, model: TransformerConfig) -> TransformerConfig:
  """The model as its stage reads it: conversion changes the pattern, and may change the alignment, of equal weights."""
  pattern = "block_causal" if config.stage in (CONVERT, CFT) else "causal"
  return dataclasses.replace(model, pattern=pattern, alignment=config.alignment)


def _no_vocabulary() -> Vocabulary:
  return train_vocabulary(["a"], 300)


def _texts(run: RerankRun) -> list[str]:
  """What the vocabulary is learned from: messages as they are to be written, and the items' words."""
  tasks = run.lists("train").tasks[:_VOCABULARY_LISTS]
  options, ids = run.prompts, [""] * len(run.shop.items)
  writer = TemplateTraces(run.shop, options, TraceRules(len, least_tokens=0, target_first=False))
  texts = [f"{item.title} {item.brand} {' '.join(item.categories)}" for item in run.shop.items]
  for outcome in writer.traces(tasks):
    assert outcome.trace is not None
    message = render(outcome.task, run.shop, options, outcome.trace.reasoning, outcome.trace.ranking)
    texts.append(message_text(message, ids, options.template))
  return texts


def open_rerank(workdir: Path, config: Config | None = None) -> RerankRun:
  """Reads what `prepare_rerank` kept.

  Args:
    workdir: of the run.
    config: of a run that goes on in it; None: the one that it was trained with.

  Raises:
    FileNotFoundError: the folder holds no run.
    ValueError: it holds another task's, or one with another config.
  """
  workdir = Path(workdir)
  if not (workdir / "config.json").exists():
    raise FileNotFoundError(f"{workdir} holds no run (no config.json): train one with python -m diffgr_jax.main")
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  if record["config"].get("task") != "rerank":
    raise ValueError(f"{workdir} holds a run of the task {record['config'].get('task')!r}, not 'rerank'")
  if config is None:
    config = ml_collections.ConfigDict(record["config"])
  else:
    _check_same(record["config"], config, workdir)
  shop = shop_of(config, workdir)
  if shop.fingerprint != record["fingerprint"]:
    raise ValueError(f"the shop of {workdir} has changed since its run began: take another --workdir")
  codes = item_codes(CodeIndex.load(workdir / CODES_FILE), shop, str(workdir / CODES_FILE))
  vocab = Vocabulary.load(workdir / "vocab")
  return RerankRun(workdir, config, shop, vocab, codes, TransformerConfig.from_dict(record["model"]))


def _check_same(old: dict[str, Any], config: Config, workdir: Path) -> None:
  new = json.loads(config.to_json())
  for field in sorted(old):  # fields that came later are as the run goes on with them
    if field not in _MAY_CHANGE and old.get(field) != new.get(field):
      raise ValueError(
        f"{workdir} holds a run with {field}={old.get(field)!r}, not {new.get(field)!r}:"
        " take another --workdir, or that value"
      )


def task_of(workdir: Path) -> str:
  """Which task the run of a workdir has.

  Raises:
    FileNotFoundError: the folder holds no run.
  """
  file = Path(workdir) / "config.json"
  if not file.exists():
    raise FileNotFoundError(f"{workdir} holds no run (no config.json): train one with python -m diffgr_jax.main")
  return json.loads(file.read_text(encoding="utf-8"))["config"].get("task", "docid")
