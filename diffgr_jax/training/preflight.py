"""The step of a config as a program for a slice of TPUs, compiled with no data, no weights and no device.

config  ->  the model and shapes that follow from it  ->  the jitted step that the job itself runs
        ->  compiled for the slice  ->  an account (account.py)

train      the train step, gradient accumulation and optimizer in it
one_pass   the forward pass on the all-masked canvas that ranks every document (decoding/scoring.py)
canvas     one denoising step, constrained to the DocIDs (decoding/canvas.py)
cached     one pass of the causal and block decoders over the newest tokens, against a cache of all before
"""

from collections.abc import Callable
import dataclasses
from dataclasses import dataclass, field
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
import numpy as np

from diffgr_jax.data.vocab import ROW_MULTIPLE, SPECIAL_TOKENS, Vocabulary
from diffgr_jax.decoding.canvas import DecodeOptions, denoise_step, init_state
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.scoring import one_pass_retrieve
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.models import inference
from diffgr_jax.models.attention import Layout
from diffgr_jax.models.cache import init_cache
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.models.flops import docid_step_flops, forward_flops, matmul_flops, unread_canvas_flops
from diffgr_jax.models.hf import read_spec
from diffgr_jax.models.inference import decoding_axes, decoding_params
from diffgr_jax.models.kernels import kernel_for
from diffgr_jax.models.lora import trained_part
from diffgr_jax.models.transformer import abstract_params, logical_axes
from diffgr_jax.parallel.aot import with_shardings
from diffgr_jax.parallel.mesh import batch_shards
from diffgr_jax.parallel.rules import frozen_rules, partition_spec, replicated, tree_shardings
from diffgr_jax.stages.docid import DocIdStage, masked_rows
from diffgr_jax.stages.stage import Stage
from diffgr_jax.training.fields import Config
from diffgr_jax.training.optimizer import optimizer_of
from diffgr_jax.training.options import (
  AUTOREGRESSIVE,
  CODES,
  check_batch,
  check_config,
  check_mesh,
  docid_rows,
  holds_codes,
  masked_by,
  pattern_of,
)  # fmt: skip
from diffgr_jax.training.start import docid_model, pretrained_folder
from diffgr_jax.training.state import TrainState, state_shardings, train_step

STEPS = ("train", "one_pass", "canvas", "cached")
TOP = 100  # documents that one-pass retrieval returns


@dataclass(frozen=True)
class Plan:
  """What a job will be, as far as its config says."""

  model: TransformerConfig
  length: int  # tokens of a row, all streams of it
  canvas_length: int  # of them, positions that logits are asked for
  documents: int = 0
  docid_levels: int = 0  # that the vocabulary has rows for
  docid_codes: int = 0


@dataclass(frozen=True)
class Program:
  """A jitted step with the shapes and places of its arguments, and what is known of it beforehand."""

  lower: Callable[[], Any]
  held: dict[str, Any]  # arguments by what they are, as trees of shapes: weights, optimizer, index, cache, batch
  flops: int  # of the whole mesh, by the rule of models/flops.py
  passes: int  # over all weights: forward, backward, recomputation, times the microbatches
  tokens: int  # of a pass
  notes: list[str] = field(default_factory=list)


def plan(config: Config, documents: int, step: str) -> Plan:
  """The model of a config without its data: rows of the vocabulary and the canvas come from the config alone.

  Of learned DocIDs, from the index as well, if its file is there; without it no level names words.

  Raises:
    ValueError: the config is refused, or leaves its canvas to the data.
  """
  check_config(config)
  file = Path(config.docid_index)
  learned = config.docid == CODES
  codes = CodeIndex.load(file) if learned and file.is_file() else None
  levels, size = docid_rows(config, codes).values()
  canvas_length = config.canvas_length if not learned else codes.levels if codes else levels
  if not canvas_length:
    needed = "docid_levels above 0, or a file for docid_index" if learned else "canvas_length above 0"
    raise ValueError(f"a preflight needs config.{needed}: 0 leaves it to the data")
  pieces = config.vocab_size - len(SPECIAL_TOKENS)
  if config.start == "pretrained":
    folder = pretrained_folder(config.pretrained)
    if not (folder / "config.json").exists():
      raise ValueError(f"config.pretrained: {folder} holds no config.json, which says what model is to be compiled")
    pieces = read_spec(folder).config.vocab_size
  rows = -(-(len(SPECIAL_TOKENS) + pieces + levels * size) // ROW_MULTIPLE) * ROW_MULTIPLE
  model = docid_model(config, rows, canvas_length, codes, size, pieces)
  if config.code_head and codes is None:
    model = dataclasses.replace(model, code_levels=levels, code_size=size, first_pass=config.first_pass)
  model = dataclasses.replace(model, param_dtype=config.param_dtype)
  rules = frozen_rules(config.rules if step == "train" else config.decode_rules)
  attention = config.attention
  if attention == "auto":
    attention = kernel_for("tpu", config.compute_dtype, pattern_of(config))
  model = dataclasses.replace(model, rules=rules, attention=attention)
  return Plan(model, config.prompt_length + canvas_length, canvas_length, documents, levels, size)


def make_program(step: str, config: Config, job: Plan, mesh: Mesh) -> Program:
  """The step as a program for the mesh.

  Raises:
    ValueError: the mesh does not divide what the rules split over it; with the numbers.
  """
  make = {"train": _train, "one_pass": _one_pass, "canvas": _canvas, "cached": _cached}[step]
  return make(config, job, mesh)


def _place(mesh: Mesh, model: TransformerConfig, *axes: Any) -> NamedSharding:
  return NamedSharding(mesh, partition_spec(axes, dict(model.rules)))


def _array(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _train(config: Config, job: Plan, mesh: Mesh) -> Program:
  model, length = job.model, job.canvas_length
  check_mesh(config, model, length, mesh)
  rows = _place(mesh, model, "batch")
  batch = {
    "prompt": _array((config.batch_size, config.prompt_length), jnp.int32, rows),
    "docid": _array((config.batch_size, length), jnp.int32, rows),
    "doc_index": _array((config.batch_size,), jnp.int32, rows),
    "asked": _array((config.batch_size,), jnp.bool_, rows),
  }
  index = _index(config, job, replicated(mesh), replicated(mesh)) if config.document_weight else {}
  stage = planned_stage(config, job)
  unread, prompts = masked_rows(stage.masked_share, config.batch_size), np.asarray([config.prompt_length])
  flops = docid_step_flops(model, prompts, length, pattern_of(config), rows=config.batch_size, unread=unread)
  return train_program(config, job, mesh, stage, batch, round(flops), index, unread=unread * length)


def train_program(
  config: Config, job: Plan, mesh: Mesh, stage: Stage, batch: Any, flops: int, index: Any = None, *, unread: int = 0
) -> Program:
  """The train step of a stage on abstract batches, with gradient accumulation and optimizer in it.

  `unread` of the batch's tokens are not read by the model.
  """
  model, index = job.model, index or {}
  check_batch(config, batch_shards(mesh), 1)
  optimizer, _ = optimizer_of(config)
  shapes = abstract_params(model)
  moments = jax.eval_shape(optimizer.init, trained_part(model, shapes))
  state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, moments)
  state = with_shardings(state, state_shardings(model, optimizer, mesh, config.rules))

  def lower():
    with jax.set_mesh(mesh):
      seed = _array((), jnp.int32, replicated(mesh))
      how = dict(stage=stage, optimizer=optimizer, microbatches=config.microbatches)
      return train_step.lower(state, batch, index, seed, **how)

  passes = {"none": 3, "dots": 3, "full": 4}[model.remat]
  return Program(
    lower=lower,
    held={"weights": state.params, "optimizer": state.opt_state, "DocID index": index, "batch": batch},
    flops=flops,
    passes=passes * config.microbatches,
    tokens=(config.batch_size * job.length - unread) // config.microbatches,
  )


def planned_stage(config: Config, job: Plan) -> DocIdStage:
  """The stage of the job: `Run.stage`, but that every row of the vocabulary is in use."""
  denoiser, mask_id, columns = _canvas_of(config, job)
  return DocIdStage(
    denoiser=denoiser,
    **masked_by(config, job.model),
    mask_id=mask_id,
    valid_size=mask_id if holds_codes(config) else columns,
    antithetic=config.antithetic,
    ce_chunk=config.ce_chunk,
    diffusion_weight=config.diffusion_weight,
    document_weight=config.document_weight,
    document_negatives=config.document_negatives,
    prior_weight=config.prior_weight,
    label_smoothing=config.label_smoothing,
    spare_unasked=config.spare_unasked,
  )


def _canvas_of(config: Config, job: Plan) -> tuple[CanvasDenoiser | CodeDenoiser, int, int]:
  """The denoiser, MASK and the columns of a position's logits: of the vocabulary, or of a level's codes (`Run`)."""
  canvas = CanvasDenoiser(job.model, Vocabulary.pad_id, slots=config.slot_embeddings, pattern=pattern_of(config))
  if not holds_codes(config):
    return canvas, Vocabulary.mask_id, job.model.vocab_size
  size = job.docid_codes
  first_code = job.model.vocab_size - job.docid_levels * size
  return CodeDenoiser(canvas, Vocabulary.mask_id, first_code, size), size, size + 1


def _index(config: Config, job: Plan, documents: NamedSharding, whole: NamedSharding) -> dict[str, Any]:
  """What `Run.device_index` puts on the devices."""
  shape, columns = (job.documents, job.canvas_length), _canvas_of(config, job)[2]
  return {
    "codes": _array(shape, jnp.int32, documents),
    "scored": _array(shape, jnp.bool_, documents),
    "asked": _array(shape[:1], jnp.bool_, whole),
    "share": _array(shape[:1], jnp.float32, whole),
    "log_frequency": _array((job.canvas_length, columns), jnp.float32, whole),
    "rows": _array((columns,), jnp.int32, whole),
  }


def _decoding(config: Config, job: Plan, mesh: Mesh) -> tuple[Any, ...]:
  """Weights, prompts, index, banned tokens, denoiser and MASK of the canvas decoders."""
  if config.paradigm == AUTOREGRESSIVE:
    raise ValueError("--step=one_pass and canvas are a denoiser's: the paradigm 'autoregressive' has train and cached")
  model = job.model
  shards = batch_shards(mesh)
  batch = -(-config.eval_batch_size // shards) * shards
  params = with_shardings(
    abstract_params(model), tree_shardings(mesh, abstract_params(model), logical_axes(model), model.rules)
  )
  prompt = _array((batch, config.prompt_length), jnp.int32, _place(mesh, model, "batch"))
  parts = _split(mesh, model, "documents")
  padded = dataclasses.replace(job, documents=-(-job.documents // parts) * parts)
  index = _index(config, padded, _place(mesh, model, "documents"), replicated(mesh))
  denoiser, mask_id, columns = _canvas_of(config, job)
  banned = _array((columns,), jnp.bool_, replicated(mesh))
  return params, prompt, index, banned, denoiser, mask_id


def _split(mesh: Mesh, model: TransformerConfig, axis: str) -> int:
  """Into how many parts the mesh splits a logical axis."""
  return mesh.size // _place(mesh, model, axis).shard_shape((mesh.size,))[0]


def _one_pass(config: Config, job: Plan, mesh: Mesh) -> Program:
  params, prompt, index, banned, denoiser, mask_id = _decoding(config, job, mesh)
  model, (rows, width), length = job.model, prompt.shape, job.canvas_length
  whole = width + (length if model.first_pass == "canvas" else 0)
  if model.first_pass == "canvas":
    flops = forward_flops(model, rows, whole, pattern_of(config), logits_positions=length)
  else:
    flops = unread_canvas_flops(model, rows, width, length)

  def lower():
    with jax.set_mesh(mesh):
      how = dict(denoise=denoiser, mask_id=mask_id, k=min(TOP, job.documents), rules=model.rules)
      prior = index["log_frequency"] if config.prior_weight else None
      return one_pass_retrieve.lower(params, prompt, index["codes"], index["scored"], banned, prior, **how)

  return Program(
    lower=lower,
    held={"weights": params, "DocID index": index, "batch": prompt},
    flops=flops,
    passes=1,
    tokens=rows * whole,
  )


def _abstract(build: Callable[[], Any], place: Callable[[Any], NamedSharding]) -> tuple[list[Any], Any]:
  """Shapes and places of the leaves of what `build` makes, and its tree.

  Apart, for a state whose fields must be arrays cannot itself hold shapes.
  """
  trees = []

  def leaves() -> list[Any]:
    flat, tree = jax.tree.flatten(build())
    trees.append(tree)
    return flat

  return [_array(x.shape, x.dtype, place(x)) for x in jax.eval_shape(leaves)], trees[0]


def _canvas(config: Config, job: Plan, mesh: Mesh) -> Program:
  params, prompt, index, banned, denoiser, mask_id = _decoding(config, job, mesh)
  model, rows, length = job.model, prompt.shape[0], job.canvas_length
  options = DecodeOptions(make_policy(config.policy, config.threshold), mask_id, remask=config.remask)
  by_document, by_row = _place(mesh, model, "batch", "documents"), _place(mesh, model, "batch")

  def start() -> Any:
    canvas, codes = jnp.zeros((rows, length), jnp.int32), jnp.zeros(index["codes"].shape, jnp.int32)
    return init_state(canvas, jnp.zeros(rows, jnp.int32), jnp.zeros(banned.shape, bool), codes, mask_id)

  def place(x: Any) -> NamedSharding:
    if x.dtype == jnp.bool_:  # the documents that a canvas can still become
      return by_document
    return by_row if x.ndim else replicated(mesh)

  state, tree = _abstract(start, place)

  def step(params, prompt, state, banned, codes, of_rows, steps):
    how = dict(denoise=denoiser, options=options, rows=of_rows)
    state, _ = denoise_step(params, prompt, tree.unflatten(state), banned, codes, steps, make_sampling(), **how)
    return jax.tree.leaves(state)

  def lower():
    with jax.set_mesh(mesh):
      steps = _array((), jnp.int32, replicated(mesh))
      return jax.jit(step).lower(params, prompt, state, banned, index["codes"], index["rows"], steps)

  whole = config.prompt_length + length
  return Program(
    lower=lower,
    held={"weights": params, "DocID index": index, "batch": (prompt, state)},
    flops=forward_flops(model, rows, whole, pattern_of(config), logits_positions=length),
    passes=1,
    tokens=rows * whole,
  )


def _cached(config: Config, job: Plan, mesh: Mesh) -> Program:
  """One new token a row; the cache has room for the prompt and the canvas."""
  if job.model.code_levels:
    raise ValueError("--step=cached unembeds tokens of the vocabulary: config.code_head must be False")
  return cached_program(config, job, mesh, positions=1, slots=job.length)


def cached_program(config: Config, job: Plan, mesh: Mesh, *, positions: int, slots: int) -> Program:
  """A decoder's pass over the newest positions of every row, against a cache of so many slots."""
  model, shards = job.model, batch_shards(mesh)
  rows = -(-config.eval_batch_size // shards) * shards
  laid_out = jax.eval_shape(functools.partial(decoding_params, model), abstract_params(model))
  params = with_shardings(laid_out, tree_shardings(mesh, laid_out, decoding_axes(model), model.rules))
  stored, by_row = _place(mesh, model, ("batch", "kv_heads"), None, None), _place(mesh, model, "batch")
  with jax.set_mesh(mesh):
    cache, tree = _abstract(lambda: init_cache(model, rows, slots), lambda x: stored if x.ndim == 3 else by_row)
  tokens = _array((rows, positions), jnp.int32, by_row)
  pattern = "block_causal" if positions > 1 else "causal"

  def step(params, tokens, position, cache, offset):
    layout = Layout(position, jnp.ones_like(position), jnp.zeros_like(position))
    held = tree.unflatten(cache)
    hidden, new = inference.extend(model, params, tokens, layout, held, offset, pattern=pattern, block_size=positions)
    return inference.logits(model, params, hidden), jax.tree.leaves(new)

  def lower():
    with jax.set_mesh(mesh):
      offset = _array((), jnp.int32, replicated(mesh))
      return jax.jit(step, donate_argnums=3).lower(params, tokens, tokens, cache, offset)

  body, head = matmul_flops(model)
  seen = 4 * model.n_layers * model.n_heads * model.head_dim * slots
  return Program(
    lower=lower,
    held={"weights": params, "cache": cache, "batch": tokens},
    flops=rows * positions * (body + head + seen),
    passes=1,
    tokens=rows * positions,
  )
