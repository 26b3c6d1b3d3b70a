"""The package: its extras, what a wheel holds, and what importing its core asks for."""

from pathlib import Path
import subprocess
import sys
import tomllib
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[1]


def requirements(name):
  lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
  return [line for line in lines if line and not line.startswith("-r")]


def test_the_extras_are_there_and_dev_is_the_file():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  extras = project["optional-dependencies"]
  assert {"tpu", "cuda", "pretrained", "colab", "dev"} <= set(extras)
  assert sorted(extras["dev"]) == sorted(requirements("requirements-dev.txt"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  out = tmp_path_factory.mktemp("wheel")
  source = out / "source"
  tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
  for name in filter(lambda name: (ROOT / name).is_file(), tracked.split("\0")):
    if name.startswith(("diffgr_jax/", "configs/", "colabs/models/")) or "/" not in name:
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((ROOT / name).read_bytes())
  command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
  subprocess.run(command, check=True)
  return next(out.glob("diffgr_jax-*.whl"))


def test_a_wheel_takes_one_top_level_name_and_brings_configs_and_types(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  assert {name.split("/")[0].split("-")[0] for name in names} == {"diffgr_jax"}
  assert {"diffgr_jax/py.typed", "diffgr_jax/viz/live.py", "diffgr_jax/configs/docid/folder.py"} <= set(names)
  own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "diffgr_jax").rglob("*.py")}
  assert own <= set(names)
  models = {path.relative_to(ROOT).as_posix() for path in (ROOT / "colabs" / "models").glob("*/*") if path.is_file()}
  assert {f"diffgr_jax/{name}" for name in models} <= set(names)
  assert wheel.stat().st_size < 8e6


def test_an_installed_package_finds_its_configs_and_models(wheel, tmp_path):
  """Unpacked where nothing else of the repository is."""
  zipfile.ZipFile(wheel).extractall(tmp_path)
  code = (
    "import diffgr_jax as dg; print(dg.__file__);"
    "print(dg.config('docid/folder.py:path=D,steps=7').steps, dg.config('rerank/sft.py:start=W,pool=50').list_pool);"
    "print(dg.load(dg.shipped('student')).run.decoder)"
  )
  run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
  assert run.stdout.splitlines() == [str(tmp_path / "diffgr_jax" / "__init__.py"), "7 50", "block"]


def test_core_code_imports_jax_flax_optax_and_numpy_only():
  core = "models.transformer decoding.canvas decoding.block stages.docid stages.cft stages.rl training.state"
  heavy = {"grain", "tensorflow_datasets", "orbax", "tokenizers", "sentencepiece", "matplotlib"}
  imports = "; ".join(f"import diffgr_jax.{name}" for name in core.split())
  code = f"{imports}; import sys; print(sorted({heavy} & set(sys.modules)))"
  run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert run.stdout.strip() == "[]"
