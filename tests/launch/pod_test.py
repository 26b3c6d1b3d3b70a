"""The rehearsal: a pod of processes on this machine is killed, told to leave, damaged and started in another shape.

Every run is the command itself behind launch/local_pod.sh, with a time limit. One that was never broken off is what all
others must come to: the same examples at the same steps, the same bits on the same layout.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.run import open_run
from tests.plain_compilation import PLAIN_COMPILATION

STEPS, EVERY, KILLED_IN, TOLD_IN = 14, 5, 7, 7
GRACE, LIMIT = 15, 420  # seconds for the survivors of a failure; for any run at all
FLAGS = [
  "--config.d_model=16", "--config.n_layers=1", "--config.n_heads=2", "--config.n_kv_heads=2", "--config.d_ff=16",
  "--config.vocab_size=360", "--config.prompt_length=12", "--config.batch_size=16", "--config.warmup_steps=1",
  f"--config.checkpoint_every={EVERY}", "--config.start=random", "--config.eval_every=0", "--config.log_every=1",
  "--config.eval_splits=('valid',)", "--config.document_weight=0.0", "--config.mesh.data=1", "--config.mesh.fsdp=8",
]  # fmt: skip


def pod(folder, corpus, *, processes=2, fault=""):
  """Runs the job in a folder and returns how it ended: code, output, seconds, and what each step was trained on."""
  environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
  environment |= {
    "PYTHON": sys.executable,
    "FAULT": fault,
    "SEEN": str(folder),
    "XLA_FLAGS": PLAIN_COMPILATION,
    "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder.parent / "compiled")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  for old in folder.glob("seen_*.jsonl"):
    old.unlink()
  command = [
    "launch/local_pod.sh", f"--devices={8 // processes}", f"--grace={GRACE}", f"--logs={folder / 'terminal'}",
    "--module=tests.launch.faulty_main", str(processes), "--",
    f"--config=configs/docid/base.py:steps={STEPS},size=tiny,dataset=folder,path={corpus}", *FLAGS,
    f"--workdir={folder / 'run'}",
  ]  # fmt: skip
  began = time.monotonic()
  job = subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
  )
  try:
    output, _ = job.communicate(timeout=LIMIT)
  except subprocess.TimeoutExpired:
    os.killpg(job.pid, 9)
    output, _ = job.communicate()
    pytest.fail(f"the job hangs; its output:\n{output}")
  seen = [json.loads(line) for path in folder.glob("seen_*.jsonl") for line in path.read_text().splitlines()]
  return job.returncode, output, time.monotonic() - began, {(step, row): checksum for step, row, checksum in seen}


def final_params(folder):
  params, step = restore_params(folder / "run", open_run(folder / "run").model)
  assert step == STEPS
  return params


def assert_same_bits(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def of_steps(seen, first, last=STEPS):
  return {key: value for key, value in seen.items() if first <= key[0] <= last}


def copy_of(folder, name):
  shutil.copytree(folder, folder.parent / name)
  return folder.parent / name


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
  return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def whole(jobs, corpus_folder):
  """The run that was never broken off."""
  folder = jobs / "whole"
  folder.mkdir()
  code, output, _, seen = pod(folder, corpus_folder)
  assert code == 0, output
  assert len(seen) == STEPS * 16
  return final_params(folder), seen


@pytest.fixture(scope="module")
def killed(jobs, corpus_folder, whole):
  """A job of which one process was killed in mid-step."""
  folder = jobs / "killed"
  folder.mkdir()
  return folder, pod(folder, corpus_folder, fault=f"kill:1:{KILLED_IN}")


@pytest.fixture(scope="module")
def told(killed, corpus_folder):
  """The same job, started again and then told to leave."""
  folder = copy_of(killed[0], "told")
  return folder, pod(folder, corpus_folder, fault=f"term:0:{TOLD_IN}")


def newest_of(folder):
  return max((folder / "run" / "checkpoints").iterdir(), key=lambda path: int(path.name))


def newest_of_others(folder, one):
  return max(int(path.name) for path in (folder / "run" / "checkpoints").iterdir() if path != one)


def test_a_killed_process_ends_the_job_soon_and_clearly(killed):
  _, (code, output, seconds, seen) = killed
  assert code not in (0, 75), output
  assert re.search(r"local_pod: process \d of 2 (was killed by signal [69]|failed with exit code 1)", output)
  assert f"the job ended with exit code {code}; start it again to go on from its last checkpoint" in output
  assert max(step for step, _ in seen) == KILLED_IN
  assert seconds < LIMIT


def test_started_again_and_told_to_leave_all_save_one_step_and_exit_by_their_own_code(killed, told, whole):
  folder, (code, output, _, seen) = told
  assert code == 75, output
  kept = int(newest_of(folder).name)
  assert TOLD_IN <= kept < STEPS
  assert f"stopped at step {kept}, which is saved" in output
  for process in range(2):
    assert "Preempted" in (folder / "run" / "logs" / f"process_{process}.log").read_text()
  # What counts is what the kept steps were trained on: of the killed job those up to its checkpoint.
  first = killed[1][3]
  assert of_steps(first, 1, EVERY) | seen == of_steps(whole[1], 1, kept)
  assert min(step for step, _ in seen) == EVERY + 1


def test_after_all_that_it_ends_with_the_bits_of_the_run_that_was_never_broken_off(killed, told, corpus_folder, whole):
  folder = copy_of(told[0], "to_the_end")
  code, output, _, seen = pod(folder, corpus_folder)
  assert code == 0, output
  assert not seen.keys() & told[1][3].keys()  # no example twice
  assert of_steps(killed[1][3], 1, EVERY) | told[1][3] | seen == whole[1]  # and none skipped
  assert_same_bits(final_params(folder), whole[0])


def test_with_its_newest_checkpoint_truncated_it_goes_on_as_four_processes_from_the_one_before(
  killed, told, corpus_folder, whole
):
  folder = copy_of(told[0], "as_four")
  newest = newest_of(folder)
  largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  before = newest_of_others(folder, newest)
  code, output, _, seen = pod(folder, corpus_folder, processes=4)
  assert code == 0, output
  assert re.search(rf"checkpoint {newest.name} is damaged \(.* bytes instead of \d+\): moved to .*damaged", output)
  assert min(step for step, _ in seen) == before + 1
  assert of_steps(whole[1], before + 1) == seen
  # Another layout adds up in another order; Adam divides by the root of tiny moments, which shows more of it.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), final_params(folder), whole[0])
