"""Ranked documents: order, repetitions, empty places."""

import jax.numpy as jnp
import numpy as np

from diffgr_jax.decoding.ranked import order_found


def test_documents_stand_once_by_falling_score_and_empty_places_last():
  document = jnp.array([[4, -1, 2, 4, 7], [-1, -1, -1, -1, -1]])
  score = jnp.array([[-2.0, 9.0, -1.0, -2.0, -jnp.inf], [0.0, 0.0, 0.0, 0.0, 0.0]])
  found, scores = order_found(document, score)
  assert found.tolist() == [[2, 4, 7, -1, -1], [-1] * 5]
  np.testing.assert_array_equal(scores[0], [-1.0, -2.0, -np.inf, -np.inf, -np.inf])


def test_random_lists_agree_with_a_dictionary():
  rng = np.random.default_rng()
  document = rng.integers(-1, 9, (20, 12))
  by_document = rng.normal(size=(20, 9)).astype(np.float32)
  score = np.where(document >= 0, np.take_along_axis(by_document, np.maximum(document, 0), axis=1), 0.0)
  found, scores = order_found(jnp.asarray(document), jnp.asarray(score, jnp.float32))
  for row in range(20):
    own = {d: float(by_document[row, d]) for d in document[row].tolist() if d >= 0}
    expected = sorted(own, key=own.__getitem__, reverse=True)
    assert found[row].tolist() == expected + [-1] * (12 - len(expected))
    np.testing.assert_allclose(scores[row][: len(expected)], [own[d] for d in expected], rtol=1e-6)
