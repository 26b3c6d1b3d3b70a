"""What pyproject.toml cannot say: in a wheel, configs/ lies inside the package, so that no top-level name is taken."""

from pathlib import Path

from setuptools import find_packages, setup

CONFIGS = {
  ".".join(("diffgr_jax", *folder.parts)): folder.as_posix()
  for folder in sorted({file.parent for file in Path("configs").rglob("*.py")})
}

setup(packages=[*find_packages(include=["diffgr_jax*"]), *CONFIGS], package_dir=CONFIGS)
