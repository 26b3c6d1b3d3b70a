import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.schedules import BlockRemainder, EarlyRemainder, Even, LinearTime, Schedule


def run(schedule, masks, steps):
  """Commits what the schedule asks for, as far as masks are left."""
  left, taken = np.array(masks), []
  for step in range(steps):
    asked = schedule.quota(jnp.asarray(left), jnp.asarray(masks), jnp.full(len(left), step), jnp.int32(steps))
    taken.append(np.minimum(np.asarray(asked), left))
    left = left - taken[-1]
  return np.stack(taken)


@pytest.mark.parametrize("schedule", [Even(), EarlyRemainder()])
@pytest.mark.parametrize("steps", [1, 3, 5, 11])
def test_even_schedules_commit_everything_evenly_and_early(schedule, steps):
  taken = run(schedule, np.arange(9), steps)
  np.testing.assert_array_equal(taken.sum(axis=0), np.arange(9))
  assert (taken.max(axis=0) - taken.min(axis=0) <= 1).all()
  assert (np.diff(taken, axis=0) <= 0).all()


@pytest.mark.parametrize("steps", [1, 3, 4, 8])
def test_a_blocks_schedule_counts_from_its_length(steps):
  taken = run(BlockRemainder(8), [8, 5, 1, 0], steps)
  np.testing.assert_array_equal(taken.sum(axis=0), [8, 5, 1, 0])
  plan = np.array([8 // steps + (j < 8 % steps) for j in range(steps)])
  np.testing.assert_array_equal(taken[:, 0], plan)
  np.testing.assert_array_equal(taken[0], np.minimum(plan[0], [8, 5, 1, 0]))


def test_linear_time_rounds_down_and_ends():
  np.testing.assert_array_equal(run(LinearTime(1e-3), [16], 4)[:, 0], [3, 4, 4, 5])
  for masks, steps, epsilon in ((16, 7, 1e-3), (12, 5, 0.2), (3, 8, 1e-3)):
    time, left, expected = np.linspace(1, epsilon, steps + 1), masks, []
    for i in range(steps):
      expected.append(int(left * (1 - time[i + 1] / time[i])) if i < steps - 1 else left)
      left -= expected[-1]
    np.testing.assert_array_equal(run(LinearTime(epsilon), [masks], steps)[:, 0], expected)


def test_schedules_are_schedules_and_wrong_times_are_named():
  assert all(isinstance(s, Schedule) for s in (Even(), EarlyRemainder(), BlockRemainder(4), LinearTime()))
  with pytest.raises(ValueError, match=r"LinearTime\.epsilon is 1"):
    LinearTime(1.0)
