"""The flat trie against prefixes collected in Python."""

import numpy as np
import pytest

from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import build_trie

EOS, PAD = 1, 0


def make_index(seed, documents=30, length=6):
  rng = np.random.default_rng(seed)
  codes = np.full((documents, length), PAD, np.int32)
  for row in codes:
    size = rng.integers(1, length)
    row[:size] = rng.integers(2, 5, size)
    row[size] = EOS
  names = tuple(f"D{i}" for i in range(documents))
  return DocIdIndex(codes, names, names, EOS, PAD)


@pytest.mark.parametrize("seed", range(3))
def test_children_are_the_tokens_that_follow_a_prefix(seed):
  index = make_index(seed)
  trie = build_trie(index)
  texts = [tuple(int(t) for t in row[s]) for row, s in zip(index.codes, index.scored, strict=True)]
  stack, seen = [(0, ())], 0
  while stack:
    node, prefix = stack.pop()
    seen += 1
    edges = range(trie.first[node], trie.first[node + 1])
    expected = sorted({t[len(prefix)] for t in texts if t[: len(prefix)] == prefix and len(t) > len(prefix)})
    assert [int(trie.token[e]) for e in edges] == expected
    assert trie.document[node] == (texts.index(prefix) if prefix in texts else -1)
    stack += [(e + 1, (*prefix, int(trie.token[e]))) for e in edges]
  assert seen == len(trie.document) == len({t[:i] for t in texts for i in range(len(t) + 1)})
  assert [texts[trie.document[leaf]] for leaf in trie.leaf] == texts
  counts = np.diff(trie.first)
  assert (trie.root_fan_out, trie.fan_out) == (counts[0], counts[1:].max())
  assert trie.depth == max(map(len, texts))


def test_a_docid_that_another_continues_and_an_empty_index_are_refused():
  codes = np.array([[2, 3, PAD], [2, 3, 4]], np.int32)
  with pytest.raises(ValueError, match="DocID of document 'a' is the beginning of another one"):
    build_trie(DocIdIndex(codes, ("a", "b"), ("a", "b"), EOS, PAD))
  with pytest.raises(ValueError, match="index is empty"):
    build_trie(DocIdIndex(codes[:0], (), (), EOS, PAD))
