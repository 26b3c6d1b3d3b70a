"""Weights between a Hugging Face folder and a pytree of sharded arrays.

    HF folder                                    on devices
    model.safetensors   --load_hf-->             params, a nested dict (the layers of a weight stacked)
    config.json         --------------------->   ModelSpec
    tokenizer.json ...  --keep_hf_files-->       a folder `origin`: files as they were, tensors set aside
                        <--save_hf--

Reading streams: every device shard is filled from its own slice of the memory-mapped files, so the host holds one
stacked tensor beside what the target holds. Writing goes one stacked tensor at a time into files of known size. What
came from Hugging Face goes back byte for byte (the headers of its files are kept); grown or retrained weights get
new headers.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import json
from pathlib import Path
import shutil
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding
import numpy as np

from diffgr_jax.models import tensor_file
from diffgr_jax.models.hf import CONFIG_FILE, ModelSpec, read_spec, updated_config_json
from diffgr_jax.models.hf_keys import aliases, is_extra, key_namer, stored_shape, to_stored, with_stored_names
from diffgr_jax.models.lora import merge, without_adapters
from diffgr_jax.models.tensor_file import StoredTensor
from diffgr_jax.models.transformer import Params, abstract_params

EXTRA_FILE = "extra.safetensors"
_KEPT_FILES = (
  "config.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.txt",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  "chat_template.jinja",
  "chat_template.json",
)
_NO_CONFIG_DIFFERENCE = ("vocab_size", "param_dtype", "compute_dtype", "remat", "pattern", "alignment")
_BLOCK = 256  # stored rows copied at a time
_MAX_FILE = 5 * 2**30  # bytes a new weight file, about


def flatten(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """("blocks.mlp.up.kernel", leaf) for every leaf of a nested dict, in sorted order."""
  for name in sorted(params):
    if isinstance(params[name], Mapping):
      yield from flatten(params[name], f"{prefix}{name}.")
    else:
      yield prefix + name, params[name]


def unflatten(leaves: Mapping[str, Any]) -> Params:
  """The nested dict of dotted paths."""
  tree: Params = {}
  for path, leaf in leaves.items():
    *parents, last = path.split(".")
    functools.reduce(lambda node, name: node.setdefault(name, {}), parents, tree)[last] = leaf
  return tree


# --- from Hugging Face ---


def read_folder(folder: Path) -> tuple[ModelSpec, dict[str, StoredTensor]]:
  """The spec of an HF folder and where its tensors lie; everything is checked, no weight is read.

  Raises:
    ValueError: a field or dtype that is not supported; a tensor that is missing, unexpected or of the wrong shape; each
      names the tensor, what was expected and what was found.
    FileNotFoundError: no config.json, or a weight file of the index is missing.
  """
  spec = read_spec(folder)
  stored = tensor_file.read_tensors(folder)
  spec = with_stored_names(spec, stored)
  expected = expected_shapes(spec)
  optional = aliases(spec)
  missing = [name for name in expected if name not in stored]
  unexpected = [name for name in stored if name not in expected and name not in optional and not is_extra(spec, name)]
  if missing:
    found = f"; found {_described(stored[unexpected[0]])} instead" if unexpected else f" ({len(stored)} tensors found)"
    raise ValueError(
      f"{folder}: tensor {missing[0]} {list(expected[missing[0]])} of a {spec.family} model is missing{found}"
    )
  if unexpected:
    raise ValueError(
      f"{stored[unexpected[0]].path}: unexpected tensor {_described(stored[unexpected[0]])}; config.json describes a"
      f" {spec.family} model of {spec.config.n_layers} layers without it"
    )
  for name, shape in expected.items():
    if stored[name].shape != shape:
      raise ValueError(
        f"{stored[name].path}: tensor {name} should be {list(shape)} by config.json, but is {list(stored[name].shape)}"
      )
  for name, original in optional.items():
    if name in stored and not _equal(stored[name], stored[original]):
      raise ValueError(
        f"{stored[name].path}: config.json ties {name} to {original}, but the two tensors differ; untie them there"
      )
  return spec, stored


def _described(tensor: StoredTensor) -> str:
  return f"{tensor.name} {list(tensor.shape)}"


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
  bits = lambda tensor: tensor.view().reshape(-1).view(np.uint8)
  return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(bits(one), bits(other))


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
  """Every tensor that an HF folder of this model must hold, with its shape there."""
  name, expected = key_namer(spec), {}
  for path, leaf in flatten(abstract_params(spec.config)):
    for layer in range(spec.config.n_layers if path.startswith("blocks.") else 1):
      expected[name(path, layer)] = stored_shape(path, leaf.shape)
  return expected


def extra_tensors(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> list[StoredTensor]:
  """Tensors that the model does not use and that are kept aside: buffers, BERT's pooler."""
  return [tensor for name, tensor in stored.items() if is_extra(spec, name)]


def load_hf(
  folder: str | Path, *, shardings: Params | None = None, param_dtype: str | None = None
) -> tuple[ModelSpec, Params]:
  """Reads a Hugging Face folder straight into its target sharding.

  Args:
    folder: holds config.json and model.safetensors (or an index of several files).
    shardings: a tree of shardings like the parameters (parallel/rules.py); None puts everything on the first device.
    param_dtype: dtype on the devices; None keeps that of the file.

  Returns:
    The model's spec, and its parameters as a nested dict.

  Raises:
    ValueError, FileNotFoundError: see `read_folder`.
  """
  spec, stored = read_folder(Path(folder))
  if param_dtype is not None:
    config = dataclasses.replace(spec.config, param_dtype=param_dtype, compute_dtype=param_dtype)
    spec = dataclasses.replace(spec, config=config)
  everywhere = SingleDeviceSharding(jax.local_devices()[0])
  places = dict(flatten(shardings)) if shardings is not None else {}
  name = key_namer(spec)
  leaves = {}
  for path, leaf in flatten(abstract_params(spec.config)):
    layers = [stored[name(path, i)] for i in range(leaf.shape[0] if path.startswith("blocks.") else 1)]
    read = functools.partial(_read_slice, path, layers, np.dtype(leaf.dtype))
    leaves[path] = jax.make_array_from_callback(leaf.shape, places.get(path, everywhere), read).block_until_ready()
  return spec, unflatten(leaves)


def _read_slice(path: str, layers: list[StoredTensor], dtype: np.dtype, index: tuple[slice, ...] | None) -> np.ndarray:
  """The part `index` of a parameter (None: all): only these layers, rows and columns are touched."""
  index, stacked = index or (slice(None),), path.startswith("blocks.")
  chosen, inside = (layers[index[0]], index[1:]) if stacked else (layers, index)
  part = lambda tensor: to_stored(path, tensor.view())[inside]
  out = np.empty((len(chosen), *part(chosen[0]).shape), dtype)
  for i, tensor in enumerate(chosen):
    _assign(out[i], part(tensor))
  return out if stacked else out[0]


def _assign(out: np.ndarray, values: np.ndarray) -> None:
  """out[...] = values; equal dtypes are copied as plain bits, which numpy does faster for bfloat16."""
  if out.dtype == values.dtype:
    bits = {2: np.uint16, 4: np.uint32}[out.dtype.itemsize]
    out, values = out.view(bits), values.view(bits)
  turned = values.ndim == 2 and values.strides[0] < values.strides[1]
  width = _BLOCK if turned else max(values.shape[-1], 1)
  for start in range(0, values.shape[-1], width):  # a transposition in blocks stays in the cache: three times faster
    out[..., start : start + width] = values[..., start : start + width]


# --- to Hugging Face ---


def save_hf(folder: str | Path, spec: ModelSpec, params: Params, *, origin: str | Path | None = None) -> None:
  """Writes an HF folder: safetensors, config.json, and the tokenizer's files.

  Args:
    folder: to be created; must not hold anything yet.
    spec: the model.
    params: its parameters, adapters among them are merged; on several hosts, this process must hold them all.
    origin: what `keep_hf_files` kept (the `hf` folder of a checkpoint): config.json, tokenizer, headers, extra tensors.

  Raises:
    ValueError: the folder is not empty, or the model is not what the kept config.json describes (grown embeddings and
      another precision are written into a new config.json; nothing else can differ).
    FileNotFoundError: no kept config.json.
  """
  params, spec = merge(spec.config, params), dataclasses.replace(spec, config=without_adapters(spec.config))
  folder, origin = new_folder(folder), Path(origin) if origin is not None else None
  if origin is None or not (origin / CONFIG_FILE).exists():
    raise FileNotFoundError(
      f"{origin}: has no {CONFIG_FILE}: a checkpoint that began as a Hugging Face folder keeps it"
    )
  original = read_spec(origin)
  _check_same_model(original, spec)
  for name in _KEPT_FILES:
    if (origin / name).exists():
      shutil.copyfile(origin / name, folder / name)
  extra = tensor_file.read_header(origin / EXTRA_FILE) if (origin / EXTRA_FILE).exists() else {}
  headers = _kept_headers(origin, folder)
  slots = {}
  for path, raw in headers.items():
    slots |= tensor_file.header_tensors(path, raw)
  if not _headers_fit(spec, slots):
    headers = _new_headers(folder, spec, extra)
    text = (origin / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text(updated_config_json(text, spec))
  elif (origin / tensor_file.INDEX_FILE).exists():
    shutil.copyfile(origin / tensor_file.INDEX_FILE, folder / tensor_file.INDEX_FILE)
  slots = tensor_file.create_files(headers)
  for name, tensor in extra.items():
    tensor_file.write_tensor(slots[name], tensor.view())
  _write_params(spec, params, slots)


def _check_same_model(original: ModelSpec, spec: ModelSpec) -> None:
  before, after = original.config.to_dict(), spec.config.to_dict()
  for field, value in before.items():
    if field not in _NO_CONFIG_DIFFERENCE and after[field] != value:
      raise ValueError(
        f"model.{field} is {after[field]!r}, but the kept {CONFIG_FILE} says {value!r}: it describes another model"
      )


def _kept_headers(origin: Path, folder: Path) -> dict[Path, bytes]:
  return {folder / path.stem: path.read_bytes() for path in sorted(origin.glob("*.safetensors.header"))}


def _headers_fit(spec: ModelSpec, slots: Mapping[str, StoredTensor]) -> bool:
  """Whether kept headers still describe this model: the same shapes, and tensors of the model's precision."""
  expected = expected_shapes(spec)
  if any(name not in slots or slots[name].shape != shape for name, shape in expected.items()):
    return False
  return with_stored_names(spec, slots).config.param_dtype == spec.config.param_dtype


def _new_headers(folder: Path, spec: ModelSpec, extra: Mapping[str, StoredTensor]) -> dict[Path, bytes]:
  """Headers of one file, or of several of about 5 GiB with an index, which is written too."""
  dtype = tensor_file.dtype_of(spec.config.param_dtype)
  entries = [(name, dtype, shape) for name, shape in sorted(expected_shapes(spec).items())]
  entries += [(name, tensor.dtype, tensor.shape) for name, tensor in extra.items()]
  groups, room = [[]], _MAX_FILE
  for entry in entries:
    size = int(np.prod(entry[2])) * entry[1].itemsize
    if size > room and groups[-1]:
      groups.append([])
      room = _MAX_FILE
    groups[-1].append(entry)
    room -= size
  if len(groups) == 1:
    return {folder / tensor_file.SINGLE_FILE: tensor_file.make_header(groups[0])}
  names = [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
  index = {
    "metadata": {"total_size": sum(int(np.prod(shape)) * dtype.itemsize for _, dtype, shape in entries)},
    "weight_map": {entry[0]: file for file, group in zip(names, groups, strict=True) for entry in group},
  }
  (folder / tensor_file.INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
  return {folder / file: tensor_file.make_header(group) for file, group in zip(names, groups, strict=True)}


def _write_params(spec: ModelSpec, params: Params, slots: Mapping[str, StoredTensor]) -> None:
  """Fetches one stacked tensor at a time and writes its layers where they belong; repeats of tied tensors too."""
  name, repeats = key_namer(spec), {}
  for copy, original in aliases(spec).items():
    if copy in slots:
      repeats[original] = copy
  for path, leaf in flatten(params):
    values = np.asarray(leaf)
    for layer, one in enumerate(values if path.startswith("blocks.") else [values]):
      stored = name(path, layer)
      for slot in [stored, *([repeats[stored]] if stored in repeats else [])]:
        tensor_file.write_tensor(slots[slot], to_stored(path, one).astype(slots[slot].dtype, copy=False))


def new_folder(folder: str | Path) -> Path:
  """Creates a folder.

  Raises:
    ValueError: it holds something already.
  """
  folder = Path(folder)
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder}: is not empty; give a new folder")
  folder.mkdir(parents=True, exist_ok=True)
  return folder


def keep_hf_files(source: Path, target: Path, spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
  """Keeps what the parameters do not hold, so that `save_hf` can give the folder back: see the module's text."""
  target.mkdir(parents=True, exist_ok=True)
  for name in (*_KEPT_FILES, tensor_file.INDEX_FILE):
    if (source / name).exists():
      shutil.copyfile(source / name, target / name)
  for path in tensor_file.weight_files(source):
    (target / f"{path.name}.header").write_bytes(tensor_file.read_raw_header(path))
  if extra := extra_tensors(spec, stored):
    tensor_file.write_file(target / EXTRA_FILE, [(tensor.name, tensor.view()) for tensor in extra])
