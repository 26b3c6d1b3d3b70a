"""The command that makes the notebooks' models, at a tiny size."""

from pathlib import Path
import subprocess
import sys

import diffgr_jax as dg
from tests.training.tiny_rerank import SHOP

ROOT = Path(__file__).resolve().parents[2]


def test_both_models_are_made_and_answer(tmp_path):
  command = [sys.executable, str(ROOT / "colabs" / "make_models.py"), f"--out={tmp_path}/models"]
  command += [f"--workdir={tmp_path}/runs", "--size=tiny", "--part=0.001", f"--path={SHOP}"]
  done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert done.returncode == 0, done.stderr[-2000:]
  for name in ("teacher", "student"):
    model = dg.load(tmp_path / "models" / name)
    assert model.rerank(model.lists("test")[:1])[0].verdict
  again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
  assert again.returncode == 1
  assert "is there already" in again.stderr


def test_the_models_of_the_repository_are_small_and_load():
  for name, decoder in (("teacher", "autoregressive"), ("student", "block")):
    folder = ROOT / "colabs" / "models" / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6
    assert dg.load(folder).run.decoder == decoder
