"""Evidence against a recount, user by user, of a world without the user's later items."""

import numpy as np
import pytest

from diffgr_jax.rerank.counts import count_covisits
from diffgr_jax.rerank.evidence import EvidenceSource
from diffgr_jax.rerank.retrievers import Requests
from tests.rerank import shops


@pytest.mark.parametrize("repeats", [False, True], ids=["once", "again"])
def test_evidence_is_that_of_a_world_without_the_users_later_items(repeats):
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, users=9, items=12, repeats=repeats, longest=8)
  vectors = rng.normal(size=(12, 5)).astype(np.float16)
  source = EvidenceSource.counting(shop.items, shop.histories, vectors, last=3)
  where = [(user, place) for user, own in enumerate(shop.histories) for place in range(1, len(own))]
  users, places = np.array(where).T
  candidates = np.stack([rng.choice(12, 6, replace=False) for _ in where])
  gathered = source.gather(Requests(shop.histories, users, places), candidates)
  for (user, place), own, evidence in zip(where, candidates.tolist(), gathered, strict=True):
    history, known = shop.histories[user][:place], shops.as_known(shop.histories, user, place)
    recent = list(dict.fromkeys(history[-3:][::-1]))
    for candidate, found in zip(own, evidence, strict=True):
      after = [shops.followed(known, item, candidate) for item in recent]
      before = [shops.followed(known, candidate, item) for item in recent]
      assert (found.followed, found.preceded) == (sum(after), sum(before))
      assert found.followed_last == shops.followed(known, recent[0], candidate)
      assert found.directly == sum(shops.followed(known, item, candidate, window=1) for item in recent)
      assert found.directly_last == shops.followed(known, recent[0], candidate, window=1)
      assert found.popularity == shops.takers(known, candidate)
      together = {item: a + b for item, a, b in zip(recent, after, before, strict=True) if a + b}
      assert list(found.supporters) == sorted(together, key=lambda item: -together[item])  # sorted is stable
      item = shop.items[candidate]
      assert found.same_brand == sum(bool(item.brand) and shop.items[h].brand == item.brand for h in history)
      special = lambda n: shop.items[n].categories[-1] if shop.items[n].categories else None
      assert found.same_category == sum(special(candidate) == special(h) is not None for h in history)
      a, b = vectors[candidate].astype(float), vectors[recent].astype(float).mean(axis=0)
      assert found.similarity == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)


def test_without_vectors_nothing_is_similar():
  shop = shops.random_shop(np.random.default_rng(), users=3, items=12)
  source = EvidenceSource.counting(shop.items, shop.histories)
  (evidence,) = source.gather(Requests(shop.histories, np.array([0]), np.array([1])), np.array([[3, 4]]))
  assert [own.similarity for own in evidence] == [0.0, 0.0]


def test_what_does_not_go_together_is_said():
  shop = shops.random_shop(np.random.default_rng(), users=3, items=12)
  with pytest.raises(ValueError, match="3 vectors for 12 items"):
    EvidenceSource.counting(shop.items, shop.histories, np.zeros((3, 2)))
  count = lambda **options: count_covisits(shop.histories, 12, **options)
  for counts, direct in ((count(window=1), count(window=1)), (count(), count()), (count(fade=0.5), count(window=1))):
    with pytest.raises(ValueError, match="with windows 0 and 1, each as 1; got window"):
      EvidenceSource(shop.items, counts, direct)
