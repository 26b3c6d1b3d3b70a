"""The benchmark of a train step runs where the tests run."""

import json
import subprocess
import sys


def test_a_tiny_step_is_measured():
  command = [sys.executable, "-m", "benchmarks.train_step", "--config=configs/docid/base.py:size=tiny", "--steps=2"]
  fields = ["--config.batch_size=8", "--config.vocab_size=400", "--documents=20"]
  done = subprocess.run([*command, *fields], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  record = json.loads(done.stdout.splitlines()[-1])
  assert record["status"] == "measured"
  assert record["parameters"] > 0
