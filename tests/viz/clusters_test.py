"""Pictures of an index: they are drawn for every kind of it, and the plane is the one that sets clusters apart."""

import numpy as np
import pytest

from diffgr_jax.docid.build import BuildOptions, build_index
from diffgr_jax.viz.clusters import cluster_plane, draw_index

VECTORS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


@pytest.mark.parametrize("with_vectors", [True, False])
@pytest.mark.parametrize("levels", [1, 2])
def test_an_index_is_drawn(with_vectors, levels, tmp_path):
  options = BuildOptions(levels=levels, codes=12, collisions="extra_level")
  index = build_index([str(i) for i in range(50)], ["$a_title$"] * 50, VECTORS, options)
  path = draw_index(index, tmp_path / "sub" / "i.png", VECTORS if with_vectors else None)
  assert path.read_bytes()[:4] == b"\x89PNG"


def test_the_plane_shows_the_directions_in_which_cluster_means_differ():
  cluster = np.repeat(np.arange(3), 40)
  centres = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [0, 7, 0, 0]], np.float32)
  noise = np.random.default_rng(1).normal(size=(120, 4)).astype(np.float32) * np.array([0.1, 0.1, 3, 3], np.float32)
  plane = cluster_plane(centres[cluster] + noise, cluster)
  means = np.stack([plane[cluster == name].mean(0) for name in range(3)])
  within = np.stack([plane[cluster == name].std(0) for name in range(3)])
  assert within.max() < 1
  assert min(np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 5
