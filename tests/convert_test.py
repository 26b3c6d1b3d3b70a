"""The command: exit codes and messages."""

from pathlib import Path
import shutil
import sys

from absl import flags
from absl.testing import flagsaver
import pytest
import safetensors.numpy

from diffgr_jax import cli, convert

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def command(monkeypatch):
  """Runs the command with these arguments and returns its exit code."""

  def run(*arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments)])
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as exit_:
      cli.run(convert.main)
    return exit_.value.code or 0

  return run


def test_there_and_back(command, tmp_path, capsys):
  assert command(f"--from_hf={GOLDEN / 'sdar'}", f"--out={tmp_path / 'ours'}") == 0
  assert "sdar, 145,184 parameters in float32, 3 layers, block_causal, same_position" in capsys.readouterr().out
  assert command(f"--to_hf={tmp_path / 'ours'}", f"--out={tmp_path / 'back'}") == 0
  name = "model.safetensors"
  assert (tmp_path / "back" / name).read_bytes() == (GOLDEN / "sdar" / name).read_bytes()


def test_what_the_model_does_not_use_is_listed(command, tmp_path, capsys):
  assert command(f"--from_hf={GOLDEN / 'bert_minilm'}", f"--out={tmp_path / 'ours'}") == 0
  listed = capsys.readouterr().out.splitlines()[1]
  assert listed.endswith("embeddings.position_ids, pooler.dense.bias, pooler.dense.weight")


def test_check_passes_and_then_fails_on_a_corrupted_weight(command, tmp_path, capsys):
  folder = tmp_path / "a2d_qwen3"
  shutil.copytree(GOLDEN / "a2d_qwen3", folder)
  assert command(f"--check={folder}") == 0
  assert "4 ok (largest difference" in capsys.readouterr().out
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors["model.layers.0.self_attn.q_norm.weight"][0] *= 1.1
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  assert command(f"--check={folder}") == 1
  out = capsys.readouterr().out
  assert "MISS" in out
  assert "3 missed" in out


def test_what_is_not_run_is_said_and_is_not_a_pass(command, capsys):
  assert command(f"--check={GOLDEN / 'bert_minilm'}") == 0
  out = capsys.readouterr().out
  assert "encode.pooler_output                         not run" in out
  assert "5 ok (largest difference" in out
  assert "1 not run, 0 missed" in out


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "give exactly one of --from_hf, --to_hf and --check, not none"),
    (("--from_hf=a", "--to_hf=b"), "not from_hf and to_hf"),
    (("--from_hf=a",), "--from_hf needs --out"),
    (("--from_hf=a", "--out=b"), "a: has no config.json"),
    (("--to_hf=a", "--out=b"), "a: has no model.json"),
  ],
)
def test_errors_are_one_line(command, tmp_path, monkeypatch, capsys, arguments, message):
  monkeypatch.chdir(tmp_path)
  assert command(*arguments) == 1
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
