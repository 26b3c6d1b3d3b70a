"""A trained run made small enough to be shipped: its config, vocabulary and codes, and weights in bfloat16.

    ship("W/cft", "models/reranker")            about 2 MB where the model has a million parameters
    diffgr_jax.load("models/reranker")          as it loads a workdir

What a checkpoint has beside them, the optimizer and the position in the data, stays: a shipped run cannot go on.
"""

from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
from safetensors.flax import load_file, save_file

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, abstract_params
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_run import open_rerank, task_of
from diffgr_jax.training.run import open_run

WEIGHTS = "weights.safetensors"
_KEPT = ("config.json", "vocab", "index")  # of a workdir


def ship(workdir: str | Path, out: str | Path, *, step: int | None = None) -> Path:
  """Writes a run's newest checkpoint, or that of `step`, to the folder `out`, which must not exist yet.

  Raises:
    FileExistsError: `out` is there.
    FileNotFoundError: no run, or no such checkpoint.
  """
  workdir, out = Path(workdir), Path(out)
  if out.exists():
    raise FileExistsError(f"{out} is there already: name another folder, or remove it")
  run = open_rerank(workdir) if task_of(workdir) == "rerank" else open_run(workdir)
  params, _ = restore_params(workdir, run.model, step)
  out.mkdir(parents=True)
  for name in _KEPT:
    if (workdir / name).is_dir():
      shutil.copytree(workdir / name, out / name)
    elif (workdir / name).exists():
      shutil.copy(workdir / name, out / name)
  save_file({name: jnp.asarray(leaf, jnp.bfloat16) for name, leaf in _named(params).items()}, out / WEIGHTS)
  return out


def is_shipped(folder: str | Path) -> bool:
  return (Path(folder) / WEIGHTS).is_file()


def shipped_params(folder: str | Path, model: TransformerConfig) -> Params:
  """The weights of a shipped run, in the dtypes of its model."""
  stored = load_file(Path(folder) / WEIGHTS)
  shapes = abstract_params(model)
  leaves = [stored[name].astype(shape.dtype) for name, shape in _named(shapes).items()]
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _named(tree: Params) -> dict[str, jax.Array]:
  named = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}
