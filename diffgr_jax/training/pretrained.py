"""A model's checkpoint: where training starts from, and what `convert` writes and reads.

    FOLDER/params/      Orbax, a plain nested dict of arrays
    FOLDER/model.json   the ModelSpec: family, TransformerConfig, block size, special tokens; written last
    FOLDER/hf/          what came with the weights: config.json, tokenizer, headers, tensors that the model does not use

`load_pretrained` takes either such a folder or a Hugging Face folder.
"""

import dataclasses
import json
from pathlib import Path
import shutil

import jax
from jax.sharding import SingleDeviceSharding
import orbax.checkpoint as ocp

from diffgr_jax.models.hf import ModelSpec
from diffgr_jax.models.hf_weights import (
  EXTRA_FILE,
  flatten,
  keep_hf_files,
  load_hf,
  new_folder,
  read_folder,
  save_hf,
  unflatten,
)
from diffgr_jax.models.tensor_file import read_header
from diffgr_jax.models.transformer import Params, abstract_params

MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"
HF_FOLDER = "hf"
_FORMAT = 1


def save_checkpoint(folder: str | Path, spec: ModelSpec, params: Params, *, origin: str | Path | None = None) -> None:
  """Writes a checkpoint of ours: params/, model.json and, copied from `origin` where given, hf/.

  `model.json` comes last: a folder without it was not finished.

  Raises:
    ValueError: the folder holds something already.
  """
  folder = new_folder(folder)
  if origin is not None:
    shutil.copytree(origin, folder / HF_FOLDER)
  _save_params(folder, params)
  _save_spec(folder, spec)


def _save_params(folder: Path, params: Params) -> None:
  limit = _concurrent_gb(params)
  handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, save_device_host_concurrent_gb=limit)
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save((folder / PARAMS_FOLDER).absolute(), args=ocp.args.PyTreeSave(params))


def _concurrent_gb(tree: Params) -> int:
  """How much Orbax may copy at a time: it must hold the largest array, and by default it may hold a second of all."""
  return max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) // 10**9 + 1


def _save_spec(folder: Path, spec: ModelSpec) -> None:
  (folder / MODEL_FILE).write_text(json.dumps({"format": _FORMAT, **spec.to_dict()}, indent=2) + "\n")


def is_checkpoint(folder: str | Path) -> bool:
  return (Path(folder) / MODEL_FILE).exists()


def read_spec(folder: str | Path) -> ModelSpec:
  """What either kind of folder says about its model; no weight is read.

  Raises:
    FileNotFoundError: no such folder, or nothing in it that names a model.
    ValueError: a format that this version does not read.
  """
  folder = Path(folder)
  if not is_checkpoint(folder):
    return read_folder(folder)[0]
  values = json.loads((folder / MODEL_FILE).read_text())
  if (version := values.pop("format")) != _FORMAT:
    raise ValueError(f"{folder / MODEL_FILE}: has format {version}; this version reads {_FORMAT}")
  return ModelSpec.from_dict(values)


def load_checkpoint(folder: str | Path, *, shardings: Params | None = None) -> tuple[ModelSpec, Params]:
  """Reads a checkpoint of ours into its target sharding (None: everything on the first device).

  Raises:
    FileNotFoundError: no finished checkpoint.
    ValueError: a format that this version does not read.
  """
  folder = Path(folder)
  if not is_checkpoint(folder):
    raise FileNotFoundError(
      f"{folder}: has no {MODEL_FILE}, so it is no finished checkpoint (python -m diffgr_jax.convert)"
    )
  spec = read_spec(folder)
  everywhere = SingleDeviceSharding(jax.local_devices()[0])
  places = dict(flatten(shardings)) if shardings is not None else {}
  target = {
    path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=places.get(path, everywhere))
    for path, leaf in flatten(abstract_params(spec.config))
  }
  handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=_concurrent_gb(target))
  with ocp.Checkpointer(handler) as checkpointer:
    path = (folder / PARAMS_FOLDER).absolute()
    params = checkpointer.restore(path, args=ocp.args.StandardRestore(unflatten(target)))
  return spec, params


def load_pretrained(
  folder: str | Path, *, shardings: Params | None = None, param_dtype: str | None = None
) -> tuple[ModelSpec, Params]:
  """Either kind of folder: a checkpoint of ours or a Hugging Face folder. See `load_hf` and `load_checkpoint`."""
  if not is_checkpoint(folder):
    return load_hf(folder, shardings=shardings, param_dtype=param_dtype)
  spec, params = load_checkpoint(folder, shardings=shardings)
  if param_dtype is not None and param_dtype != spec.config.param_dtype:
    params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    config = dataclasses.replace(spec.config, param_dtype=param_dtype, compute_dtype=param_dtype)
    spec = dataclasses.replace(spec, config=config)
  return spec, params


# --- the two conversions ---


def convert_from_hf(source: str | Path, target: str | Path, *, shardings: Params | None = None) -> ModelSpec:
  """HF folder in, checkpoint of ours out."""
  source, target = Path(source), Path(target)
  spec, stored = read_folder(source)
  new_folder(target)
  keep_hf_files(source, target / HF_FOLDER, spec, stored)
  _, params = load_hf(source, shardings=shardings)
  _save_params(target, params)
  _save_spec(target, spec)
  return spec


def set_aside(folder: str | Path) -> list[str]:
  """Names of the tensors that came with the weights and that the model does not use."""
  path = Path(folder) / HF_FOLDER / EXTRA_FILE
  return sorted(read_header(path)) if path.exists() else []


def convert_to_hf(source: str | Path, target: str | Path, *, shardings: Params | None = None) -> ModelSpec:
  """Checkpoint of ours in, HF folder out."""
  spec, params = load_checkpoint(source, shardings=shardings)
  save_hf(target, spec, params, origin=Path(source) / HF_FOLDER)
  return spec
