"""How processes find each other: what is refused, and which rows of a batch each one makes."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffgr_jax.parallel.distributed import PodSettings, agreed, fetch, in_turn, pod_settings, process_rows
from diffgr_jax.parallel.mesh import make_mesh

TOLD = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


def settings(environ=(), *, pod=False, address="", processes="", process=""):
  return pod_settings(
    pod=pod, coordinator_address=address, num_processes=processes, process_id=process, environ=dict(environ)
  )


def test_flags_environment_or_both_say_who_is_who():
  expected = PodSettings("10.0.0.1:8476", 4, 3)
  assert settings(TOLD) == expected
  assert settings(address="10.0.0.1:8476", processes="4", process="3") == expected
  assert settings(TOLD, process="3") == expected
  assert settings() == PodSettings()
  assert settings().alone
  assert not settings(TOLD).alone
  assert settings(pod=True) == settings({"DIFFGR_POD": "1"}) == PodSettings(num_processes=0, detect=True)
  assert settings(pod=True, processes="16").num_processes == 16
  assert settings({"TPU_WORKER_HOSTNAMES": "localhost"}).alone


@pytest.mark.parametrize(
  "environ, given, message",
  [
    (TOLD, dict(processes="2"), "--num_processes=2, but JAX_NUM_PROCESSES=4"),
    ({}, dict(processes="2"), "needs --coordinator_address (JAX_COORDINATOR_ADDRESS) beside --num_processes"),
    ({}, dict(address="a:1", processes="2"), "needs --process_id (JAX_PROCESS_ID)"),
    (TOLD, dict(pod=True), "--pod asks the cluster who is who: leave --coordinator_address"),
    ({}, dict(address="a", processes="2", process="0"), "--coordinator_address is HOST:PORT, not a"),
    ({}, dict(address="a:1", processes="two", process="0"), "--num_processes is a whole number, not 'two'"),
    ({}, dict(address="a:1", processes="0", process="0"), "--num_processes is at least 1, not 0"),
    ({}, dict(address="a:1", processes="2", process="2"), "--process_id is from 0 to 1 in a job of 2 processes, not 2"),
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, {}, "this host is one of 4 (TPU_WORKER_HOSTNAMES)"),
  ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(environ, given, message):
  with pytest.raises(ValueError) as error:  # noqa: PT011 (the message is looked at below)
    settings(environ, **given)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_the_command_takes_no_device_before_the_processes_have_met():
  program = "import diffgr_jax.main; from jax._src import xla_bridge; assert not xla_bridge._backends"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=dict(os.environ))
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "tensor": 4}, {"replica": 2, "fsdp": 2, "tensor": 2}])
def test_one_process_makes_all_rows(sizes):
  np.testing.assert_array_equal(process_rows(make_mesh(sizes), 16), np.arange(16))


def test_alone_nothing_is_waited_for():
  with in_turn("work"):
    assert agreed(7) == 7
  np.testing.assert_array_equal(fetch(jax.numpy.arange(3)), [0, 1, 2])
