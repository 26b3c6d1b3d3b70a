"""The forward process against its definition: schedules by autodiff, draws by their frequencies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion import corruption

MASK, LENGTH = 99, 4
FEW, MANY = 8, 4000  # rows: two shapes for nearly all tests, so that little is compiled


def canvas(rows, length, seed=0):
  return jax.random.randint(jax.random.key(seed), (rows, length), 1, 50)


def some_targets(rows, length):
  """Row i has its last 1 + i % length positions as targets."""
  first = length - 1 - np.arange(rows) % length
  return jnp.asarray(np.arange(length)[None, :] >= first[:, None])


@pytest.mark.parametrize("schedule", [corruption.Linear(), corruption.Cosine()])
def test_weight_is_minus_alpha_prime_over_masked_share(schedule):
  t = jnp.concatenate([jnp.geomspace(2**-24, 0.01, 30), jnp.linspace(0.01, 0.99, 57)])
  minus_alpha_prime = jax.vmap(jax.grad(schedule.mask_probability))(t)  # -d alpha/dt = d(1 - alpha)/dt
  np.testing.assert_allclose(schedule.weight(t), minus_alpha_prime / schedule.mask_probability(t), rtol=1e-5)


def test_masked_share_is_the_published_schedule():
  t = np.linspace(0, 1, 41)
  linear, cosine = corruption.Linear(), corruption.Cosine()
  np.testing.assert_allclose(linear.mask_probability(jnp.asarray(t)), t, atol=1e-7)
  np.testing.assert_allclose(cosine.mask_probability(jnp.asarray(t)), 1 - (1 - np.cos(np.pi / 2 * (1 - t))), atol=1e-6)
  for schedule in (linear, cosine):
    assert schedule.mask_probability(jnp.float32(0.0)) == 0
    assert schedule.mask_probability(jnp.float32(1.0)) == 1


@pytest.mark.parametrize("schedule", [corruption.Linear(), corruption.Cosine()])
def test_weights_are_finite_and_never_negative_on_all_of_0_to_1(schedule):
  t = jnp.asarray([0.0, 1e-38, 2**-24, 1e-3, 0.5, 1.0])
  weight = np.asarray(schedule.weight(t))
  assert np.isfinite(weight).all()
  assert (weight >= 0).all()


def test_the_floor_under_t_is_below_every_time_that_is_drawn():
  nearest = 1.0 - jnp.nextafter(jnp.float32(1.0), jnp.float32(0.0))  # 1 - u for the largest u below 1
  assert nearest >= corruption.SMALLEST_TIME


def test_antithetic_times_hold_one_in_every_stratum_and_are_uniform_each():
  n = FEW
  draws = np.stack([corruption.sample_times(jax.random.key(s), n) for s in range(400)])
  assert ((draws > 0) & (draws <= 1)).all()
  gaps = np.diff(np.sort(draws, axis=1), axis=1)
  np.testing.assert_allclose(gaps, 1 / n, atol=1e-6)  # evenly spread, every time
  for row in draws.T:  # each row's own time is uniform: Kolmogorov-Smirnov at the 1e-4 level
    distance = np.abs(np.sort(row) - (np.arange(400) + 0.5) / 400).max()
    assert distance < 2.23 / np.sqrt(400)


def test_independent_times_are_in_range_and_not_spread():
  t = np.asarray(corruption.sample_times(jax.random.key(0), 64, antithetic=False))
  assert ((t > 0) & (t <= 1)).all()
  assert np.diff(np.sort(t)).std() > 1e-3


def test_no_rows_is_refused():
  with pytest.raises(ValueError, match="at least one row"):
    corruption.sample_times(jax.random.key(0), 0)


@pytest.mark.parametrize("schedule", [corruption.Linear(), corruption.Cosine()])
def test_masks_fall_on_targets_only_with_the_schedules_frequency(schedule):
  rows, length = MANY, LENGTH
  x0, target = canvas(rows, length), some_targets(rows, length)
  t = jnp.full((rows,), 0.3)
  drawn = corruption.corrupt(jax.random.key(1), x0, t, schedule, MASK, target)
  assert not (drawn.corrupted & ~target).any()
  np.testing.assert_array_equal(drawn.x_t, np.where(drawn.corrupted, MASK, x0))
  share = float(drawn.corrupted.sum() / target.sum())
  expected = float(schedule.mask_probability(jnp.float32(0.3)))
  assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / float(target.sum()))


@pytest.mark.parametrize("name", corruption.PROCESSES)
def test_edges_of_time_and_rows_without_targets_give_no_nan(name):
  x0 = canvas(3, LENGTH)
  target = jnp.asarray([[False] * 4, [True] * 4, [False, True, False, True]])
  process = corruption.make_process(name)
  for t in (0.0, 2**-24, 1.0):
    drawn = process.corrupt(jax.random.key(0), x0, jnp.full((3,), t), mask_id=MASK, target=target)
    assert np.isfinite(drawn.weight).all()
    assert not drawn.corrupted[0].any()
    np.testing.assert_array_equal(drawn.x_t[0], x0[0])


def test_exact_count_draws_every_set_with_its_probability_and_weight():
  rows, length = MANY, LENGTH
  target = jnp.broadcast_to(jnp.asarray([True, False, True, True]), (rows, length))
  process = corruption.make_process("exact_count")
  drawn = corruption.draw(jax.random.key(2), process, canvas(rows, length), mask_id=MASK, target=target)
  count = np.asarray(drawn.corrupted.sum(axis=1))
  np.testing.assert_allclose(drawn.weight[:, 0], 3 / count, rtol=1e-6)
  assert not drawn.corrupted[:, 1].any()
  ids = np.asarray(drawn.corrupted) @ np.array([1, 0, 2, 4])
  for subset in range(1, 8):  # P(subset) = 1/3 over its size, shared among the sets of that size
    expected = 1 / 3 / {1: 3, 2: 3, 3: 1}[bin(subset).count("1")]
    assert abs((ids == subset).mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / rows)


def test_exact_count_takes_the_ceiling_of_t_n():
  target = some_targets(FEW, LENGTH)
  n = np.asarray(target.sum(axis=1))
  for t in (2**-24, 0.34, 0.5, 1.0):
    drawn = corruption.corrupt_exact_count(
      jax.random.key(0), canvas(FEW, LENGTH), jnp.full((FEW,), t, jnp.float32), MASK, target
    )
    np.testing.assert_array_equal(drawn.corrupted.sum(axis=1), np.ceil(t * n))


@pytest.mark.parametrize("name", ["random_time", "exact_count"])
def test_a_row_is_drawn_alone_as_in_company(name):
  x0, target = canvas(FEW, LENGTH), some_targets(FEW, LENGTH)
  t = corruption.sample_times(jax.random.key(3), FEW)
  process = corruption.AllMaskedMixture(corruption.make_process(name), 0.4)
  whole = process.corrupt(jax.random.key(4), x0, t, mask_id=MASK, target=target)
  part = process.corrupt(jax.random.key(4), x0[:3], t[:3], mask_id=MASK, target=target[:3])
  for one, other in zip(whole, part, strict=True):
    np.testing.assert_array_equal(one[:3], other)


def test_another_key_gives_another_draw():
  x0, target = canvas(FEW, LENGTH), jnp.ones((FEW, LENGTH), bool)
  process = corruption.make_process("random_time")
  draws = [corruption.draw(jax.random.key(s), process, x0, mask_id=MASK, target=target).corrupted for s in (0, 1)]
  assert (draws[0] != draws[1]).any()


def test_all_masked_and_its_mixture():
  rows = MANY
  x0, target = canvas(rows, LENGTH), some_targets(rows, LENGTH)
  t = jnp.full((rows,), 0.25)
  whole = corruption.make_process("all_masked").corrupt(jax.random.key(0), x0, t, mask_id=MASK, target=target)
  np.testing.assert_array_equal(whole.corrupted, target)
  np.testing.assert_array_equal(whole.weight, np.ones((rows, 1)))

  mixture = corruption.make_process("random_time", all_masked_fraction=0.7)
  mixed = mixture.corrupt(jax.random.key(0), x0, t, mask_id=MASK, target=target)
  chosen = np.asarray(mixed.weight[:, 0]) == 1.0  # the others have 1 / t = 4
  np.testing.assert_array_equal(mixed.weight[:, 0], np.where(chosen, 1.0, 4.0))
  np.testing.assert_array_equal(mixed.corrupted[chosen], target[chosen])
  assert abs(chosen.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / rows)
  share = np.asarray(mixed.corrupted)[~chosen].sum() / np.asarray(target)[~chosen].sum()
  assert abs(share - 0.25) < 0.04


def test_suffixes_have_no_gap_and_the_counts_of_exact_count():
  x0, target = canvas(MANY, LENGTH), some_targets(MANY, LENGTH)
  process = corruption.make_process("exact_count", suffix_fraction=1.0)
  t = corruption.sample_times(jax.random.key(1), MANY)
  how = dict(mask_id=MASK, target=target)
  drawn, other = (
    one.corrupt(jax.random.key(2), x0, t, **how) for one in (process, corruption.make_process("exact_count"))
  )
  np.testing.assert_array_equal(drawn.corrupted.sum(1), other.corrupted.sum(1))
  np.testing.assert_array_equal(drawn.weight, other.weight)
  np.testing.assert_array_equal(drawn.x_t == MASK, drawn.corrupted)
  for masks, own in zip(np.asarray(drawn.corrupted), np.asarray(target), strict=True):
    count = masks.sum()
    assert not (masks & ~own).any()
    assert (np.flatnonzero(masks) == np.flatnonzero(own)[own.sum() - count :]).all()


def test_so_many_rows_of_a_mixture_are_suffixes():
  x0, target = canvas(MANY, 3 * LENGTH), jnp.ones((MANY, 3 * LENGTH), bool)
  process = corruption.make_process("exact_count", suffix_fraction=0.3)
  half = process.corrupt(jax.random.key(0), x0, jnp.full(MANY, 0.5), mask_id=MASK, target=target)
  ends = np.asarray(half.corrupted)[:, 3 * LENGTH // 2 :].all(1)
  assert abs(ends.mean() - 0.3) < 0.03  # of the others, one in 924
  assert not process.is_bound


def test_uniform_weight_masks_like_random_time_with_weight_one():
  x0, target = canvas(FEW, LENGTH), some_targets(FEW, LENGTH)
  plain, uniform = (
    corruption.draw(jax.random.key(5), corruption.make_process(name, "cosine"), x0, mask_id=MASK, target=target)
    for name in ("random_time", "uniform_weight")
  )
  np.testing.assert_array_equal(plain.x_t, uniform.x_t)
  np.testing.assert_array_equal(uniform.weight, np.ones((FEW, 1)))
  assert (np.asarray(plain.weight) != 1).any()


def test_only_the_bounds_call_themselves_one():
  bounds = {name: corruption.make_process(name).is_bound for name in corruption.PROCESSES}
  exact = {"clean": True}  # -log p itself
  assert bounds == {"random_time": True, "exact_count": True, "uniform_weight": False, "all_masked": False} | exact
  assert not corruption.make_process("exact_count", all_masked_fraction=0.5).is_bound


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("masked",), "unknown process 'masked'; it is one of random_time, "),
    (("random_time", "sine"), "unknown schedule 'sine'; it is one of linear, cosine"),
    (("exact_count", "cosine"), "process 'exact_count' has no schedule"),
    (("random_time", "linear", 1.5), "all_masked_fraction"),
    (("random_time", "linear", -0.1), "all_masked_fraction"),
    (("random_time", "linear", 0.0, 1.5), "suffix_fraction"),
  ],
)
def test_bad_names_get_one_clear_line(arguments, message):
  with pytest.raises(ValueError, match=message) as error:
    corruption.make_process(*arguments)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["random_time", "exact_count"])
def test_a_batch_sharded_over_devices_gets_the_same_draw(name):
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  process, key = corruption.make_process(name), jax.random.key(6)
  x0, target = canvas(FEW, LENGTH), some_targets(FEW, LENGTH)
  draw = jax.jit(lambda x, on: corruption.draw(key, process, x, mask_id=MASK, target=on))
  sharded = draw(jax.device_put(x0, rows), jax.device_put(target, rows))
  for one, other in zip(draw(x0, target), sharded, strict=True):
    np.testing.assert_array_equal(one, other)


def test_complementary_draws_are_the_same_bound():
  """Every target is masked in exactly one of two draws, and either draw is unbiased for any function of the masks."""
  length, rows = 4, 40_000
  x0 = jnp.broadcast_to(jnp.arange(10, 10 + length)[None], (rows, length))
  target = jnp.broadcast_to(jnp.asarray([True, True, True, False])[None], (rows, length))
  draws = corruption.draw_complementary(jax.random.key(0), x0, mask_id=4, target=target)
  one, two = (np.asarray(draw.corrupted) for draw in draws)
  np.testing.assert_array_equal(one ^ two, np.asarray(target))
  # The bound of a loss that depends on how many are masked: k uniform, each masked position times n / k.
  loss = np.array([0.0, 1.0, 3.0, 7.0])  # of each masked position, by the number of masks
  exact = np.mean([3 / k * k * loss[k] for k in (1, 2, 3)])
  for draw in draws:
    masked = np.asarray(draw.corrupted)
    terms = (np.asarray(draw.weight) * masked * loss[masked.sum(axis=1)][:, None]).sum(axis=1)
    assert abs(terms.mean() - exact) < 4 * terms.std() / np.sqrt(rows)
