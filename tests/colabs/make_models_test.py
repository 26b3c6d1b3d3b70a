"""The models of the notebooks, as the repository has them."""

from pathlib import Path

import diffgr_jax as dg
from diffgr_jax.training.jobs import check_config

ROOT = Path(__file__).resolve().parents[2]


def test_the_models_of_the_repository_are_small_and_load():
  for name, decoder in (("teacher", "autoregressive"), ("student", "block")):
    folder = dg.shipped(name)
    assert folder == ROOT / "colabs" / "models" / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 5e6
    assert dg.load(folder).run.decoder == decoder
    check_config(dg.load(folder).run.config)
