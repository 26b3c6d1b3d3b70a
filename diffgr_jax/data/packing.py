"""Tokenised examples, several in a row: as little padding as random order allows, and an exact position.

    examples   aaaaA  bbB  cccccC  ddD          a: what is given, A: what is to be learned (a target)
    row 0      aaaaA bbB . .                    a row has `row_length` slots and room for `target_length` targets
    row 1      cccccC . . | ddD                 each example begins at a multiple of `align`

Each epoch shuffles all examples, lays each into the first open row that still has room, and shuffles the rows. Row i of
the stream is a function of the seed and i alone, so its position is one number, whatever number of processes reads it
(data/pipeline.py has the same for DocIDs). Grain's own packing keeps its open rows as state of one process.

A row is {"tokens", "position", "segment", "part": Int[T], "target_at": Int[N]}: `position` counts within an example,
`segment` from 1 (0: padding), `part` is what the example says of its tokens, and `target_at` names the slots of the
targets, -1 behind the last. With `align` S above 1 these are all slots of every block of S that holds a target, and
what stands between an example's end and the end of its last block has part `BEHIND`: a block decoder holds MASK there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import threading
from typing import Any

import grain
from jaxtyping import Int
import numpy as np

from diffgr_jax.data.parts import BEHIND

_OPEN_ROWS = 64  # that an example may be laid into

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Example:
  """Tokens and their parts; those of part 0 are given, the others are targets."""

  tokens: Int[np.ndarray, "T"]
  parts: Int[np.ndarray, "T"]


@dataclass(frozen=True)
class RowShape:
  """What a row has room for.

  Attributes:
    length: slots.
    targets: slots of targets, or of blocks that hold one.
    align: examples begin at multiples of it.
    pad_id: the token of the padding.
  """

  length: int
  targets: int
  align: int
  pad_id: int

  def __post_init__(self):
    if self.align < 1 or self.length % self.align or self.targets % self.align:
      raise ValueError(
        f"a row's length ({self.length}) and its room for targets ({self.targets}) must be multiples of {self.align}"
      )


def fitting(examples: Sequence[Example], shape: RowShape) -> list[Example]:
  """The examples that fit a row of their own.

  Raises:
    ValueError: there are none; with the sizes that are needed.
  """
  sizes = np.array([_sizes(example, shape.align) for example in examples], np.int64).reshape(-1, 2)
  fits = (sizes[:, 0] <= shape.length) & (sizes[:, 1] <= shape.targets)
  if not fits.any():
    needed = f"their medians are {np.median(sizes[:, 0]):.0f} and {np.median(sizes[:, 1]):.0f}" if len(sizes) else ""
    raise ValueError(
      f"none of {len(examples)} examples fits a row of {shape.length} tokens with {shape.targets} targets; {needed}"
    )
  return [example for example, one in zip(examples, fits, strict=True) if one]


class PackedRows(grain.MapDataset[Row]):
  """The endless stream of packed rows; random access, and `next_index` of its iterator is its whole state."""

  def __init__(self, examples: Sequence[Example], shape: RowShape, seed: int):
    """`examples` fit (`fitting`)."""
    super().__init__()
    self._examples, self._shape, self._seed = examples, shape, seed
    self._sizes = [_sizes(example, shape.align) for example in examples]
    self._epochs: dict[int, list[list[int]]] = {}
    self._starts = [0]  # first row of each epoch that has been laid out
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return np.iinfo(np.int64).max

  def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
    return _row([self._examples[at] for at in self._members(int(index))], self._shape)

  def rows_an_epoch(self) -> int:
    """Of the first one; others may differ by a few."""
    return len(self._epoch(0))

  def _members(self, index: int) -> list[int]:
    with self._lock:
      while self._starts[-1] <= index:
        rows = self._epoch(len(self._starts) - 1)
        self._starts.append(self._starts[-1] + len(rows))
      epoch = int(np.searchsorted(self._starts, index, side="right")) - 1
      return self._epoch(epoch)[index - self._starts[epoch]]

  def _epoch(self, number: int) -> list[list[int]]:
    """The examples of each row of an epoch; the last two epochs are kept."""
    if number not in self._epochs:
      rng = np.random.default_rng([self._seed, number])
      rows = _lay_out(rng.permutation(len(self._examples)).tolist(), self._sizes, self._shape)
      order = rng.permutation(len(rows))
      self._epochs = {at: rows for at, rows in self._epochs.items() if at == number - 1}
      self._epochs[number] = [rows[at] for at in order]
    return self._epochs[number]


def _sizes(example: Example, align: int) -> tuple[int, int]:
  """Slots of an example, and slots of its targets' blocks."""
  target = np.flatnonzero(example.parts > 0)
  return -(-len(example.tokens) // align) * align, len(np.unique(target // align)) * align


def _lay_out(order: Sequence[int], sizes: Sequence[tuple[int, int]], shape: RowShape) -> list[list[int]]:
  """First fit over the last open rows."""
  rows: list[list[int]] = []
  room: list[tuple[int, int]] = []  # of the open rows, the last of `rows`
  for at in order:
    length, targets = sizes[at]
    place = next((i for i, (a, b) in enumerate(room) if length <= a and targets <= b), None)
    if place is None:
      rows.append([])
      room = [*room, (shape.length, shape.targets)][-_OPEN_ROWS:]
      place = len(room) - 1
    rows[len(rows) - len(room) + place].append(at)
    room[place] = (room[place][0] - length, room[place][1] - targets)
  return rows


def _row(examples: Sequence[Example], shape: RowShape) -> Row:
  row = {name: np.zeros(shape.length, np.int32) for name in ("position", "segment", "part")}
  row["tokens"] = np.full(shape.length, shape.pad_id, np.int32)
  slot = 0
  for segment, example in enumerate(examples, start=1):
    length, whole = len(example.tokens), _sizes(example, shape.align)[0]
    row["tokens"][slot : slot + length] = example.tokens
    row["position"][slot : slot + whole] = np.arange(whole)
    row["segment"][slot : slot + whole] = segment
    row["part"][slot : slot + length] = example.parts
    row["part"][slot + length : slot + whole] = BEHIND
    slot += whole
  is_target = (row["part"] > 0) & (row["part"] != BEHIND)
  blocks = np.flatnonzero(is_target.reshape(-1, shape.align).any(axis=1))
  slots = (blocks[:, None] * shape.align + np.arange(shape.align)).reshape(-1)
  row["target_at"] = np.full(shape.targets, -1, np.int32)
  row["target_at"][: len(slots)] = slots
  return row
