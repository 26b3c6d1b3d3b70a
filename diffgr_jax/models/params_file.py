"""A model's parameters as one safetensors file: leaves by their path, and whatever else a reader has to know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import safe_open
from safetensors.flax import load_file, save_file

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, abstract_params


def write_params(file: Path, params: Params, dtype: str | None = None, **notes: Any) -> None:
  """Writes parameters, in `dtype` where it is not their own, whole or not at all; notes are kept as text."""
  leaves = {name: jnp.asarray(leaf, dtype) for name, leaf in _named(params).items()}
  whole = file.with_name(f".{file.name}.part")
  save_file(leaves, whole, metadata={name: str(note) for name, note in notes.items()})
  whole.replace(file)


def read_params(file: Path, model: TransformerConfig) -> tuple[Params, Mapping[str, str]]:
  """The parameters of such a file, in the dtypes of their model, and the notes."""
  with safe_open(file, framework="numpy") as opened:
    notes = opened.metadata() or {}
  stored, shapes = load_file(file), abstract_params(model)
  leaves = [stored[name].astype(shape.dtype) for name, shape in _named(shapes).items()]
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves), notes


def _named(tree: Params) -> dict[str, Any]:
  named = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in named}
