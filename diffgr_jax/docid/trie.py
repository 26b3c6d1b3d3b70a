"""The prefix trie of a DocID index as three flat arrays: what may follow a prefix.

    d0  1 4 EOS            nodes, breadth first        first  0 2 4 5 6 7 7 ..   children of node n are the edges
    d1  1 5 EOS                 0                      token  1 7 4 5 4 E E E         first[n] .. first[n+1] - 1
    d2  7 4 EOS              1     2                   child of edge e: node e + 1 (the numbering makes it so)
                            3 4     5                  a node without children is a leaf: a whole DocID
                            6 7     8

Nothing here is larger than the number of distinct prefixes. DocIDs that are equal share a leaf.
"""

from dataclasses import dataclass

from jaxtyping import Int
import numpy as np

from diffgr_jax.docid.index import DocIdIndex


@dataclass(frozen=True, eq=False)
class PrefixTrie:
  """The DocIDs of an index, by prefix.

  Attributes:
    first: for each of the M nodes its first edge, and the number of edges behind the last node.
    token: of each edge; rising among the children of a node.
    document: for each leaf the lowest row of the index that spells it, -1 for the other nodes.
    leaf: for each document its leaf.
    root_fan_out: children of the root.
    fan_out: the largest number of children of any other node (at least 1).
    depth: tokens of the longest DocID, EOS included.
  """

  first: Int[np.ndarray, "M_plus_1"]
  token: Int[np.ndarray, "E"]
  document: Int[np.ndarray, "M"]
  leaf: Int[np.ndarray, "N"]
  root_fan_out: int
  fan_out: int
  depth: int


def build_trie(index: DocIdIndex) -> PrefixTrie:
  """Builds the trie of an index, level by level.

  Raises:
    ValueError: the index holds no document, or a DocID that continues where another one ends.
  """
  codes, scored = index.codes.astype(np.int64), index.scored
  if not len(codes):
    raise ValueError("a prefix trie needs at least one document; the DocID index is empty")
  node, tokens, parents, nodes = np.zeros(len(codes), np.int64), [], [], 1
  depth = int(scored.sum(axis=1).max())
  rows = codes.max() + 1
  for level in range(depth):
    going = scored[:, level]
    pairs, inverse = np.unique(node[going] * rows + codes[going, level], return_inverse=True)
    parents.append(pairs // rows)
    tokens.append(pairs % rows)
    node[going] = nodes + inverse
    nodes += len(pairs)
  children = np.bincount(np.concatenate(parents), minlength=nodes)
  if children[node].any():
    wrong = int(np.flatnonzero(children[node])[0])
    raise ValueError(f"the DocID of document {index.doc_ids[wrong]!r} is the beginning of another one; end it with EOS")
  document = np.full(nodes, -1)
  document[node[::-1]] = np.arange(len(codes))[::-1]  # the lowest row is written last
  to_int = lambda x: x.astype(np.int32)
  return PrefixTrie(
    first=to_int(np.concatenate([[0], np.cumsum(children)])),
    token=to_int(np.concatenate(tokens)),
    document=to_int(document),
    leaf=to_int(node),
    root_fan_out=int(children[0]),
    fan_out=max(int(children[1:].max(initial=1)), 1),
    depth=depth,
  )
