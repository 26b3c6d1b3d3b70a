"""SIGTERM is a notice, taken only while a run can act on it. (A job of several processes: tests/launch/pod_test.py.)"""

import os
import signal
import threading

import pytest

from diffgr_jax.parallel.preemption import notice_of_preemption


def test_sigterm_is_noted_and_afterwards_means_what_it_meant():
  before = signal.getsignal(signal.SIGTERM)
  with notice_of_preemption() as notice:
    assert not notice.reached(1)
    os.kill(os.getpid(), signal.SIGTERM)
    assert notice.reached(2)
    assert notice.reached(3)
  assert signal.getsignal(signal.SIGTERM) == before


def test_one_ctrl_c_is_a_notice_and_two_mean_now(capsys):
  before = signal.getsignal(signal.SIGINT)
  with notice_of_preemption() as notice:
    os.kill(os.getpid(), signal.SIGINT)
    assert notice.reached(1)
    assert "saves and leaves after this step" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) == before


def test_a_thread_may_train_too():
  seen = []

  def work():
    with notice_of_preemption() as notice:
      seen.append(notice.reached(1))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert seen == [False]
