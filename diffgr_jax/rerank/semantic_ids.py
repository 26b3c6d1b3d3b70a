"""Semantic IDs of a shop's items: a code of each level, and one token for every code of every level.

    vectors of the items --index build--> 4 levels of codes --item_codes--> rows in the order of the shop's items
    a published index    --index import-'                                   <a_171><b_42><c_207><d_0>

As in GR2 (arXiv 2602.07774) an index is an RQ-VAE's with codebooks by moving averages, and items that it gives the same
codes draw another last code at random:

    python -m diffgr_jax.index build --corpus=amazon_beauty --path=DIR --vectors=FILE.npy --method=rqvae \\
      --collisions=random --out=FILE.npz

To the model, code c of level l is the vocabulary's DocID token <dl_c> (docid/codes.py, `code_tokens`).
"""

from collections.abc import Sequence

from jaxtyping import Int
import numpy as np

from diffgr_jax.docid.codes import CodeIndex, published_tokens
from diffgr_jax.docid.collisions import unique_share
from diffgr_jax.rerank.records import Shop

LEAST_UNIQUE = 0.99  # of the items


def item_codes(index: CodeIndex, shop: Shop, name: str, least_unique: float = LEAST_UNIQUE) -> Int[np.ndarray, "N L"]:
  """The codes of a shop's items, in their order.

  Args:
    index: has every item by its id; it may hold others.
    shop: whose items are meant.
    name: of the index, for errors.
    least_unique: the share of items whose codes no other item of the shop has, at least.

  Raises:
    ValueError: an item that the index does not have, or too many that share their codes.
  """
  place = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
  if missing := [item.item_id for item in shop.items if item.item_id not in place]:
    raise ValueError(
      f"{name} has no codes for {len(missing)} of {len(shop.items)} items of {shop.name}, such as {missing[0]!r}:"
      " build it from this shop, or import it with --corpus and --path"
    )
  codes = index.codes[[place[item.item_id] for item in shop.items]].astype(np.int32)
  if (share := unique_share(codes)) < least_unique:
    raise ValueError(
      f"{name} gives only {share:.1%} of the items codes of their own, and {least_unique:.0%} are wanted:"
      " build or import it with --collisions=random"
    )
  return codes


def id_texts(codes: Int[np.ndarray, "N L"]) -> Sequence[str]:
  """Every item's ID as it is published and read by people, such as `<a_171><b_42>`."""
  return ["".join(tokens) for tokens in published_tokens(codes)]
