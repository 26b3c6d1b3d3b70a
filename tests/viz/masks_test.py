"""Pictures of attention patterns: they show the masks that models use."""

import numpy as np
import pytest

from diffgr_jax.models.config import PATTERNS
from diffgr_jax.viz.masks import draw_patterns, pattern_mask


def test_masks_are_the_drawings_of_the_attention_module():
  assert np.array_equal(pattern_mask("causal", length=4), np.tril(np.ones((4, 4), bool)))
  assert np.array_equal(pattern_mask("block_causal", length=4, block_size=2), [[1, 1, 0, 0]] * 2 + [[1] * 4] * 2)
  two = pattern_mask("two_stream", length=4, block_size=2)
  assert np.array_equal(two[2], [0, 0, 1, 1, 1, 1, 0, 0])
  assert np.array_equal(two[6], [0, 0, 0, 0, 1, 1, 1, 1])
  assert np.array_equal(pattern_mask("prefix", length=4, prompt=2), [[1, 1, 0, 0]] * 2 + [[1] * 4] * 2)
  with pytest.raises(ValueError, match="spiral"):
    pattern_mask("spiral")


def test_all_patterns_are_drawn(tmp_path):
  assert len(PATTERNS) == 6
  assert draw_patterns(tmp_path / "deep" / "patterns.png").stat().st_size > 5000
