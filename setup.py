"""What pyproject.toml cannot say: in a wheel, configs/ and colabs/models/ lie inside the package, so that no top-level
name is taken."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = {
  ".".join(("diffgr_jax", *folder.parts)): folder.as_posix()
  for folder in sorted({file.parent for file in Path("configs").rglob("*.py")})
}

MODELS = {"diffgr_jax.colabs.models": "colabs/models"}

setup(packages=[*find_packages(include=["diffgr_jax*"]), *CONFIGS, *MODELS], package_dir=CONFIGS | MODELS)
