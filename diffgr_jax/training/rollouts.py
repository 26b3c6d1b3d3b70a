"""Rounds of rollouts: written with the weights of now, learned from in one or several steps, kept for a resumed run.

    step             1        2        3        4          updates_per_rollout 2
    rounds           write 0 ------ -> write 1 ------ ->   with the weights of steps 0 and 2
    ahead            write 0, 1        write 2             round 1 is written while round 0 is learned from: its weights
                                                           are those of step 0, too

Which rollouts a round has is a function of the weights, the seed and the round alone. Where they do not follow from the
checkpoint that a run goes on from (a round that had begun, or was written ahead), they are read back from
WORKDIR/rollouts, so that resumed = uninterrupted.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

Rows = dict[str, np.ndarray]
Figures = dict[str, float]
Write = Callable[[Any, int, Sequence[int]], tuple[Rows, Figures]]  # weights, round, indices -> rollouts, figures
FOLDER = "rollouts"


class RolloutRows(grain.MapDataset[Rows]):
  """The endless stream of what is to be written: row n is rollout n % group of list n // group, in a shuffled order."""

  def __init__(self, lists: int, group: int, seed: int):
    super().__init__()
    self._order, self._group = grain.MapDataset.range(lists).seed(seed).shuffle().repeat(), group

  def __len__(self) -> int:
    return np.iinfo(np.int64).max

  def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
    at = self._order[int(index) // self._group]
    assert at is not None  # the order has no end
    return {"index": np.int64(index), "list": np.int32(at)}


class Rounds:
  """Gives each step the rollouts that it learns from."""

  def __init__(
    self, write: Write, workdir: Path, batch_size: int, *, updates: int, ahead: bool, keep_steps: int, steps: int
  ):
    """Remembers how rollouts are written.

    Args:
      write: writes the rollouts of a round's indices.
      workdir: of the run; rounds that a resumed run may need are kept there.
      batch_size: rollouts of a step.
      updates: steps of a round.
      ahead: a round is written while the one before it is learned from.
      keep_steps: rounds of so many steps back are kept in the workdir.
      steps: of the run: no round is written ahead that it would not learn from.
    """
    self._write, self._folder = write, workdir / FOLDER
    self._batch_size, self._updates, self._ahead = batch_size, updates, ahead
    self._keep, self._last = keep_steps // updates + 2, (steps - 1) // updates
    self._rounds: dict[int, tuple[Rows, Figures]] = {}
    self._pool = concurrent.futures.ThreadPoolExecutor(1) if ahead else None
    self._pending: dict[int, concurrent.futures.Future[tuple[Rows, Figures]]] = {}

  def step(self, params: Any, step: int) -> tuple[Rows, Figures]:
    """The rollouts of step `step` (from 1), and the figures of their round at its first step."""
    number, place = divmod(step - 1, self._updates)
    if number not in self._rounds:
      self._rounds = {number: self._take(params, number)}
    following = number + 1
    wanted = following <= self._last and following not in self._pending and not self._file(following).exists()
    if self._pool is not None and wanted:
      old = jax.tree.map(jnp.copy, params)  # the step that follows takes the weights' memory
      self._pending[following] = self._pool.submit(self._written, old, following)
    rows, figures = self._rounds[number]
    own = slice(place * self._batch_size, (place + 1) * self._batch_size)
    return {name: x[own] for name, x in rows.items()}, figures if place == 0 else {}

  def settle(self) -> None:
    """Waits for what is being written, so that a checkpoint finds it kept."""
    concurrent.futures.wait(self._pending.values())

  def _take(self, params: Any, number: int) -> tuple[Rows, Figures]:
    if number in self._pending:
      return self._pending.pop(number).result()
    return self._read(number) or self._written(params, number)

  def _written(self, params: Any, number: int) -> tuple[Rows, Figures]:
    count = self._batch_size * self._updates
    rows, figures = self._write(params, number, range(number * count, (number + 1) * count))
    if jax.process_index() == 0 and (self._updates > 1 or self._ahead):
      self._folder.mkdir(parents=True, exist_ok=True)
      partial = self._folder / f"{number}.partial.npz"
      np.savez(partial, allow_pickle=False, **rows)
      partial.replace(self._file(number))
      self._file(number - self._keep).unlink(missing_ok=True)
    return rows, figures

  def _file(self, number: int) -> Path:
    return self._folder / f"{number}.npz"

  def _read(self, number: int) -> tuple[Rows, Figures] | None:
    file = self._file(number)
    if not file.exists():
      return None
    with np.load(file) as kept:
      return dict(kept), {}
