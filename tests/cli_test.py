"""Manners of the commands: what is waited for is shown on a terminal alone, and --json leaves stdout to the JSON."""

import os
import pty
import subprocess
import sys

from diffgr_jax import cli

WAITS = """
import time
from diffgr_jax import cli
from diffgr_jax.parallel.aot import hidden_stderr
with cli.waiting("compiling"), hidden_stderr():
  time.sleep(1.5)
print("done")
"""


def test_what_is_waited_for_is_seen_while_a_compiler_hides_stderr():
  ours, theirs = pty.openpty()
  shown = subprocess.run([sys.executable, "-c", WAITS], stderr=theirs, stdout=subprocess.PIPE, check=True)
  os.close(theirs)
  assert shown.stdout == b"done\n"
  assert b"compiling" in (said := os.read(ours, 100_000))
  assert b"0:00:01" in said  # drawn again meanwhile


def test_nothing_is_drawn_where_there_is_no_terminal():
  said = subprocess.run([sys.executable, "-c", WAITS], capture_output=True, check=True)
  assert (said.stdout, said.stderr) == (b"done\n", b"")


def test_piped_leaves_stdout_to_the_answer(capsys):
  with cli.piped(True):
    print("read the corpus")
  print("{}")
  with cli.piped(False):
    print("told")
  said = capsys.readouterr()
  assert (said.out, said.err) == ("{}\ntold\n", "read the corpus\n")
