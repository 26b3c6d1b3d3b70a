"""Boosted trees: what they are shown, that they learn a rule from it, and that they are chosen on valid alone."""

import builtins

import numpy as np
import pytest

from diffgr_jax.evaluation.rerank import ranking_metrics
from diffgr_jax.evaluation.rerank_baselines import FEATURES, features_of, fit_trees, read_trees
from diffgr_jax.rerank.records import Evidence, RankingTask
from diffgr_jax.rerank.wording import evidence_words

FAST = {"num_leaves": (4, 8), "min_data_in_leaf": (5,), "learning_rate": (0.1,)}


def evidence(rng, **changes):
  own = dict(
    followed=int(rng.integers(9)), preceded=int(rng.integers(9)), supporters=(), popularity=int(rng.integers(1, 50)),
    same_brand=int(rng.integers(3)), same_category=int(rng.integers(3)), similarity=float(rng.random()),
  )  # fmt: skip
  return Evidence(**(own | changes))


def lists(rng, count):
  """The target is the candidate with the greatest followed + 2 * same_brand, nine times of ten."""
  tasks = []
  for _ in range(count):
    own = tuple(evidence(rng) for _ in range(6))
    worth = np.array([e.followed + 2 * e.same_brand for e in own]) + rng.random(6)
    best = int(worth.argmax()) if rng.random() < 0.9 else int(rng.integers(6))
    candidates = tuple(rng.choice(1000, 6, replace=False).tolist())
    tasks.append(RankingTask("u", (1001, 1002), candidates, candidates[best], own))
  return tasks


def test_features_by_hand():
  rng = np.random.default_rng()
  first = evidence(
    rng,
    followed=3,
    preceded=1,
    supporters=(8, 5),
    popularity=40,
    same_brand=2,
    same_category=0,
    followed_last=2,
    directly=4,
    directly_last=1,
  )
  second = evidence(rng, followed=7, preceded=0, supporters=(), popularity=9, same_brand=0, same_category=1)
  features = features_of(RankingTask("u", (4, 8, 6, 5), (11, 12), 12, (first, second)))
  assert features.shape == (2, len(FEATURES) + 10)
  assert features[0, :9].tolist() == [0, 3, 1, 2, 2, 0, 40, 2, 0]  # 8 is two before the last item, 5 is the last
  assert features[1, :9].tolist() == [1, 7, 0, 0, 4, 4, 9, 0, 1]
  assert features[:, 9].tolist() == [first.similarity, second.similarity]
  assert features[:, 10].tolist() == [4, 4]
  assert features[:, 11:14].tolist() == [[2, 4, 1], [0, 0, 0]]
  assert features[:, 14].tolist() == [4, 0]  # followed below the list's best
  assert features[:, -3:].tolist() == [[0, 0, 0], [2, 4, 1]]


def test_worded_features_are_the_prompts_words():
  rng = np.random.default_rng()
  own = tuple(evidence(rng, followed=int(rng.integers(40)), popularity=int(rng.integers(1, 90))) for _ in range(30))
  tasks = RankingTask("u", (101, 102), tuple(range(30)), 3, own)
  plain, worded = features_of(tasks), features_of(tasks, worded=True)
  words = [evidence_words(each) for each in own]
  for name, field in (("followed",) * 2, ("popularity",) * 2, ("similarity",) * 2, ("same brand", "same_brand")):
    column = FEATURES.index(name)
    order = np.argsort(plain[:, column], kind="stable")
    assert (np.diff(worded[order, column]) >= 0).all()
    pairs = {(own.get(field, ""), number) for own, number in zip(words, worded[:, column], strict=True)}
    assert len(pairs) == len({word for word, _ in pairs}) == len({number for _, number in pairs})  # one to one
  for name in ("place", "supporters", "history"):
    np.testing.assert_array_equal(worded[:, FEATURES.index(name)], plain[:, FEATURES.index(name)])
  np.testing.assert_array_equal(worded[:, 14], worded[:, 1].max() - worded[:, 1])


def test_no_feature_knows_an_item():
  rng = np.random.default_rng()
  own = (evidence(rng, supporters=(3,)), evidence(rng))
  renamed = (Evidence(**{k: getattr(own[0], k) for k in Evidence.__slots__} | {"supporters": (903,)}), own[1])
  a = features_of(RankingTask("u", (2, 3), (10, 11), 10, own))
  b = features_of(RankingTask("v", (902, 903), (710, 5), 5, renamed))
  np.testing.assert_array_equal(a, b)


def test_trees_learn_and_are_the_same_again():
  rng = np.random.default_rng(5)
  train, valid, test = lists(rng, 600), lists(rng, 200), lists(rng, 300)
  trees = fit_trees(train, valid, settings=FAST)
  ranked = trees.rank(test)
  assert (
    ranking_metrics(ranked, test)["R@1"].mean()
    > 0.7
    > ranking_metrics([t.candidates for t in test], test)["R@1"].mean() + 0.3
  )
  assert fit_trees(train, valid, settings=FAST).rank(test) == ranked
  worded = fit_trees(train, valid, settings=FAST, worded=True)
  assert worded.worded
  assert ranking_metrics(worded.rank(test), test)["R@1"].mean() > 0.5
  assert worded.rank(test) != ranked
  assert [row["num_leaves"] for row in trees.tried] == [4, 8]
  best = max(trees.tried, key=lambda row: row["valid NDCG@3"])
  assert {key: best[key] for key in trees.settings} == trees.settings
  assert ranking_metrics(trees.rank(valid), valid)["NDCG@3"].mean() == pytest.approx(best["valid NDCG@3"])


def test_trees_need_lists():
  with pytest.raises(ValueError, match="not 0 and 1"):
    fit_trees([], lists(np.random.default_rng(), 1))


def test_a_machine_without_openmp_is_told_what_to_install(monkeypatch):
  def without(name, *how):
    if name == "lightgbm":
      raise OSError("libgomp.so.1: cannot open shared object file: No such file or directory")
    return known(name, *how)

  known = builtins.__import__
  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(RuntimeError, match=r"boosted trees, cannot be loaded \(libgomp.*apt-get install libgomp1"):
    read_trees({"model": "", "settings": {}, "tried": []})
