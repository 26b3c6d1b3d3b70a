"""The estimators against a distribution small enough to enumerate."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.diffusion.corruption import Cosine, ExactCount, Linear, RandomTime, make_process
from diffgr_jax.evaluation import likelihood

LENGTH, SYMBOLS, MASK = 3, 3, 3  # symbols 0..2, MASK 3, one padding row of the vocabulary
BANNED = jnp.asarray([False, False, False, True, True])
PROCESSES = {
  "linear": RandomTime(Linear()),
  "cosine": RandomTime(Cosine()),
  "exact_count": ExactCount(),
}


def conditional_table(joint):
  """-> Float64[4, 4, 4, L, S]: p(x_i | what is seen), for every canvas of symbols and MASK."""
  table = np.zeros((SYMBOLS + 1,) * LENGTH + (LENGTH, SYMBOLS))
  for canvas in itertools.product(range(SYMBOLS + 1), repeat=LENGTH):
    seen = tuple(slice(None) if c == MASK else slice(c, c + 1) for c in canvas)
    block = joint[seen]
    for i in range(LENGTH):
      marginal = block.sum(axis=tuple(a for a in range(LENGTH) if a != i)) / block.sum()
      if canvas[i] == MASK:
        table[canvas][i] = marginal
      else:
        table[canvas][i, canvas[i]] = 1.0
  return table


def toy_joints():
  """Two distributions, one for each prompt."""
  rng = np.random.default_rng(11)
  return rng.dirichlet(np.full(SYMBOLS**LENGTH, 0.4), size=2).reshape((2,) + (SYMBOLS,) * LENGTH)


def denoise(params, prompt, canvas):
  """The true conditionals of the prompt's distribution; MASK and padding get high logits, which `banned` removes."""
  logits = jnp.log(jnp.maximum(params[prompt[:, -1], canvas[:, 0], canvas[:, 1], canvas[:, 2]], 1e-30))
  return jnp.concatenate([logits, jnp.full((*canvas.shape, 2), 5.0)], axis=-1)


@pytest.fixture(scope="module")
def problem():
  joints = toy_joints()
  params = jnp.asarray(np.stack([conditional_table(j) for j in joints]), jnp.float32)
  prompt = jnp.asarray([[9, 0], [9, 1], [9, 0], [9, 1]])
  x0 = np.array([[0, 1, 2], [0, 1, 2], [2, 2, 0], [1, 0, 0]])
  truth = np.array([-np.log(joints[p, a, b, c]) for (_, p), (a, b, c) in zip(np.asarray(prompt), x0, strict=True)])
  return params, prompt, jnp.asarray(x0), truth


def estimate(problem, process, rows=slice(None), samples=4096, chunk=16, seed=0, target=None):
  params, prompt, x0, _ = problem
  target = jnp.ones(x0.shape, bool) if target is None else target
  return likelihood.estimate_nll(
    params,
    prompt[rows],
    x0[rows],
    target[rows],
    jax.random.key(seed),
    denoise=denoise,
    process=process,
    mask_id=MASK,
    banned=BANNED,
    samples=samples,
    chunk=chunk,
  )


@pytest.mark.parametrize("name", PROCESSES)
def test_estimates_agree_with_the_enumerated_truth(problem, name):
  result = estimate(problem, PROCESSES[name])
  truth = problem[-1]
  assert (np.abs(result.mean - truth) < 4 * result.standard_error).all(), (result, truth)
  assert (result.standard_error < 0.05 * truth + 0.02).all()  # tight enough for the line above to mean something
  assert result.samples == 4096


@pytest.mark.parametrize("name", PROCESSES)
def test_the_standard_error_is_the_spread_of_repeated_estimates(problem, name):
  runs = [estimate(problem, PROCESSES[name], seed=s) for s in range(40)]
  observed = np.std([r.mean for r in runs], axis=0, ddof=1)
  claimed = np.sqrt(np.mean([r.standard_error**2 for r in runs], axis=0))
  np.testing.assert_allclose(claimed / observed, 1.0, atol=0.5)  # 40 runs know a spread to about 11%


def test_exact_count_is_less_noisy_than_random_times(problem):
  noise = {name: estimate(problem, p).standard_error.mean() for name, p in PROCESSES.items()}
  assert noise["exact_count"] < noise["linear"]


def enumerated(problem, row, mask_weights):
  """Sum over masks of mask_weights[number of masks] * the model's -log p of the masked tokens, in float64."""
  params, prompt, x0, _ = problem
  masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))
  x = np.asarray(x0[row])
  canvas = np.where(masks, MASK, x)
  logits = np.asarray(
    denoise(params, jnp.repeat(prompt[row : row + 1], len(masks), axis=0), jnp.asarray(canvas)), np.float64
  )[..., :SYMBOLS]
  log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  nll = -np.take_along_axis(log_p, np.broadcast_to(x, masks.shape)[..., None], axis=-1)[..., 0]
  return ((nll * masks).sum(axis=1) * mask_weights[masks.sum(axis=1)]).sum()


@pytest.mark.parametrize("name", PROCESSES)
def test_the_expectation_over_every_mask_is_the_truth(problem, name):
  """The estimators' expectation without noise: all masks, and quadrature over t."""
  count = np.arange(LENGTH + 1)
  if name == "exact_count":
    mask_weights = np.array([0.0, *(LENGTH / k / (LENGTH * n) for k, n in ((1, 3), (2, 3), (3, 1)))])
  else:
    schedule = PROCESSES[name].schedule
    nodes, node_weights = np.polynomial.legendre.leggauss(16)
    mask_weights = np.zeros(LENGTH + 1)
    for t, dt in zip((nodes + 1) / 2, node_weights / 2, strict=True):
      share, weight = float(schedule.mask_probability(jnp.float32(t))), float(schedule.weight(jnp.float32(t)))
      mask_weights += dt * weight * share**count * (1 - share) ** (LENGTH - count)
  for row, truth in enumerate(problem[-1]):
    np.testing.assert_allclose(enumerated(problem, row, mask_weights), truth, rtol=1e-5)


def test_only_target_positions_count(problem):
  """With the first two tokens given, the estimate is -log p(x_3 | x_1, x_2), whose exact-count draw has no noise."""
  _, prompt, x0, _ = problem
  joints = toy_joints()
  target = jnp.broadcast_to(jnp.asarray([False, False, True]), x0.shape)
  result = estimate(problem, ExactCount(), target=target)
  for (_, p), (a, b, c), mean in zip(np.asarray(prompt), np.asarray(x0), result.mean, strict=True):
    np.testing.assert_allclose(mean, -np.log(joints[p, a, b, c] / joints[p, a, b].sum()), rtol=1e-4)
  np.testing.assert_allclose(result.standard_error, 0.0, atol=1e-5)


def test_a_row_is_estimated_alone_as_in_company(problem):
  whole = estimate(problem, ExactCount())
  part = estimate(problem, ExactCount(), rows=slice(0, 2))
  np.testing.assert_allclose(whole.mean[:2], part.mean, rtol=1e-6)


@pytest.mark.parametrize("name", ["uniform_weight", "all_masked"])
def test_a_process_that_is_no_bound_is_refused(problem, name):
  with pytest.raises(ValueError, match="is not a bound of the likelihood"):
    estimate(problem, make_process(name))


@pytest.mark.parametrize("samples, chunk", [(8, 8), (20, 8), (8, 0)])
def test_samples_are_at_least_two_whole_chunks(problem, samples, chunk):
  with pytest.raises(ValueError, match="at least two times chunk"):
    estimate(problem, ExactCount(), samples=samples, chunk=chunk)


def test_an_answer_that_cannot_be_is_refused(problem):
  params, prompt, x0, truth = problem
  with pytest.raises(ValueError, match="row 2 of x0 holds a banned token"):
    estimate((params, prompt, x0.at[2, 1].set(MASK), truth), ExactCount(), samples=16, chunk=8)
