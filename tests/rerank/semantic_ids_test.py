"""Codes of a shop's items: in the items' order, nearly all of them unique, a token for every level and code."""

import numpy as np
import pytest

from diffgr_jax.docid.codes import CodeIndex, import_json, told_apart
from diffgr_jax.docid.collisions import unique_share
from diffgr_jax.rerank.chat import item_tokens
from diffgr_jax.rerank.semantic_ids import id_texts, item_codes
from tests.rerank import shops


def index_of(shop, codes, rng):
  """An index with the items in another order, and with one that the shop does not have."""
  order = rng.permutation(len(shop.items))
  names = (*(shop.items[row].item_id for row in order), "another")
  return CodeIndex(np.concatenate([codes[order], codes[:1]]), (16,) * 4, names, ("",) * len(names))


def test_codes_come_in_the_order_of_the_items(vocab):
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, items=40)
  codes = np.stack(np.unravel_index(rng.choice(16**4, 40, replace=False), (16,) * 4), axis=1)
  found = item_codes(index_of(shop, codes, rng), shop, "index.npz")
  np.testing.assert_array_equal(found, codes)
  assert id_texts(found)[7] == "<a_{}><b_{}><c_{}><d_{}>".format(*codes[7])
  tokens = item_tokens(found, vocab)
  for level in range(4):  # equal codes of one level are one token; of two levels, two
    pairs = set(zip(codes[:, level].tolist(), tokens[:, level].tolist(), strict=True))
    assert len(pairs) == len({code for code, _ in pairs}) == len({token for _, token in pairs})
    assert not set(tokens[:, level]) & set(tokens[:, :level].reshape(-1))


def test_what_an_index_may_not_be():
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, items=100)
  codes = np.stack(np.unravel_index(rng.choice(16**4, 100, replace=False), (16,) * 4), axis=1)
  codes[1] = codes[0]
  assert unique_share(codes) == pytest.approx(0.98)
  index = index_of(shop, codes, rng)
  with pytest.raises(
    ValueError, match=r"i\.npz gives only 98\.0% of the items .*, and 99% are wanted: .*collisions=random"
  ):
    item_codes(index, shop, "i.npz")
  np.testing.assert_array_equal(item_codes(index, shop, "i.npz", least_unique=0.98), codes)
  apart = item_codes(told_apart(index, "random"), shop, "i.npz", least_unique=1.0)
  np.testing.assert_array_equal(apart[2:], codes[2:])
  np.testing.assert_array_equal(apart[:, :3], codes[:, :3])
  other = shops.random_shop(rng, items=102)
  with pytest.raises(ValueError, match="no codes for 2 of 102 items of random, such as 'i100'"):
    item_codes(index, other, "i.npz")
  with pytest.raises(ValueError, match="optimal needs a quantiser"):
    told_apart(index, "optimal")


def test_what_is_told_apart_stays_so_in_the_published_form(tmp_path):
  rows = ", ".join(f'"{n}": ["<a_{n % 2}>", "<b_7>"]' for n in range(8))
  (tmp_path / "p.json").write_text("{" + rows + "}")
  index = told_apart(import_json(tmp_path / "p.json"), "random", seed=3)
  assert unique_share(index.codes) == 1.0
  assert index.settings["measured"] == {"in_collision_before": 8, "in_collision": 0}
