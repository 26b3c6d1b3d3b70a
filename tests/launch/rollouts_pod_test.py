"""OPD and RL as a job of two processes of four devices: what one process of eight comes to, rollouts and parameters."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffgr_jax.training import loop
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_run import open_rerank
from tests.plain_compilation import PLAIN_COMPILATION
from tests.training.tiny_rerank import flags_of, tiny

LIMIT = 420  # seconds


def pod(folder, flags):
  """Runs the command as two processes; returns its exit code and what it printed."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
  environment |= {
    "PYTHON": sys.executable,
    "XLA_FLAGS": PLAIN_COMPILATION,
    "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  command = ["launch/local_pod.sh", "--devices=4", "--grace=15", f"--logs={folder / 'terminal'}", "2", "--", *flags]
  done = subprocess.run(
    [*command, f"--workdir={folder / 'run'}"],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, timeout=LIMIT, check=False,
  )  # fmt: skip
  return done.returncode, done.stdout


def metrics(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(
  "stage, fields",
  [
    ("opd", dict(group=2, teacher_top_k=20, rollout_threshold=1e-4, steps=2)),
    ("rl", dict(group=4, kl_weight=0.1, refills=1, updates_per_rollout=2)),
  ],
)
def test_rollouts_of_two_processes_are_those_of_one(rerank_runs, tmp_path, stage, fields):
  folder, _ = rerank_runs
  first = folder / "convert"
  fields |= dict(lr_decay="constant", eval_every=2, teacher=str(folder / "sft") if stage == "opd" else "")
  config = tiny(stage, first, **fields)
  with config.unlocked():
    config.mesh.update(data=2, fsdp=2, tensor=2)
  _, state = loop.train_and_evaluate(config, tmp_path / "one")
  code, output = pod(tmp_path / "two", flags_of(config, stage, first))
  assert code == 0, output
  ours, alone = metrics(tmp_path / "two" / "run"), metrics(tmp_path / "one")
  assert len(ours) == len(alone) == config.steps
  for two, one in zip(ours, alone, strict=True):
    for name in ("loss", "grad_norm", "rollouts entropy", "rollouts tokens a forward"):
      assert (name in two) == (name in one)
      assert two.get(name, 0.0) == pytest.approx(one.get(name, 0.0), rel=2e-3, abs=1e-5), name
  params, _ = restore_params(tmp_path / "two" / "run", open_rerank(tmp_path / "two" / "run").model)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), params, state.params)


def test_rounds_ahead_are_refused(rerank_runs, tmp_path):
  folder, _ = rerank_runs
  config = tiny("rl", folder / "convert", group=4, rollout_ahead=True)
  code, output = pod(tmp_path, flags_of(config, "rl", folder / "convert"))
  assert code == 1
  assert "config.rollout_ahead is for one process, not for 2" in output
