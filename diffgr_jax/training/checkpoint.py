"""Checkpoints of a run: what is written, when, which are kept, and how the newest whole one is read back.

workdir/config.json  vocab/  index/            what the weights mean; written once, before the first step
workdir/checkpoints/<step>/params              the parameters, a plain nested dict: all that inference reads
                          /training            step counter and optimizer state
                          /position            examples taken from the data by all processes, and the random stream
                          /run                 config, vocabulary and DocIDs again, and a manifest of all files

Of a run with adapters (LoRA), workdir/base holds the frozen weights, written once, and params the adapters alone.

Saving is asynchronous (Orbax): the host copies the arrays and goes on; writing, /run and the rename that makes the step
visible happen behind training. Any mesh and any number of processes reads what any other wrote.
"""

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import json
from pathlib import Path
import shutil
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.lora import join, split_adapters
from diffgr_jax.models.transformer import Params, abstract_params
from diffgr_jax.parallel.distributed import agreed, barrier
from diffgr_jax.training.kept import RUN_ITEM, Kept, look_through, set_aside, write_manifest
from diffgr_jax.training.shipped import is_shipped, shipped_params
from diffgr_jax.training.state import TrainState

_RUN_FILES = ("config.json", "vocab", "index")
_BASE = "base"


@dataclass(frozen=True)
class Position:
  """Where a run stands beside its arrays: in the data, and in the random stream."""

  examples: int  # taken by all processes together
  batch_size: int
  seed: int
  generator: str  # of random keys, and a first draw from it: settings that change the stream change the draw

  @classmethod
  def of(cls, examples: int, batch_size: int, seed: int) -> "Position":
    key = jax.random.key(seed)
    return cls(examples, batch_size, seed, f"{jax.random.key_impl(key)} {int(jax.random.bits(key)):08x}")

  def check_same_stream(self, other: "Position", step: int) -> None:
    """Raises ValueError where the run would not draw what the one that saved would have drawn."""
    for field in ("batch_size", "seed", "generator"):
      if getattr(self, field) != getattr(other, field):
        raise ValueError(
          f"checkpoint {step} was trained with {field} {getattr(self, field)!r}, not {getattr(other, field)!r}:"
          " the run cannot go on exactly"
        )


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(
    self,
    workdir: Path,
    model: TransformerConfig,
    *,
    keep: int = 2,
    keep_every: int = 0,
    keep_best: int = 0,
    best_metric: str = "",
  ):
    """Opens the workdir's checkpoints; damaged and unfinished ones are named and set aside.

    Args:
      workdir: of the run.
      model: that is trained.
      keep: the newest so many stay.
      keep_every: those of every so many steps stay for good; 0: none.
      keep_best: the best so many stay; 0: none.
      best_metric: by which figure of those that `save` was given; higher is better.
    """
    self.directory = Path(workdir).absolute() / "checkpoints"
    self._workdir = Path(workdir).absolute()
    self._model = model
    self._adapters_alone = bool(agreed(_adapters_alone(self._workdir, model)))
    if jax.process_index() == 0:
      for line in set_aside(self.directory, look_through(self.directory)):
        print(line, flush=True)
    barrier("damaged checkpoints are set aside")
    policies: list[Any] = [LatestN(keep)]
    if keep_every:
      policies.append(EveryNSteps(keep_every))
    figure = lambda metrics: metrics[best_metric]
    if keep_best:
      policies.append(BestN(get_metric_fn=figure, n=keep_best, keep_checkpoints_without_metrics=False))
    self._best_metric = best_metric if keep_best else ""
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_handlers={
        "params": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "position": ocp.JsonCheckpointHandler(),
        RUN_ITEM: _RunFilesHandler(),  # the last: its manifest lists the others' files
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy(policies),
        best_fn=figure if keep_best else None,
        enable_async_checkpointing=True,
      ),
    )

  def latest(self) -> int | None:
    step = self._manager.latest_step()
    return None if (step := agreed(-1 if step is None else step)) < 0 else step

  def keep_base(self, params: Params) -> None:
    """Writes the weights that adapters stand beside, and waits for them; does nothing for a model without adapters."""
    if self._model.lora_rank and not self._adapters_alone:
      with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(self._workdir / _BASE, split_adapters(params)[1])
      self._adapters_alone = True

  def save(self, step: int, state: TrainState, position: Position, metrics: Mapping[str, float] | None = None) -> None:
    """Starts writing; the device goes on training meanwhile. Waits for the save before, where it is not done yet."""
    params = split_adapters(state.params)[0] if self._adapters_alone else state.params
    tracked = {self._best_metric: metrics[self._best_metric]} if metrics and self._best_metric in metrics else None
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        position=ocp.args.JsonSave(dataclasses.asdict(position)),
        **{RUN_ITEM: _RunFiles(str(self._workdir))},
      ),
      metrics=tracked,
      force=True,
    )

  def restore(self, step: int, abstract: TrainState, position: Position) -> tuple[TrainState, Position]:
    """Reads a checkpoint into the shardings of `abstract`.

    Args:
      step: which.
      abstract: shapes, dtypes and shardings.
      position: of the run at its start: what it must agree with.

    Raises:
      ValueError: the run draws from another random stream.
    """
    adapters, base = split_adapters(abstract.params) if self._adapters_alone else (abstract.params, {})
    restored: Any = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(adapters),
        training=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
      ),
    )
    path = self.directory / str(step) / "position"
    if path.is_dir():
      kept = Position(**json.loads((path / "metadata").read_text(encoding="utf-8")))
    else:  # kept by an older program, which took one batch a step
      kept = dataclasses.replace(position, examples=step * position.batch_size)
    kept.check_same_stream(position, step)
    params = join(_read(self._workdir / _BASE, base), restored.params) if base else restored.params
    return TrainState(restored.training["step"], params, restored.training["opt_state"]), kept

  def wait(self) -> None:
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def abstract_state(state_or_shapes: Any, shardings: Any) -> Any:
  """Shapes, dtypes and shardings of a state: what a restore needs to know."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_or_shapes, shardings
  )


def restore_params(
  workdir: Path, config: TransformerConfig, step: int | None = None, shardings: Any = None
) -> tuple[Params, int]:
  """Reads only the parameters of a checkpoint, or of a shipped run.

  Args:
    workdir: of a run.
    config: of the model that was trained.
    step: which checkpoint; None takes the newest whole one, and names those that it passes over.
    shardings: where each parameter is to lie, also over several processes (all of which must ask); None: on the first
      device.

  Raises:
    FileNotFoundError: no checkpoint, or not the asked one.
    ValueError: the asked one is damaged.
  """
  if is_shipped(Path(workdir)):
    params, shipped = shipped_params(Path(workdir), config)
    if step not in (None, shipped):
      raise FileNotFoundError(f"{workdir} is a shipped run: it holds step {shipped} alone, not {step}")
    return params if shardings is None else jax.device_put(params, shardings), shipped
  directory = Path(workdir).absolute() / "checkpoints"
  kept: Kept = look_through(directory, newest=step is None)
  if not kept.steps and not kept.damaged:
    raise FileNotFoundError(
      f"{workdir} holds no checkpoint: train first, with python -m diffgr_jax.main --workdir={workdir}"
    )
  if step in kept.damaged or not kept.steps:
    damaged = max(kept.damaged) if step is None else step
    raise ValueError(f"checkpoint {damaged} of {workdir} is damaged: {kept.damaged[damaged]}")
  if step is not None and step not in kept.steps:
    raise FileNotFoundError(f"{workdir} holds no checkpoint of step {step}; it holds {', '.join(map(str, kept.steps))}")
  if step is None:
    step = kept.steps[-1]
    for number, wrong in sorted(kept.damaged.items()):
      print(f"checkpoint {number} is damaged ({wrong}): passed over for {step}", flush=True)
  shapes = abstract_params(config)
  if shardings is None:
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: first, shapes)
  place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  abstract = jax.tree.map(place, shapes, shardings)
  if not _adapters_alone(directory.parent, config):
    return _read(directory / str(step) / "params", abstract), step
  adapters, base = split_adapters(abstract)
  return join(_read(directory.parent / _BASE, base), _read(directory / str(step) / "params", adapters)), step


def _adapters_alone(workdir: Path, model: TransformerConfig) -> bool:
  """Whether the workdir's steps hold adapters without the weights beside them (an older program kept both)."""
  return bool(model.lora_rank) and (workdir / _BASE).is_dir()


def _read(folder: Path, abstract: Params) -> Params:
  """Raises ValueError where the folder does not hold what is asked for."""
  with ocp.StandardCheckpointer() as checkpointer:
    try:
      return checkpointer.restore(folder, abstract)
    except (OSError, KeyError, ValueError) as error:
      raise ValueError(f"{folder} cannot be read: {error}") from error


# --- what the weights mean, beside the weights ---


class _RunFilesHandler(ocp.CheckpointHandler):
  """Copies a run's files into a step when all else of it is written (process 0, behind training)."""

  def __init__(self):
    self._workdir = Path()

  def save(self, directory: epath.Path, args: "_RunFiles") -> None:
    del directory
    self._workdir = Path(args.workdir)  # nothing is written here: this part of a save blocks training

  def restore(self, directory: epath.Path, args: "_RunFiles") -> epath.Path:
    del args
    return directory

  def finalize(self, directory: epath.Path) -> None:
    for name in _RUN_FILES:
      source, target = self._workdir / name, Path(directory) / name
      if source.is_dir():
        shutil.copytree(source, target)
      elif source.exists():
        shutil.copyfile(source, target)
    write_manifest(Path(directory).parent)


@ocp.args.register_with_handler(_RunFilesHandler, for_save=True, for_restore=True)
@dataclass
class _RunFiles(ocp.args.CheckpointArgs):
  """Where the files of a run are."""

  workdir: str
