"""The losses: the global divisor, parts that add up to the whole, and the bound by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion import corruption, objective

LENGTH, SYMBOLS = 3, 3


def random_problem(seed, rows=8, length=5):
  rng = np.random.default_rng(seed)
  nll = jnp.asarray(rng.exponential(size=(rows, length)), jnp.float32)
  targets = rng.integers(1, length + 1, rows)  # unequal
  target = np.arange(length)[None, :] < targets[:, None]
  corrupted = target & (rng.random((rows, length)) < 0.6)
  weight = jnp.asarray(1 / rng.uniform(0.05, 1, (rows, 1)), jnp.float32)
  return nll, jnp.asarray(corrupted), weight, jnp.asarray(target)


def test_the_loss_is_the_weighted_sum_over_the_target_count():
  nll, corrupted, weight, target = random_problem(0)
  loss, sums = objective.masked_diffusion_loss(nll, corrupted, weight, target.sum())
  expected = 0.0
  for row, column in zip(*np.nonzero(np.asarray(corrupted)), strict=True):
    expected += float(weight[row, 0]) * float(nll[row, column])
  np.testing.assert_allclose(loss, expected / int(target.sum()), rtol=1e-5)
  assert sums["masked_count"] == corrupted.sum()
  np.testing.assert_allclose(sums["masked_nll_sum"], np.asarray(nll)[np.asarray(corrupted)].sum(), rtol=1e-5)


def test_unequal_parts_add_up_to_the_whole_in_loss_and_gradient():
  nll, corrupted, weight, target = random_problem(1)
  count = target.sum()

  def loss(scale, rows):
    return objective.masked_diffusion_loss(nll[rows] * scale, corrupted[rows], weight[rows], count)[0]

  value_and_grad = jax.value_and_grad(loss)
  scale = jnp.linspace(0.5, 2.0, nll.shape[1])[None, :]
  parts = (slice(0, 1), slice(1, 3), slice(3, 8))
  assert len({int(target[rows].sum()) for rows in parts}) == 3
  whole, whole_gradient = value_and_grad(scale, slice(0, 8))
  values, gradients = zip(*(value_and_grad(scale, rows) for rows in parts), strict=True)
  np.testing.assert_allclose(sum(values), whole, rtol=1e-5)
  np.testing.assert_allclose(sum(gradients), whole_gradient, rtol=1e-5)


def test_positions_without_loss_may_be_infinite():
  nll, corrupted, weight, target = random_problem(2)
  hostile = jnp.where(corrupted, nll, jnp.inf)
  value, gradient = jax.value_and_grad(
    lambda x: objective.masked_diffusion_loss(x, corrupted, weight, target.sum())[0]
  )(hostile)
  np.testing.assert_allclose(value, objective.masked_diffusion_loss(nll, corrupted, weight, target.sum())[0], rtol=1e-6)
  assert not np.asarray(gradient)[~np.asarray(corrupted)].any()


def test_no_targets_at_all_is_a_loss_of_zero():
  nll = jnp.ones((2, 3))
  loss, _ = objective.masked_diffusion_loss(nll, jnp.zeros((2, 3), bool), jnp.ones((2, 1)), 0)
  assert loss == 0


def toy_joint(seed):
  """A joint distribution of three positions with three symbols, and -log p(x_i | the others that are seen)."""
  joint = np.random.default_rng(seed).dirichlet(np.full(SYMBOLS**LENGTH, 0.5)).reshape((SYMBOLS,) * LENGTH)

  def conditional_nll(x, hidden):
    seen = tuple(slice(None) if hidden[i] else slice(x[i], x[i] + 1) for i in range(LENGTH))
    total = joint[seen].sum()
    value = np.zeros(LENGTH)
    for i in np.flatnonzero(hidden):
      fixed = list(seen)
      fixed[i] = slice(x[i], x[i] + 1)
      value[i] = -np.log(joint[tuple(fixed)].sum() / total)
    return value

  return joint, conditional_nll


def expected_loss(conditional_nll, x, weight_and_probability):
  """Sum over all masks of the probability times the library's loss of that mask, as one batch of rows."""
  masks = np.array([m for m in itertools.product([False, True], repeat=LENGTH)])
  nll = np.array([conditional_nll(x, mask) for mask in masks])
  per_mask = jax.vmap(
    lambda n, m, w: objective.masked_diffusion_loss(n[None], m[None], w[None, None], LENGTH)[0],
  )
  total = 0.0
  for weight, probability in weight_and_probability(masks.sum(axis=1)):
    losses = per_mask(jnp.asarray(nll, jnp.float32), jnp.asarray(masks), jnp.asarray(weight, jnp.float32))
    total += np.dot(np.asarray(losses, np.float64), probability)
  return total * LENGTH


@pytest.mark.parametrize("schedule", [corruption.Linear(), corruption.Cosine()])
def test_the_expected_loss_over_times_and_masks_is_the_true_nll(schedule):
  joint, conditional_nll = toy_joint(7)
  nodes, node_weights = np.polynomial.legendre.leggauss(12)
  times = (nodes + 1) / 2

  def over_time(count):
    for t, dt in zip(times, node_weights / 2, strict=True):
      share = float(schedule.mask_probability(jnp.float32(t)))
      weight = np.full(len(count), float(schedule.weight(jnp.float32(t))))
      yield weight, dt * share**count * (1 - share) ** (LENGTH - count)

  for x in [(0, 1, 2), (2, 2, 0)]:
    np.testing.assert_allclose(expected_loss(conditional_nll, x, over_time), -np.log(joint[x]), rtol=1e-5)


def test_the_expected_exact_count_loss_is_the_true_nll():
  joint, conditional_nll = toy_joint(8)
  sets_of_size = np.array([1, 3, 3, 1])

  def over_counts(count):
    yield LENGTH / np.maximum(count, 1), np.where(count > 0, 1 / LENGTH / sets_of_size[count], 0.0)

  for x in [(0, 1, 2), (1, 0, 1)]:
    np.testing.assert_allclose(expected_loss(conditional_nll, x, over_counts), -np.log(joint[x]), rtol=1e-5)


def test_document_nll_is_the_softmax_over_all_documents():
  rng = np.random.default_rng(3)
  scores, doc_index = rng.normal(size=(4, 9)) * 30, rng.integers(0, 9, 4)
  expected = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(4), doc_index]
  actual = objective.document_nll(jnp.asarray(scores, jnp.float32), jnp.asarray(doc_index))
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_document_at_minus_infinity_is_left_out_and_gets_no_gradient():
  scores = jnp.asarray([[1.0, -jnp.inf, 0.5]])
  value, gradient = jax.value_and_grad(lambda s: objective.document_nll(s, jnp.asarray([0])).sum())(scores)
  np.testing.assert_allclose(value, np.log1p(np.exp(-0.5)), rtol=1e-6)
  assert np.isfinite(gradient).all()
  assert gradient[0, 1] == 0
