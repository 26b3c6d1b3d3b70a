"""Retrievers against a naive recount in which the user's later items never happened; ties; filling; models."""

import numpy as np
import pytest

from diffgr_jax.rerank import retrievers as r
from diffgr_jax.rerank.counts import count_covisits
from tests.rerank import shops

MAKERS = {
  "co-visitation": lambda h, n, seed: r.covisitation(h, n, seed=seed),
  "long": lambda h, n, seed: r.covisitation(
    h, n, fade=0.5, last=3, forward=0.7, backward=0.2, decay=0.9, power=0.4, seed=seed
  ),
  "symmetric": lambda h, n, seed: r.symmetric(h, n, seed=seed),
  "markov": lambda h, n, seed: r.markov(h, n, seed=seed),
  "popularity": lambda h, n, seed: r.popularity(h, n, seed=seed),
}


def naive_scores(retriever, known, history, num_items):
  """Of every item: its score, and its takers, by counting the users one by one."""
  window, fade = retriever.counts.window, retriever.counts.fade
  rounded = lambda weight: round(weight * 2**10) / 2**10
  scores = np.zeros(num_items)
  recent = history[::-1][: retriever.last]
  for item in range(num_items):
    for age, own in enumerate(recent):
      after, before = (shops.followed(known, *pair, window, fade) for pair in ((own, item), (item, own)))
      scores[item] += rounded(retriever.decay**age) * (
        rounded(retriever.forward) * after + rounded(retriever.backward) * before
      )
  takers = np.array([shops.takers(known, item) for item in range(num_items)])
  return scores * np.maximum(takers, 1) ** retriever.power, takers


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "again"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_list_is_that_of_a_world_without_the_users_later_items(kind, repeats):
  rng = np.random.default_rng()
  seed = int(rng.integers(1000))
  shop = shops.random_shop(rng, users=10, items=14, repeats=repeats, longest=7)
  retriever = MAKERS[kind](shop.histories, 14, seed)
  places = [(user, place) for user, own in enumerate(shop.histories) for place in range(1, len(own) + 1)]
  users, places = np.array(places).T
  lists = retriever.rank(r.Requests(shop.histories, users, places), 14)
  order = np.random.default_rng(seed).permutation(14)
  for row, (user, place) in enumerate(zip(users, places, strict=True)):
    history = shop.histories[user][:place]
    scores, takers = naive_scores(retriever, shops.as_known(shop.histories, user, place), history, 14)
    others = [item for item in range(14) if item not in history]
    # above 0 by score, then by popularity; of equal ones as the permutation says
    keys = {i: (scores[i] <= 0, -scores[i], -takers[i] if scores[i] <= 0 else 0, order[i]) for i in others}
    expected = sorted(others, key=keys.__getitem__)
    found = [item for item in lists[row].tolist() if item >= 0]
    assert lists[row, len(found) :].tolist() == [-1] * (14 - len(found))
    assert len(set(found)) == len(others)
    np.testing.assert_allclose(scores[found], scores[expected], rtol=1e-12)
    assert found == expected


def test_short_lists_are_the_beginnings_of_long_ones():
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, users=40, items=60)
  retriever = r.covisitation(shop.histories, 60, seed=3)
  asked = r.Requests(shop.histories, np.arange(40), np.full(40, 2))
  longest = retriever.rank(asked, 58)
  for k in (1, 5, 20):
    np.testing.assert_array_equal(retriever.rank(asked, k), longest[:, :k])


def test_what_only_the_user_himself_took_together_leaves_no_trace():
  histories = ((0, 1, 2, 3), (4, 5, 6))
  retriever = r.covisitation(histories, 7)
  scores = retriever.scores(r.Requests(histories, np.array([0, 1]), np.array([2, 1])))
  assert not scores.toarray()[:, [2, 3, 5, 6]].any()
  assert scores.toarray()[0, 1] == r.rounded(0.6)  # 1 after 0, both in the history
  assert scores.nnz == 2  # and 0 before 1


def test_equal_scores_stand_in_an_order_that_is_not_that_of_the_items():
  histories = tuple((0, item) for item in range(1, 101))  # a hundred items, each taken once, after 0
  asked = r.Requests(((0,),), np.array([0]), np.array([1]))
  for make in (r.covisitation, r.popularity):
    counted = ((0,), *histories)  # the one who asks has taken nothing more
    lists = [make(counted, 101, seed=seed).rank(asked, 100)[0] for seed in (0, 0, 1)]
    assert sorted(lists[0].tolist()) == list(range(1, 101))
    assert abs(np.corrcoef(np.arange(100), lists[0])[0, 1]) < 0.35  # three and a half deviations of chance
    assert lists[0].tolist() == lists[1].tolist() != lists[2].tolist()


def test_a_model_ranks_what_it_scores():
  histories = ((0, 1, 2), (3, 4, 0))
  table = np.random.default_rng().normal(size=(5, 5))
  seen = []

  def score(asked):
    seen.extend(asked)
    scores = np.stack([table[history[-1]] for history in asked])
    scores[:, 4] = -np.inf  # not to be listed
    return scores

  model = r.ModelRetriever("model", score)
  assert isinstance(model, r.Retriever)
  assert isinstance(r.popularity(histories, 5), r.Retriever)
  lists = model.rank(r.Requests(histories, np.array([0, 1]), np.array([2, 1])), 4)
  assert seen == [(0, 1), (3,)]  # the history, and nothing of what came later
  assert lists[0].tolist() == [*sorted((2, 3), key=lambda item: -table[1, item]), -1, -1]
  assert lists[1].tolist() == [*sorted((0, 1, 2), key=lambda item: -table[3, item]), -1]
  tied = r.ModelRetriever("tied", lambda asked: np.zeros((len(asked), 200)))
  (row,) = tied.rank(r.Requests(histories, np.array([0]), np.array([1])), 199).tolist()
  assert abs(np.corrcoef(np.arange(199), row)[0, 1]) < 0.3
  broken = r.ModelRetriever("broken", lambda asked: np.full((len(asked), 5), np.nan))
  with pytest.raises(ValueError, match=r"broken gave scores of shape \(1, 5\) for 1 histories, or NaN"):
    broken.rank(r.Requests(histories, np.array([0]), np.array([1])), 3)


def test_options_that_mean_nothing_are_refused():
  counts = count_covisits(((0, 1),), 2)
  for options in (dict(last=-1), dict(forward=-0.1), dict(decay=1.1)):
    with pytest.raises(ValueError, match=r"decay lies in \[0, 1\]"):
      r.CoVisitation("x", counts, **options)
