"""The made-up shop's law: its posterior against plain enumeration, and against what its users really do."""

import dataclasses
import itertools

import numpy as np
import pytest

from diffgr_jax.evaluation.rerank import best_possible, order_by_scores, ranking_metrics
from diffgr_jax.rerank.candidates import ListOptions, make_lists
from diffgr_jax.rerank.made_up_shop import MadeUpOptions, make_shop, read_options
from diffgr_jax.rerank.retrievers import covisitation
from diffgr_jax.rerank.splits import leave_one_out

SMALL = MadeUpOptions(
  users=40, categories=4, items_a_category=3, brands=3, colours=2, least_events=3, mean_events=4.0, most_events=6
)  # fmt: skip


def next_chances(law, history, favourite):
  """P(next = each item | history, favourite brand), from the words of the law alone: weigh, normalise, leave out what
  was taken, normalise again."""
  items = range(len(law.appeal))
  last = history[-1] if history else None
  weights = []
  for item in items:
    weight = law.appeal[item]
    weight *= law.loyalty if law.brand[item] == favourite else 1.0
    weight *= law.match if last is not None and law.colour[item] == law.colour[last] else 1.0
    weights.append(weight)
  chances = []
  for item in items:
    category = law.category[item]
    within = weights[item] / sum(weights[other] for other in items if law.category[other] == category)
    row = law.category[last] if last is not None else -1
    chances.append(0.0 if item in history else law.follows[row, category] * within)
  return np.array(chances) / sum(chances)


def chance_of(law, history, favourite):
  return np.prod([next_chances(law, history[:place], favourite)[item] for place, item in enumerate(history)])


def test_the_posterior_is_that_of_enumeration():
  shop, law = make_shop(dataclasses.replace(SMALL, seed=int(np.random.default_rng().integers(1 << 30))))
  rng = np.random.default_rng()
  for history in shop.histories:
    history = history[: rng.integers(1, len(history) + 1)]
    joint = np.array([chance_of(law, history, brand) for brand in range(3)])
    np.testing.assert_allclose(law.favourite(history), joint / joint.sum(), rtol=1e-9)
    following = sum(joint[brand] * next_chances(law, history, brand) for brand in range(3))
    candidates = rng.choice(np.setdiff1d(range(12), history), 4, replace=False)
    expected = following[candidates] / following[candidates].sum()
    np.testing.assert_allclose(law.posterior(history, candidates.tolist()), expected, rtol=1e-9)


def test_chances_of_all_histories_sum_to_one():
  _, law = make_shop(SMALL)
  for brand in range(3):
    total = sum(
      law.next_given_brand((), np.array([a]))[brand, 0]
      * law.next_given_brand((a,), np.array([b]))[brand, 0]
      * law.next_given_brand((a, b), np.arange(12))[brand].sum()
      for a, b in itertools.permutations(range(12), 2)
    )
    assert total == pytest.approx(1.0)


def test_users_do_what_the_law_says():
  """The first two items of many users against their exact joint distribution, the favourite brand summed out."""
  shop, law = make_shop(dataclasses.replace(SMALL, users=20_000, mean_events=3.0, seed=7))
  assert {len(history) for history in shop.histories} == {3}
  exact = np.zeros((12, 12))
  for brand in range(3):
    first = next_chances(law, (), brand)
    for item in range(12):
      exact[item] += first[item] * next_chances(law, (item,), brand) / 3
  pairs = np.array([history[:2] for history in shop.histories])
  found = np.zeros((12, 12))
  np.add.at(found, (pairs[:, 0], pairs[:, 1]), 1.0)
  expected = 20_000 * exact
  usual = expected > 5
  chi2 = ((found - expected)[usual] ** 2 / expected[usual]).sum()
  freedom = usual.sum() - 1
  assert abs(chi2 - freedom) < 4 * np.sqrt(2 * freedom)
  assert found[exact == 0].sum() == 0


def test_no_order_is_better_than_the_best_possible_and_it_is_reached():
  shop, law = make_shop(MadeUpOptions(users=1500, categories=8, items_a_category=10, brands=6, colours=5, seed=3))
  lists = make_lists(leave_one_out(shop), "test", covisitation, ListOptions(size=10, pool=30))
  posteriors = law.posteriors(lists.tasks)
  promised = best_possible(posteriors)
  reached = ranking_metrics(order_by_scores(lists.tasks, list(posteriors)), lists.tasks)
  floor = ranking_metrics([task.candidates for task in lists.tasks], lists.tasks)
  assert len(lists.tasks) > 600
  for name, values in promised.items():
    # what comes out of one draw of targets lies within its deviation of what is promised
    error = reached[name].std() / np.sqrt(len(lists.tasks))
    assert abs(reached[name].mean() - values.mean()) < 4 * error + 1e-9
  assert promised["R@1"].mean() > floor["R@1"].mean() + 0.1


def test_strengths_make_headroom_and_equal_options_equal_shops():
  loose = dataclasses.replace(SMALL, loyalty=1.0, match=1.0)
  _, law = make_shop(loose)
  np.testing.assert_allclose(law.favourite((0, 1, 2)), 1 / 3)  # nothing is learned where nobody is loyal
  shop, _ = make_shop(SMALL)
  again, _ = make_shop(SMALL)
  assert shop == again
  other, _ = make_shop(dataclasses.replace(SMALL, seed=1))
  assert other.fingerprint != shop.fingerprint


def test_titles_are_english_and_say_what_the_law_asks():
  shop, law = make_shop()
  titles = {item.title for item in shop.items}
  assert len(titles) == len(shop.items) == 480
  for row, item in enumerate(shop.items[:50]):
    brand, colour, *thing = item.title.split()
    assert item.brand == brand
    assert item.categories[1].lower() == " ".join(thing) + "s"
    same = [other for other in range(480) if shop.items[other].title.split()[1] == colour]
    assert set(law.colour[same]) == {law.colour[row]}
  assert all(3 <= len(history) == len(set(history)) for history in shop.histories)
  order = np.array([law.category[row] for row in range(480)])
  assert abs(np.corrcoef(np.arange(480), order)[0, 1]) < 0.2  # an item's number says nothing of what it is


def test_options_as_text():
  assert read_options("") == MadeUpOptions()
  assert read_options("users=20,loyalty=3,stay=0.2") == MadeUpOptions(users=20, loyalty=3.0, stay=0.2)
  for text, message in (
    ("user=3", "with the keys users, categories, .*; got 'user=3'"),
    ("users", "users of a made-up shop is a whole number, not ''"),
    ("users=1.5", "users of a made-up shop is a whole number, not '1.5'"),
    ("match=much", "match of a made-up shop is a number, not 'much'"),
    ("categories=3", "lies in 4 to 48, not 3"),
  ):
    with pytest.raises(ValueError, match=message):
      read_options(text)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(categories=3), "categories of a made-up shop lies in 4 to 48, not 3"),
    (dict(brands=2, colours=2), "items_a_category of a made-up shop lies in 1 to 4, not 20"),
    (dict(least_events=2), "least_events of a made-up shop lies in 3 to 40"),
    (dict(mean_events=3.0), "mean_events lies between"),
    (dict(complement=0.9, stay=0.2), "together at most 1"),
    (dict(loyalty=0.0), "above 0"),
    (dict(categories=4, items_a_category=10), "most_events of a made-up shop lies in 3 to 20, not 40"),
  ],
)
def test_options_that_no_shop_can_have(options, message):
  with pytest.raises(ValueError, match=message):
    MadeUpOptions(**options)
