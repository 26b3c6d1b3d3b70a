"""What the benchmark of retrievers counts; how each ranks is tested in tests/rerank/retrievers_test.py."""

import numpy as np

from benchmarks.item_retrievers import hits


def test_hits_are_shares_of_the_requests():
  ranked = np.arange(60)[None].repeat(4, axis=0)
  assert hits(ranked, np.array([0, 9, 10, 55])) == {"Hit@1": 0.25, "Hit@10": 0.5, "Hit@50": 0.75, "requests": 4}
