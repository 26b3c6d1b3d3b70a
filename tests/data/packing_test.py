"""Packed rows: every example once an epoch, whole and aligned; the position is one number for any processes."""

import numpy as np
import pytest

from diffgr_jax.data.packing import Example, PackedRows, RowShape, fitting
from diffgr_jax.data.parts import BEHIND
from diffgr_jax.data.pipeline import examples_taken, row_batches, skip_to


def make_examples(count, seed=0, longest=14):
  """Examples whose tokens name them: 100 * number + place."""
  rng, examples = np.random.default_rng(seed), []
  for number in range(count):
    length = int(rng.integers(3, longest + 1))
    targets = int(rng.integers(1, length))
    parts = np.r_[np.zeros(length - targets), rng.integers(1, 4, targets)].astype(np.int32)
    examples.append(Example(100 * number + np.arange(length, dtype=np.int32), parts))
  return examples


def pieces(row):
  """The examples of a row, as they can be read back."""
  for segment in range(1, row["segment"].max() + 1):
    inside = row["segment"] == segment
    kept = inside & (row["part"] != BEHIND)
    yield row["tokens"][kept], row["part"][kept], row["position"][inside], np.flatnonzero(inside)


@pytest.mark.parametrize("align", [1, 4])
def test_an_epoch_has_every_example_once_and_whole(align):
  examples, shape = make_examples(60), RowShape(32, 16, align, pad_id=-7)
  rows = PackedRows(examples, shape, seed=3)
  seen = []
  for index in range(rows.rows_an_epoch()):
    row = rows[index]
    assert set(map(len, row.values())) == {32, 16}
    for tokens, parts, position, slots in pieces(row):
      number = tokens[0] // 100
      seen.append(number)
      np.testing.assert_array_equal(tokens, examples[number].tokens)
      np.testing.assert_array_equal(parts, examples[number].parts)
      np.testing.assert_array_equal(position, np.arange(len(position)))
      np.testing.assert_array_equal(slots, slots[0] + np.arange(len(slots)))
      assert slots[0] % align == 0
      assert len(slots) == -(-len(tokens) // align) * align
    assert (row["tokens"][row["segment"] == 0] == -7).all()
  assert sorted(seen) == list(range(60))


@pytest.mark.parametrize("align", [1, 4])
def test_targets_are_the_slots_of_the_blocks_that_hold_one(align):
  rows = PackedRows(make_examples(40), RowShape(32, 20, align, pad_id=0), seed=0)
  for index in range(20):
    row = rows[index]
    is_target = (row["part"] > 0) & (row["part"] != BEHIND)
    expected = np.flatnonzero(np.repeat(is_target.reshape(-1, align).any(axis=1), align))
    named = row["target_at"][row["target_at"] >= 0]
    np.testing.assert_array_equal(named, expected)
    assert (row["target_at"][len(named) :] == -1).all()


def test_rows_are_filled():
  rows = PackedRows(make_examples(400, longest=20), RowShape(64, 64, 1, pad_id=0), seed=0)
  filled = np.mean([(rows[index]["segment"] > 0).mean() for index in range(rows.rows_an_epoch())])
  assert filled > 0.93


def test_epochs_differ_and_any_row_can_be_asked_for():
  examples, shape = make_examples(30), RowShape(32, 32, 1, pad_id=0)
  rows = PackedRows(examples, shape, seed=1)
  first = [rows[index] for index in range(3 * rows.rows_an_epoch())]
  again = PackedRows(examples, shape, seed=1)
  for index in reversed(range(len(first))):
    for name, value in again[index].items():
      np.testing.assert_array_equal(value, first[index][name])
  one, two = first[: rows.rows_an_epoch()], first[rows.rows_an_epoch() : 2 * rows.rows_an_epoch()]
  assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(one, two, strict=False))
  other = PackedRows(examples, shape, seed=2)
  assert any((other[index]["tokens"] != first[index]["tokens"]).any() for index in range(4))


def test_the_position_is_one_number_on_any_number_of_processes():
  rows = PackedRows(make_examples(50), RowShape(32, 32, 1, pad_id=0), seed=0)
  whole = row_batches(rows, range(6), 6)
  batches = [next(whole) for _ in range(9)]
  assert examples_taken(whole, 6) == 54
  for own in (range(3), range(3, 6)):
    part = row_batches(rows, own, 6)
    skip_to(part, 24, 6)
    for batch in batches[4:]:
      for name, value in next(part).items():
        np.testing.assert_array_equal(value, batch[name][list(own)])


def test_what_does_not_fit_is_left_out():
  examples = make_examples(50)
  kept = fitting(examples, RowShape(8, 4, 4, pad_id=0))
  assert 0 < len(kept) < 50
  for example in kept:
    assert len(example.tokens) <= 8
  longest = max(examples, key=lambda example: len(example.tokens))
  with pytest.raises(ValueError, match="none of 50 examples fits a row of 4 tokens with 4 targets; their medians"):
    fitting([longest] * 50, RowShape(4, 4, 4, pad_id=0))
  with pytest.raises(ValueError, match=r"length \(30\) and its room for targets \(16\) must be multiples of 4"):
    RowShape(30, 16, 4, pad_id=0)
