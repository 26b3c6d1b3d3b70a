"""Weights between a pretrained start and what training made of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax.training import averaging
from diffgr_jax.training.averaging import answering_params, average_with_start


def _with_share(run, share):
  config = run.config.copy_and_resolve_references().unlock()
  config.start_share = share
  return dataclasses.replace(run, config=config.lock())


def test_weights_lie_on_the_line_between_the_start_and_the_checkpoint(untrained, monkeypatch):
  run, params, _ = untrained
  start = jax.tree.map(lambda leaf: leaf + 1.0, params)
  monkeypatch.setattr(averaging, "pretrained_folder", lambda name: name)
  monkeypatch.setattr(averaging, "start_at_pretrained", lambda *_: jax.tree.map(jnp.array, start))
  for share in (0.25, 1.0):
    mixed = average_with_start(_with_share(run, share), params)
    jax.tree.map(lambda got, old, share=share: np.testing.assert_allclose(got, old + share, atol=1e-6), mixed, params)


def test_a_share_of_zero_is_the_checkpoint_itself(untrained):
  run, params, _ = untrained
  assert average_with_start(run, params) is params


def test_the_checkpoint_is_what_is_averaged(untrained, monkeypatch):
  run, params, _ = untrained
  monkeypatch.setattr(averaging, "restore_params", lambda workdir, model, step: (params, 5))
  assert answering_params(run) == (params, 5)
