from dataclasses import dataclass
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import policies
from diffgr_jax.decoding.denoiser import probability_of
from diffgr_jax.decoding.policies import (
  Confidence,
  Dynamic,
  Entropy,
  EntropyBounded,
  Factor,
  Margin,
  Prefix,
  Random,
  Sequential,
  Threshold,
)

B, L, V = 5, 7, 11


def random_log_probs(seed):
  logits = np.random.default_rng(seed).normal(size=(B, L, V)) * 2
  return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def row_keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def judged(log_probs):
  """What `commit_together` is told of distributions: statistics, most likely tokens, and their probabilities."""
  log_probs = jnp.asarray(log_probs, jnp.float32)
  tokens = log_probs.argmax(axis=-1)
  return policies.position_stats(log_probs), tokens, probability_of(log_probs, tokens)


def budget(quota, floor=None, spare=None):
  zero = jnp.zeros(len(quota), int)
  return policies.Budget(jnp.asarray(quota), zero if floor is None else floor, zero if spare is None else spare)


def urgency(policy, probs):
  """What each policy looks at, in float64 numpy, for one position."""
  falling = np.sort(probs)[::-1]
  if isinstance(policy, Entropy):
    return np.sum(probs * np.log(probs))
  return falling[0] - falling[1] if isinstance(policy, Margin) else falling[0]


def test_stats_against_numpy():
  log_probs = random_log_probs(0)
  stats = policies.position_stats(jnp.asarray(log_probs, jnp.float32))
  falling = np.sort(np.exp(log_probs), -1)[..., ::-1]
  np.testing.assert_allclose(stats.confidence, falling[..., 0], rtol=1e-5)
  np.testing.assert_allclose(stats.margin, falling[..., 0] - falling[..., 1], atol=1e-6)
  np.testing.assert_allclose(stats.entropy, -(np.exp(log_probs) * log_probs).sum(-1), rtol=1e-5)


def test_stats_of_one_allowed_token_and_of_equal_tokens():
  log_probs = np.full((1, 2, V), -np.inf, np.float32)
  log_probs[0, 0, 3] = 0.0
  log_probs[0, 1, [2, 5]] = np.log(0.5)
  stats = policies.position_stats(jnp.asarray(log_probs))
  np.testing.assert_allclose(stats.confidence[0], [1.0, 0.5], rtol=1e-6)
  np.testing.assert_allclose(stats.margin[0], [1.0, 0.0], rtol=1e-6)
  np.testing.assert_allclose(stats.entropy[0], [0.0, np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("policy", [Confidence(), Margin(), Entropy(), Threshold(0.3)])
def test_choice_against_numpy(policy):
  for seed in range(10):
    log_probs = random_log_probs(seed)
    rng = np.random.default_rng(100 + seed)
    masked, quota = rng.random((B, L)) < 0.6, rng.integers(0, 4, B)
    commits = policies.commit_together(
      *judged(log_probs),
      jnp.asarray(masked),
      row_keys(range(B)),
      budget(quota),
      policy,
    )
    for b in range(B):
      places = np.flatnonzero(masked[b])
      value = {i: urgency(policy, np.exp(log_probs[b, i])) for i in places}
      best = sorted(places, key=lambda i: -value[i])
      if isinstance(policy, Threshold):
        expected = set(best[:1]) | {i for i in places if value[i] > policy.tau}
      else:
        expected = set(best[: quota[b]])
      assert set(np.flatnonzero(commits.chosen[b])) == expected
      for i in expected:
        assert commits.tokens[b, i] == np.argmax(log_probs[b, i])
        np.testing.assert_allclose(commits.confidence[b, i], np.exp(log_probs[b, i].max()), rtol=1e-5)


def test_floor_and_spare_commit_more_but_never_more_than_is_masked():
  log_probs = jnp.asarray(random_log_probs(3), jnp.float32)
  masked = jnp.arange(L)[None] < jnp.array([[0], [2], [3], [7], [7]])
  floor, spare = jnp.array([0, 2, 0, 0, 5]), jnp.array([2, 2, 9, 2, 1])
  commits = policies.commit_together(
    *judged(log_probs),
    masked,
    row_keys(range(B)),
    budget([0, 1, 1, 1, 1], floor, spare),
    Confidence(),
  )
  assert commits.chosen.sum(-1).tolist() == [0, 2, 3, 3, 6]
  assert commits.extra.tolist() == [0, 0, 2, 2, 1]
  assert not (commits.chosen & ~masked).any()


def test_random_depends_on_the_rows_key_alone_and_is_uniform():
  stats = policies.position_stats(jnp.asarray(random_log_probs(0), jnp.float32))
  together = Random().priority(stats, row_keys([7, 3, 7, 1, 0]))
  one = jax.tree.map(lambda x: x[:1], stats)
  assert (together[0] == together[2]).all()
  assert not (together[0] == together[1]).any()
  assert (together[1] == Random().priority(one, row_keys([3]))[0]).all()
  many = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, axis=0), stats)
  first = np.asarray(Random().priority(many, row_keys(range(4000)))).argmax(-1)
  assert np.abs(np.bincount(first, minlength=L) / 4000 - 1 / L).max() < 4 * np.sqrt(1 / L / 4000)


def test_ranks_among_masked_positions():
  priority = jnp.array([[0.5, 0.9, 0.5, -jnp.inf, 0.7]])
  rank = policies.rank_positions(priority, jnp.array([[True, False, True, True, True]]))
  assert rank.tolist() == [[1, 4, 2, 3, 0]]


@pytest.mark.parametrize("tau", [0.0, -0.1, 1.01, float("nan")])
def test_threshold_refuses_what_is_no_probability(tau):
  with pytest.raises(ValueError, match=r"Threshold\.tau is .*\(0, 1\]"):
    Threshold(tau)


def test_a_policy_of_the_users_own():
  @dataclass(frozen=True)
  class LeftToRight:
    def priority(self, stats, row_keys):
      places = jnp.arange(stats.confidence.shape[1], dtype=jnp.float32)
      return -jnp.broadcast_to(places[None], stats.confidence.shape)

    def takes(self, priority, rank, quota):
      return rank < quota

  assert isinstance(LeftToRight(), policies.Policy)
  log_probs = jnp.asarray(random_log_probs(1), jnp.float32)
  commits = policies.commit_together(
    *judged(log_probs),
    jnp.ones((B, L), bool),
    row_keys(range(B)),
    budget([0, 1, 2, 3, 4]),
    LeftToRight(),
  )
  assert (commits.chosen == (jnp.arange(L)[None] < jnp.arange(B)[:, None])).all()


def test_policies_by_name():
  built = [policies.make_policy(name, 0.7) for name in ("random", "confidence", "margin", "entropy", "threshold")]
  assert built == [Random(), Confidence(), Margin(), Entropy(), Threshold(0.7)]
  with pytest.raises(ValueError, match=r"policy is one of random, .*, prefix, not 'top'"):
    policies.make_policy("top", 0.7)
  with pytest.raises(ValueError, match=r"Threshold\.tau is 2"):
    policies.make_policy("threshold", 2.0)


def expected_choice(policy, probs, quota):
  """The rule of each policy over the masked positions of a row (place -> distribution), in float64."""
  confidence = {i: p.max() for i, p in probs.items()}
  best = sorted(probs, key=lambda i: -confidence[i])
  if isinstance(policy, Sequential):
    return set(sorted(probs)[:quota])
  if isinstance(policy, Prefix):
    run = itertools.takewhile(lambda i: confidence[i] > policy.tau, sorted(probs))
    return {min(probs), *run}
  if isinstance(policy, Dynamic):
    above = [i for i in probs if confidence[i] > policy.tau]
    return set(above if len(above) >= quota else best[:quota])
  if isinstance(policy, Factor):
    count = max(
      (n for n in range(1, len(best) + 1) if (n + 1) * (1 - confidence[best[n - 1]]) < policy.factor), default=1
    )
    return set(best[:count])
  entropy = {i: -(p * np.log(p)).sum() for i, p in probs.items()}
  calm = sorted(probs, key=lambda i: entropy[i])
  fits = lambda n: sum(entropy[i] for i in calm[:n]) - max(entropy[i] for i in calm[:n]) <= policy.bound
  return set(calm[: max((n for n in range(1, len(calm) + 1) if fits(n)), default=0)])


RULES = [
  Sequential(),
  Dynamic(0.5),
  Factor(1.0),
  Factor(2.0),
  EntropyBounded(0.0),
  EntropyBounded(1.5),
  Prefix(0.3),
  Prefix(1.0),
]


@pytest.mark.parametrize("policy", RULES, ids=str)
def test_rules_over_a_row_against_numpy(policy):
  sizes = set()
  for seed in range(8):
    log_probs, rng = random_log_probs(seed), np.random.default_rng(seed)
    masked, quota = rng.random((B, L)) < 0.7, rng.integers(1, 4, B)
    commits = policies.commit_together(
      *judged(log_probs), jnp.asarray(masked), row_keys(range(B)), budget(quota), policy
    )
    for b in range(B):
      probs = {i: np.exp(log_probs[b, i]) for i in np.flatnonzero(masked[b])}
      expected = expected_choice(policy, probs, quota[b]) if probs else set()
      assert set(np.flatnonzero(commits.chosen[b])) == expected
      sizes.add(len(expected))
  assert max(sizes) > 1 or policy in (EntropyBounded(0.0), Prefix(1.0))


def test_ranks_of_long_rows_are_those_of_short_ones():
  rng = np.random.default_rng(0)
  priority, among = rng.integers(0, 5, (3, 200)).astype(np.float32), rng.random((3, 200)) < 0.5
  long = policies.rank_positions(jnp.asarray(priority), jnp.asarray(among))
  for b in range(3):
    order = sorted(range(200), key=lambda i, b=b: (not among[b, i], -priority[b, i], i))
    np.testing.assert_array_equal(np.argsort(order), long[b])
  short = policies.rank_positions(jnp.asarray(priority[:, :50]), jnp.asarray(among[:, :50]))
  order = sorted(range(50), key=lambda i: (not among[0, i], -priority[0, i], i))
  np.testing.assert_array_equal(np.argsort(order), short[0])


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: Dynamic(0.0), r"Dynamic\.tau is 0"),
    (lambda: Factor(0.0), r"Factor\.factor is 0"),
    (lambda: Prefix(1.5), r"Prefix\.tau is 1.5"),
    (lambda: EntropyBounded(-1.0), r"EntropyBounded\.bound is -1"),
  ],
)
def test_settings_out_of_range_are_named(build, message):
  with pytest.raises(ValueError, match=message):
    build()
