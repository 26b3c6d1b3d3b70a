"""What the fields of a config may be: rules, their check, and the fields that every kind of run has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from diffgr_jax.training.optimizer import DECAYS, OPTIMIZERS

Config = Any  # a ConfigDict, whose fields have the types that the files under configs/ give them


@dataclass(frozen=True)
class FieldRules:
  """Allowed values by field.

  Attributes:
    choices: one of these.
    at_least: this or more.
    above_zero: more than 0.
    shares: from 0 to 1.
  """

  choices: Mapping[str, Sequence[Any]] = field(default_factory=dict)
  at_least: Mapping[str, int | float] = field(default_factory=dict)
  above_zero: Sequence[str] = ()
  shares: Sequence[str] = ()


_TRAINING = FieldRules(
  choices={"attention": ("auto", "reference", "splash", "flash"), "lr_decay": DECAYS, "optimizer": OPTIMIZERS},
  at_least={
    "batch_size": 1, "microbatches": 1, "warmup_steps": 0, "log_every": 1, "eval_every": 0, "checkpoint_every": 1,
    "keep_checkpoints": 1, "ce_chunk": 0, "weight_decay": 0, "lora_rank": 0, "keep_every": 0, "keep_best": 0,
  },
  above_zero=("learning_rate", "clip_norm", "rope_theta"),
  shares=("b1", "b2", "final_lr_fraction", "embedding_rate", "head_rate", "row_rate"),
)  # fmt: skip


def check_fields(config: Config, rules: FieldRules) -> None:
  """Raises ValueError with one line that names the field, its value and what it may be.

  Fields that the config does not have (of a run that is older than they are) are passed over.
  """
  for name, allowed in rules.choices.items():
    if name in config and config[name] not in allowed:
      raise ValueError(f"config.{name} is one of {', '.join(map(str, allowed))}, not {config[name]!r}")
  for name, least in rules.at_least.items():
    if name in config and config[name] < least:
      raise ValueError(f"config.{name} is at least {least}, not {config[name]}")
  for name in rules.above_zero:
    if name in config and config[name] <= 0:
      raise ValueError(f"config.{name} is above 0, not {config[name]}")
  for name in rules.shares:
    if name in config and not 0.0 <= config[name] <= 1.0:
      raise ValueError(f"config.{name} is in [0, 1], not {config[name]}")


def check_training(config: Config) -> None:
  """Checks the fields that every kind of run trains by."""
  check_fields(config, _TRAINING)
  if config.steps and config.warmup_steps >= config.steps:
    raise ValueError(f"config.warmup_steps ({config.warmup_steps}) must be below config.steps ({config.steps})")
  if config.batch_size % config.microbatches:
    raise ValueError(
      f"config.batch_size ({config.batch_size}) must be a multiple of config.microbatches ({config.microbatches})"
    )
  if config.keep_every % config.checkpoint_every:
    raise ValueError(
      f"config.keep_every ({config.keep_every}) must be a multiple of config.checkpoint_every"
      f" ({config.checkpoint_every}): other steps are not saved"
    )
  if config.keep_best and (not config.eval_every or config.checkpoint_every % config.eval_every):
    raise ValueError(
      f"config.keep_best needs an evaluation at every checkpoint: checkpoint_every ({config.checkpoint_every}) must be"
      f" a multiple of eval_every ({config.eval_every})"
    )


def set_fields(config: Config, assignments: Sequence[str], allowed: Mapping[str, type]) -> None:
  """Changes fields from `field=value` strings, as --set takes them.

  Raises:
    ValueError: not of that form, another field, or a value of another type.
  """
  for assignment in assignments:
    name, equals, value = assignment.partition("=")
    if not equals or name not in allowed:
      raise ValueError(f"--set {assignment}: field=value with one of the fields {', '.join(allowed)}")
    kind = allowed[name]
    try:
      (item,) = get_args(kind) or (None,)
      config[name] = [item(part) for part in value.split(",") if part] if item else kind(value)
    except ValueError:
      raise ValueError(f"--set {assignment}: {name} is of type {kind.__name__}, not {value!r}") from None
