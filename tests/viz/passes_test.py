"""Decoders on an axis of forward passes."""

import numpy as np

from diffgr_jax.viz.passes import draw_passes, tokens_after


def test_tokens_are_counted_after_each_pass():
  assert tokens_after([0, 0, 2, 1, 2, 2, -1]).tolist() == [2, 3, 6]
  assert tokens_after([-1, -1]).tolist() == []
  assert tokens_after(np.arange(4)).tolist() == [1, 2, 3, 4]


def test_decoders_are_drawn_beside_each_other(tmp_path):
  passes = {"teacher": range(12), "student": [0, 0, 1, 0, 1, 2, 2, 2, 3, 3, 3, 3], "nothing": []}
  drawn = draw_passes(passes, tmp_path / "passes.png", title="one list", answer_from={"student": 8})
  assert drawn.stat().st_size > 5000
