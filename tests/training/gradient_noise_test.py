"""The signal of gradients that are made to have a known one, and those of a tiny run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.training import gradient_noise, loop
from diffgr_jax.training.jobs import make_job
from tests.training.tiny_rerank import tiny


@pytest.mark.parametrize("noise", [0.05, 0.2])
def test_a_known_signal_is_found(noise):
  """A signal of norm 1 in 4,096 dimensions, noise of norm 64 * noise: its share is 1 / (1 + (64 noise)^2)."""
  rng = np.random.default_rng(0)
  signal = rng.normal(size=4096)
  signal /= np.linalg.norm(signal)
  found = gradient_noise.signal_share(signal + noise * rng.normal(size=(64, 4096)), rollouts=32)
  share = 1 / (1 + 4096 * noise**2)
  assert found["signal share low"] < share < found["signal share high"]
  assert found["signal share"] == pytest.approx(share, rel=0.25)
  assert found["noise scale"] == pytest.approx(32 * (1 / share - 1), rel=0.3)
  assert found["norm"] == pytest.approx(np.sqrt(1 + 4096 * noise**2), rel=0.05)


def test_noise_alone_has_no_scale():
  found = gradient_noise.signal_share(np.random.default_rng(1).normal(size=(32, 4096)), rollouts=32)
  assert found["signal share low"] < 0 < found["signal share high"]
  assert found["noise scale low"] > 1000
  assert "noise scale high" not in found  # nothing says that any number of rollouts would do


def test_gradients_are_those_of_training(rerank_runs, tmp_path):
  """The first one has the norm that the first step of a run reports, whose weights are the same."""
  teacher, student = rerank_runs[0] / "sft", tmp_path / "convert"
  loop.train_and_evaluate(tiny("convert", teacher), student)
  config = tiny("opd", student, teacher=str(teacher), group=2, steps=2)
  job, mesh = make_job(config, tmp_path / "noise"), make_mesh(config.mesh.to_dict())
  found = gradient_noise.gradients(job, mesh, 3)
  assert not np.allclose(found[0], found[1])
  np.testing.assert_array_equal(found, gradient_noise.gradients(job, mesh, 3))  # no step was taken
  loop.train_and_evaluate(config, tmp_path / "run")
  first = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
  assert np.linalg.norm(found[0]) == pytest.approx(first["grad_norm"], rel=1e-5)


def test_a_run_is_taken_by_its_folder(rerank_runs, tmp_path):
  teacher, student = rerank_runs[0] / "sft", tmp_path / "convert"
  command = [sys.executable, "-m", "benchmarks.gradient_noise", f"--runs={student}", f"--workdir={tmp_path}/noise"]
  loop.train_and_evaluate(tiny("convert", teacher), student)
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "--runs: convert is of stage convert, not of opd or rl" in done.stderr
