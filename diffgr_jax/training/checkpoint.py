"""Checkpoints of a run: what is written, when, and how the newest is read back (Orbax, asynchronous).

workdir/config.json  vocab/  index/            what the weights mean; written once, before the first step
workdir/checkpoints/<step>/params              the parameters, a plain nested dict: all that inference reads
                          /training            step counter and optimizer state
                          /data                the position of the input pipeline, one file a process
"""

from pathlib import Path
from typing import Any

import grain
import grain.checkpoint
import jax
import orbax.checkpoint as ocp

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, abstract_params
from diffgr_jax.training.state import TrainState


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: Path, *, keep: int = 2):
    self.directory = Path(workdir).absolute() / "checkpoints"
    self._manager = ocp.CheckpointManager(
      self.directory, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    )

  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(self, step: int, state: TrainState, iterator: grain.DatasetIterator) -> None:
    """Starts writing; the device goes on training meanwhile."""
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        training=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
        data=grain.checkpoint.CheckpointSave(iterator),
      ),
    )

  def restore(self, step: int, abstract: TrainState, iterator: grain.DatasetIterator) -> TrainState:
    """Reads a checkpoint into the shardings of `abstract` and moves the iterator to its position."""
    restored: Any = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(abstract.params),
        training=ocp.args.StandardRestore({"step": abstract.step, "opt_state": abstract.opt_state}),
        data=grain.checkpoint.CheckpointRestore(iterator),
      ),
    )
    return TrainState(restored.training["step"], restored.params, restored.training["opt_state"])

  def wait(self) -> None:
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.close()


def abstract_state(state_or_shapes: Any, shardings: Any) -> Any:
  """Shapes, dtypes and shardings of a state: what a restore needs to know."""
  return jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), state_or_shapes, shardings
  )


def restore_params(workdir: Path, config: TransformerConfig, step: int | None = None) -> tuple[Params, int]:
  """Reads only the parameters of a checkpoint, onto the first device.

  Args:
    workdir: of a run.
    config: of the model that was trained.
    step: which checkpoint; None takes the newest.

  Raises:
    FileNotFoundError: no checkpoint, or not the asked one.
  """
  directory = Path(workdir).absolute() / "checkpoints"
  steps = sorted(int(path.name) for path in directory.glob("*") if path.name.isdigit()) if directory.is_dir() else []
  if not steps:
    raise FileNotFoundError(
      f"{workdir} holds no checkpoint: train first, with python -m diffgr_jax.main --workdir={workdir}"
    )
  if step is not None and step not in steps:
    raise FileNotFoundError(f"{workdir} holds no checkpoint of step {step}; it holds {', '.join(map(str, steps))}")
  step = steps[-1] if step is None else step
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract_params(config)
  )
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(directory / str(step) / "params", abstract), step
