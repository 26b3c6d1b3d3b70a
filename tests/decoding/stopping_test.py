import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.stopping import after_stop, first_stop, stop_ends, stop_table


@pytest.mark.parametrize("stops", [[], [(1,)], [(1,), (2, 1), (0, 0, 2)]])
def test_ends_against_plain_search(stops):
  rng = np.random.default_rng(0)
  tokens, generated = rng.integers(0, 3, (6, 9)), np.arange(9)[None] >= rng.integers(0, 4, (6, 1))
  ours = stop_ends(jnp.asarray(tokens), jnp.asarray(generated), stop_table(stops))
  for b in range(6):
    for t in range(9):
      expected = any(
        t + 1 >= len(s) and tuple(tokens[b, t + 1 - len(s) : t + 1]) == s and generated[b, t + 1 - len(s) : t + 1].all()
        for s in stops
      )
      assert bool(ours[b, t]) == expected


def test_a_stop_counts_once_nothing_before_it_is_open():
  ends = jnp.array([[False, True, False, True]] * 3)
  settled = jnp.array([[True, True, False, True], [False, True, True, True], [True, True, True, True]])
  np.testing.assert_array_equal(first_stop(ends, settled), [True, False, True])
  np.testing.assert_array_equal(after_stop(ends)[0], [False, False, True, True])


def test_an_empty_stop_is_refused():
  with pytest.raises(ValueError, match="at least 1 token"):
    stop_table([(1,), ()])
