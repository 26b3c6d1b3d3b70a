"""The step of a re-ranking config as a program for a slice of TPUs (preflight.py has DocID retrieval, and the parts).

train    the train step of mid_training, sft or cft on packed rows; of opd and rl on rollouts, with as many passes as a
         decoder takes at most (`decode_steps` a block; 0: one a token)
cached   a pass of the decoder: one token a row, or of a converted model one block, against a cache of a whole row
"""

from collections.abc import Callable
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from diffgr_jax.data.vocab import ROW_MULTIPLE, SPECIAL_TOKENS
from diffgr_jax.models.hf import read_spec
from diffgr_jax.models.kernels import kernel_for
from diffgr_jax.parallel.rules import frozen_rules, partition_spec
from diffgr_jax.stages.opd import SAMPLED
from diffgr_jax.training.fields import Config
from diffgr_jax.training.options import lora_fields, transformer_config
from diffgr_jax.training.preflight import Plan, Program, cached_program, train_program
from diffgr_jax.training.rerank_job import rollout_flops, training_flops
from diffgr_jax.training.rerank_options import MID_TRAINING, OPD, RL, SFT, check_mesh, rollout_context
from diffgr_jax.training.rerank_run import make_stage


def plan_rerank(config: Config, step: str) -> Plan:
  """The model of a config without its shop: rows of the vocabulary come from the config alone.

  Raises:
    ValueError: the config is refused, or a step that re-ranking does not have.
  """
  if step not in ("train", "cached"):
    raise ValueError(f"--step={step} is of DocID retrieval; re-ranking has train and cached")
  ids = config.item_levels * config.item_codes
  rows = lambda pieces: -(-(len(SPECIAL_TOKENS) + pieces + ids) // ROW_MULTIPLE) * ROW_MULTIPLE
  if config.pretrained:
    folder = Path(config.pretrained)
    if not (folder / "config.json").exists():
      raise ValueError(f"config.pretrained: {folder} holds no config.json, which says what model is to be compiled")
    spec = read_spec(folder).config
    model = dataclasses.replace(
      spec,
      vocab_size=rows(spec.vocab_size),
      param_dtype=config.param_dtype,
      compute_dtype=config.compute_dtype,
      remat=config.remat,
      **lora_fields(config),
    )
  else:
    model = transformer_config(config, rows(config.vocab_size), canvas_length=1)
  converted = _in_blocks(config)
  rules = frozen_rules(config.rules if step == "train" else config.decode_rules)
  attention = kernel_for("tpu", config.compute_dtype, model.pattern) if config.attention == "auto" else config.attention
  if attention == "splash" and converted and not config.whole_stream:
    attention = "reference"  # as `auto` has it there
  model = dataclasses.replace(
    model,
    rules=rules,
    attention=attention,
    alignment=config.alignment,
    pattern="block_causal" if converted else "causal",
  )
  streams = config.row_length
  if step == "train" and config.stage in (OPD, RL):
    streams += most_passes(config) * config.block_size if converted else 0
  elif step == "train" and converted:
    streams += config.row_length if config.whole_stream else config.target_length
  return Plan(model, streams, config.target_length)


def make_rerank_program(step: str, config: Config, job: Plan, mesh: Mesh) -> Program:
  """The step as a program for the mesh.

  Raises:
    ValueError: the mesh does not divide what the rules split over it; with the numbers.
  """
  if step == "cached":
    positions = config.block_size if _in_blocks(config) else 1
    return cached_program(config, job, mesh, positions=positions, slots=config.row_length)
  check_mesh(config, job.model, mesh)
  rows = NamedSharding(mesh, partition_spec(("batch",), dict(job.model.rules)))
  array = lambda dtype, *shape: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype, sharding=rows)
  row = functools.partial(array, jnp.int32)
  if config.stage in (OPD, RL):
    return _rollout_program(config, job, mesh, array)
  batch = {name: row(config.row_length) for name in ("tokens", "position", "segment", "part")}
  batch["target_at"] = row(config.target_length)
  stage = make_stage(config, job.model, job.model.vocab_size)
  return train_program(config, job, mesh, stage, batch, config.batch_size * training_flops(config, job.model))


def _in_blocks(config: Config) -> bool:
  """Whether the model that is trained writes block by block; rl of a teacher says so by its decoder."""
  return config.stage not in (MID_TRAINING, SFT) and config.decoder != "autoregressive"


def most_passes(config: Config) -> int:
  """Passes that a rollout may take, at most."""
  blocks = (config.row_length - rollout_context(config)) // config.block_size
  return min(blocks * (config.decode_steps or config.block_size), config.max_new_tokens)


def _rollout_program(config: Config, job: Plan, mesh: Mesh, array: Callable[..., Any]) -> Program:
  """A train step on rollouts, scores among them."""
  room, vocab = config.max_new_tokens, job.model.vocab_size
  passes = config.teacher_passes if config.stage == OPD and config.teacher_passes else most_passes(config)
  row, number = functools.partial(array, jnp.int32), functools.partial(array, jnp.float32)
  batch = {"tokens": row(config.row_length), "step": row(config.row_length), "log_prob": number(config.row_length)}
  batch |= {"start": row(), "length": row(), "row_seed": row(), "finished": array(jnp.bool_), "copy": row(passes)}
  if config.stage == RL:
    batch |= {"advantage": number(), "kept": array(jnp.bool_), "old_log_prob": number(room)}
    batch |= {"reference_log_prob": number(room)} if config.kl_weight else {}
  elif config.divergence == SAMPLED:
    batch |= {"teacher_log_prob": number(room)}
  elif top := config.teacher_top_k:
    batch |= {"teacher_ids": row(room, top), "teacher_log_probs": number(room, top + 1)}
  else:
    batch |= {"teacher_log_probs": number(room, vocab)}
  stage = make_stage(config, job.model, vocab)
  flops = rollout_flops(config, job.model, config.row_length, passes)
  return train_program(config, job, mesh, stage, batch, config.batch_size * flops)
