"""k-means against a brute-force step in numpy float64, and what no start may leave behind."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.docid import kmeans as km


def brute_force_step(points, centroids):
  distance = ((points[:, None] - centroids[None]) ** 2).sum(-1)
  best = distance.argmin(1)
  means = np.stack([points[best == k].mean(0) if (best == k).any() else np.full(points.shape[1], np.nan)
                    for k in range(len(centroids))])  # fmt: skip
  return means, distance.min(1)


@pytest.mark.parametrize("chunk", [7, 50, 64])
def test_a_step_is_the_brute_force_step_whatever_the_chunks(chunk):
  rng = np.random.default_rng(chunk)
  points = rng.normal(size=(50, 5))
  centroids = points[:6] + 0.01  # none is empty
  expected, distance = brute_force_step(points, centroids)
  blocks, weight = km._blocks(points.astype(np.float32), chunk)
  actual, mean_distance = km.lloyd_step(blocks, weight, jnp.asarray(centroids, jnp.float32))
  assert np.isfinite(expected).all()
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  np.testing.assert_allclose(mean_distance, distance.mean(), rtol=1e-5)


def test_empty_centroids_move_to_the_farthest_points_in_order():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(40, 3))
  centroids = np.concatenate([points[:3], np.full((2, 3), 1e3)])
  _, distance = brute_force_step(points, centroids)
  blocks, weight = km._blocks(points.astype(np.float32), 16)
  actual, _ = km.lloyd_step(blocks, weight, jnp.asarray(centroids, jnp.float32))
  farthest = np.argsort(-distance)[:2]
  np.testing.assert_allclose(actual[3:], points[farthest], atol=1e-6)


@pytest.mark.parametrize("start", km.STARTS)
def test_more_steps_never_end_farther_and_a_seed_decides_all(start):
  rng = np.random.default_rng(1)
  points = rng.normal(size=(300, 8)).astype(np.float32)
  error = lambda c: brute_force_step(points.astype(np.float64), np.asarray(c, np.float64))[1].mean()
  fit = lambda steps, seed=3: km.kmeans(points, 10, seed=seed, start=start, iterations=steps, tolerance=0.0, chunk=64)
  errors = [error(fit(steps)) for steps in (1, 3, 9)]
  assert errors[0] > errors[1] > errors[2]
  np.testing.assert_array_equal(fit(5), fit(5))
  assert not np.array_equal(fit(5), fit(5, seed=4))


def test_far_clusters_are_found_from_plus_plus():
  rng = np.random.default_rng(2)
  centres = 100 * rng.normal(size=(12, 4))
  points = (np.repeat(centres, 20, axis=0) + rng.normal(size=(240, 4))).astype(np.float32)
  found = np.asarray(km.kmeans(points, 12, seed=0))
  nearest = ((centres[:, None] - found[None]) ** 2).sum(-1).min(1)
  assert (nearest < 4).all()


def test_equal_points_and_as_many_codes_as_points_are_no_trouble():
  assert np.isfinite(np.asarray(km.kmeans(np.ones((9, 2), np.float32), 4, seed=0))).all()
  points = np.arange(6, dtype=np.float32)[:, None]
  np.testing.assert_allclose(np.sort(np.asarray(km.kmeans(points, 6, seed=0)), axis=0), points)


def test_progress_is_told_once_for_every_step():
  told = []
  km.kmeans(np.ones((9, 2), np.float32), 2, seed=0, iterations=7, after_step=lambda: told.append(1))
  assert len(told) == 7


@pytest.mark.parametrize("codes", [0, 6])
def test_more_codes_than_points_are_refused(codes):
  with pytest.raises(ValueError, match=f"{codes} codes a level need .* there are 5"):
    km.kmeans(np.ones((5, 2), np.float32), codes, seed=0)
