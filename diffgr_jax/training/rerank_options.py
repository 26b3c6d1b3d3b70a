"""Fails fast: a re-ranking run's config is checked as a whole before any data is read."""

from pathlib import Path

from jax.sharding import Mesh

from diffgr_jax.data.interactions.shop import MADE_UP, NAMES
from diffgr_jax.decoding.policies import POLICIES, make_policy
from diffgr_jax.diffusion.corruption import SCHEDULES, make_process
from diffgr_jax.diffusion.divergence import DIVERGENCES
from diffgr_jax.docid.build import METHODS
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.parallel.rules import check_divides
from diffgr_jax.rerank.retrievers import RETRIEVERS
from diffgr_jax.stages.opd import SAMPLED
from diffgr_jax.stages.replay import ESTIMATORS
from diffgr_jax.stages.rl import AGGREGATES
from diffgr_jax.training.fields import Config, FieldRules, check_fields, check_training
from diffgr_jax.training.item_retriever import GENERATIVE

MID_TRAINING, SFT, CONVERT, CFT, OPD, RL = STAGES = ("mid_training", "sft", "convert", "cft", "opd", "rl")
START_TRACES = "start"  # config.traces: those of the run that this one starts from
SAMPLED_TRACES = "sampled"  # those that an autoregressive run writes
TEMPLATE = "template"
DECODERS = ("auto", "autoregressive", "block")
_PROCESSES = ("random_time", "exact_count", "uniform_weight", "all_masked")

_RULES = FieldRules(
  choices={
    "task": ("rerank",),
    "stage": STAGES,
    "shop": NAMES,
    "on_bad_row": ("error", "skip"),
    "retriever": (*RETRIEVERS, GENERATIVE),
    "item_method": METHODS,
    "prompt": ("compact", "full"),
    "trace_scores": ("trees", "evidence"),
    "start": ("random", "run", "pretrained"),
    "alignment": ("same_position", "shifted"),
    "process": _PROCESSES,
    "schedule": tuple(SCHEDULES),
    "decoder": DECODERS,
    "divergence": (*DIVERGENCES, SAMPLED),
    "estimator": ESTIMATORS,
    "aggregate": AGGREGATES,
    "policy": tuple(POLICIES),
    "invalid": ("input_order", "repair"),
    "best_metric": ("valid R@1", "valid NDCG@3"),
  },
  at_least={
    "steps": 0, "list_size": 2, "list_pool": 2, "list_draws": 1, "list_folds": 0, "item_levels": 1, "item_codes": 2,
    "history_items": -1, "title_words": -1, "name_words": -1, "supporters": -1, "least_reasoning": 0, "trace_moved": 0,
    "vocab_size": 300, "row_length": 8, "target_length": 8, "block_size": 1, "reasoning_weight": 0,
    "answer_weight": 0, "end_weight": 0, "choice_weight": 0, "decode_steps": 0, "max_new_tokens": 1,
    "eval_batch_size": 1, "eval_limit": 0, "watch_lists": 0, "temperature": 0, "group": 1, "teacher_top_k": 0,
    "teacher_passes": 0, "updates_per_rollout": 1, "reward_alpha": 0, "estimator_draws": 1, "kl_weight": 0,
    "clip_high": 0, "refills": 0, "least_entropy": 0, "retriever_steps": 1, "trace_lists": 0,
    "trace_tries": 1, "trace_temperature": 0,
  },
  above_zero=("rollout_temperature", "rollout_threshold", "teacher_temperature", "spg_beta"),
  shares=("jsd_beta", "clip_low", "spg_mix", "least_valid", "suffix_fraction", "trace_agreeing", "permuted_codes"),
)  # fmt: skip


def check_config(config: Config) -> None:
  """Raises ValueError with one line that names the field, its value and what it may be."""
  check_fields(config, _RULES)
  check_training(config)
  if config.shop != MADE_UP and not config.shop_path:
    raise ValueError(f"config.shop_path must name the folder of the files of the shop {config.shop!r}")
  if config.retriever == GENERATIVE:
    if not config.list_folds:
      raise ValueError(
        "config.list_folds is 2 or more for config.retriever 'generative', not 0: a model that has learned from a"
        " list's user knows the target"
      )
    if config.retriever_width < 8 or config.retriever_width % 8:
      raise ValueError(f"config.retriever_width is a multiple of 8, not {config.retriever_width}")
  if config.held_out_users and not Path(config.held_out_users).is_file():
    raise ValueError(f"config.held_out_users is a file that exists, or '', not {config.held_out_users!r}")
  if (config.start == "run") != bool(config.start_from):
    raise ValueError(
      "config.start_from must name a workdir when config.start is 'run', and only then: they are"
      f" {config.start_from!r} and {config.start!r}"
    )
  if (config.start == "pretrained") != bool(config.pretrained):
    raise ValueError(
      "config.pretrained must name a folder when config.start is 'pretrained', and only then: they are"
      f" {config.pretrained!r} and {config.start!r}"
    )
  if config.stage in (CONVERT, CFT, OPD, RL) and config.start != "run":
    raise ValueError(f"config.stage {config.stage!r} goes on with a trained model: config.start must be 'run'")
  if config.stage == CONVERT and config.steps:
    raise ValueError(f"config.steps must be 0 for the stage 'convert', which trains nothing, not {config.steps}")
  _check_rows(config)
  _check_traces(config)
  if config.stage in (OPD, RL):
    _check_rollouts(config)
  if config.stage in (MID_TRAINING, SFT) and config.decoder == "block":
    raise ValueError(f"config.decoder 'block' needs a converted model, not one of the stage {config.stage!r}")
  if config.stage in (MID_TRAINING, SFT) and config.alignment != "shifted":
    raise ValueError("config.alignment must be 'shifted' for an autoregressive model: logit i - 1 predicts token i")
  if config.complementary and (config.process, config.schedule) != ("exact_count", "linear"):
    raise ValueError("config.complementary draws counts: config.process must be 'exact_count', its schedule 'linear'")
  if config.complementary and config.suffix_fraction:
    raise ValueError("config.complementary needs masks at random places: config.suffix_fraction must be 0")
  make_policy(config.policy, config.threshold)
  make_process(config.process, config.schedule, suffix_fraction=config.suffix_fraction)
  if min(config.mixture.values()) < 0 or sum(config.mixture.values()) <= 0:
    raise ValueError(f"config.mixture holds shares of at least 0, one of them above 0, not {config.mixture.to_dict()}")
  if config.mixture.text and not config.text_files and config.stage == MID_TRAINING:
    raise ValueError("config.text_files must name text files when config.mixture.text is above 0")


def _check_rows(config: Config) -> None:
  if config.stage not in (CONVERT, CFT):
    return
  for field in ("row_length", "target_length"):
    if config[field] % config.block_size:
      raise ValueError(
        f"config.{field} ({config[field]}) must be a multiple of config.block_size ({config.block_size})"
      )
  if config.attention == "splash" and not config.whole_stream:
    raise ValueError("config.attention 'splash' needs config.whole_stream: its mask is of two equal halves")


def _check_rollouts(config: Config) -> None:
  if config.batch_size % (config.group * config.microbatches):
    raise ValueError(
      f"config.batch_size ({config.batch_size}) counts rollouts, and must be a multiple of config.group"
      f" ({config.group}) times config.microbatches ({config.microbatches})"
    )
  if rollout_context(config) < 1:
    raise ValueError(
      f"config.row_length ({config.row_length}) leaves no room for a prompt beside {config.max_new_tokens} new tokens"
    )
  make_policy(config.policy, config.rollout_threshold)
  if config.checkpoint_every % config.updates_per_rollout:
    raise ValueError(
      f"config.checkpoint_every ({config.checkpoint_every}) must be a multiple of config.updates_per_rollout"
      f" ({config.updates_per_rollout})"
    )
  if config.stage == OPD and bool(config.teacher) == config.teacher_slow:
    raise ValueError(
      "config.teacher names a workdir unless config.teacher_slow has the student taught by itself: they are"
      f" {config.teacher!r} and {config.teacher_slow}"
    )
  if config.stage == OPD and config.divergence == "jsd" and not 0 < config.jsd_beta < 1:
    raise ValueError(f"config.jsd_beta is between 0 and 1, not {config.jsd_beta}: take forward_kl or reverse_kl there")
  if config.stage == OPD and config.divergence == SAMPLED:
    whole = {"updates_per_rollout": 1, "rollout_ahead": False, "rollout_temperature": 1.0}
    whole |= {"refills": 0, "teacher_passes": 0}
    for field, value in whole.items():
      if config.get(field, value) != value:  # older runs lack some
        raise ValueError(
          f"config.divergence 'sampled' is a gradient of all fresh rollouts at temperature 1: config.{field} must be"
          f" {value}, not {config[field]}"
        )
  if config.stage == RL and config.group < 2:
    raise ValueError("config.group is at least 2 for the stage 'rl', whose rewards are compared inside a group")


def rollout_context(config: Config) -> int:
  """Slots of a rollout's row for the prompt, in whole blocks."""
  size = config.block_size
  return (config.row_length // size - -(-(size - 1 + config.max_new_tokens) // size)) * size


def check_examples(config: Config) -> None:
  """Of a new run: are the messages there that it asks for? One that has its own needs no other's any more."""
  for folder in filter(None, config.get("examples", "").split("+")):
    if not (Path(folder) / "examples.npz").is_file():
      raise ValueError(f"config.examples names workdirs of runs that were trained on messages, and {folder} is none")


def _check_traces(config: Config) -> None:
  if config.stage in (MID_TRAINING, OPD, RL):
    return
  if config.get("trace_model", "") and config.traces != SAMPLED_TRACES:  # older runs lack the field
    raise ValueError(f"config.trace_model writes where config.traces is 'sampled', and it is {config.traces!r}")
  if config.traces == START_TRACES:
    if config.start != "run":
      raise ValueError("config.traces 'start' are those of another run: config.start must be 'run'")
  elif config.traces == SAMPLED_TRACES:
    if not (config.trace_model or config.start_from):
      raise ValueError("config.traces 'sampled' needs a run that writes them: config.trace_model, or config.start_from")
  elif config.traces != TEMPLATE:
    for file in config.traces.split("+"):
      if not Path(file).is_file():
        raise ValueError(f"config.traces is 'template', 'start', 'sampled' or files joined by +; no file {file!r}")


def check_mesh(config: Config, model: TransformerConfig, mesh: Mesh) -> None:
  """Raises ValueError, with the numbers, where the mesh does not divide what the rules split over it."""
  rows = config.batch_size // config.microbatches
  streams = config.row_length
  if config.stage == CFT:
    streams += config.row_length if config.whole_stream else config.target_length
  sizes = {
    "batch": rows, "lookup": rows, "length": streams, "canvas": config.target_length, "features": model.d_model,
    "heads": model.n_heads, "kv_heads": model.n_kv_heads, "mlp": model.d_ff, "vocab": model.vocab_size,
  }  # fmt: skip
  check_divides(sizes, mesh, config.rules)
