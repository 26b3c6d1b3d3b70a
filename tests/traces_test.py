"""Re-ranking commands as a user types them: traces from a teacher, evaluation; errors that are one line."""

import json

import pytest

from tests.main_test import run


def test_a_teacher_writes_traces_and_goes_on_where_it_stopped(rerank_runs, tmp_path):
  folder, _ = rerank_runs
  flags = [f"--workdir={folder / 'sft'}", f"--out={tmp_path}", "--lists=10", "--tries=2", "--batch=4"]
  done = run("traces", *flags)
  assert done.returncode == 0, done.stderr
  assert "traces of 10 lists: " in done.stdout
  file = tmp_path / "traces-00000-of-00001.jsonl"
  rows = file.read_text()
  assert len(rows.splitlines()) == 20  # untrained: nothing is kept, so every list is tried twice
  assert all("dropped" in json.loads(row) for row in rows.splitlines())
  file.write_text("".join(f"{row}\n" for row in rows.splitlines()[:9]))
  again = run("traces", *flags)
  assert again.returncode == 0, again.stderr
  assert file.read_text() == rows


@pytest.mark.parametrize(
  "command, flags, message",
  [
    ("traces", ["--workdir={0}/convert", "--out={1}"], "is a run of the stage 'convert': name its teacher"),
    ("evaluate", ["--workdir={0}/sft", "--queries=x.jsonl"], "--queries is not for a run of the task 'rerank'"),
    ("evaluate", ["--workdir={0}/sft", "--set=beam=3"], "--set beam=3: field=value with one of the fields decoder"),
    ("evaluate", ["--workdir={0}/sft", "--set=decoder=block"], "config.decoder 'block' needs a converted model"),
    ("decode", ["--workdir={0}/sft", "--query=x"], "holds a re-ranking run"),
  ],
)
def test_mistakes_are_one_line(rerank_runs, tmp_path, command, flags, message):
  done = run(command, *(flag.format(rerank_runs[0], tmp_path) for flag in flags))
  assert done.returncode == 1
  assert message in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
