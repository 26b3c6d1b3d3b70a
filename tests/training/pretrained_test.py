"""Checkpoints of ours: the round trip of every golden folder, and restoring into a mesh."""

import json
from pathlib import Path
import shutil

import jax
import numpy as np
import pytest

from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import abstract_params, logical_axes
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, tree_shardings
from diffgr_jax.training.pretrained import (
  convert_from_hf,
  convert_to_hf,
  load_checkpoint,
  load_pretrained,
  save_checkpoint,
)

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def equal_trees(one, other):
  same = lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
  return all(jax.tree.leaves(jax.tree.map(same, one, other)))


@pytest.mark.parametrize("name", FOLDERS)
def test_there_and_back_again_byte_for_byte(tmp_path, name):
  shutil.copytree(GOLDEN / name, tmp_path / "source")
  (tmp_path / "source" / "tokenizer.json").write_text('{"made": "up"}')
  spec = convert_from_hf(tmp_path / "source", tmp_path / "ours")
  assert convert_to_hf(tmp_path / "ours", tmp_path / "back") == spec
  names = [path.name for path in (tmp_path / "source").glob("*.safetensors*")] + ["config.json", "tokenizer.json"]
  assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(names)
  for file in names:
    assert (tmp_path / "back" / file).read_bytes() == (tmp_path / "source" / file).read_bytes(), file


def test_a_checkpoint_restores_into_another_layout(tmp_path):
  spec, params = load_hf(GOLDEN / "llada_sharded_padvocab")
  save_checkpoint(tmp_path / "ours", spec, params)
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  shardings = tree_shardings(mesh, abstract_params(spec.config), logical_axes(spec.config), TRAIN_RULES)
  read_spec, read = load_checkpoint(tmp_path / "ours", shardings=shardings)
  assert read_spec == spec
  assert equal_trees(read, params)
  kernel = read["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.sharding == shardings["blocks"]["mlp"]["up"]["kernel"]


def test_either_kind_of_folder_starts_a_model(tmp_path):
  convert_from_hf(GOLDEN / "qwen3_bf16", tmp_path / "ours")
  for dtype in (None, "float32"):
    ours, theirs = (load_pretrained(folder, param_dtype=dtype) for folder in (tmp_path / "ours", GOLDEN / "qwen3_bf16"))
    assert ours[0] == theirs[0]
    assert equal_trees(ours[1], theirs[1])


def test_an_unfinished_or_foreign_checkpoint_is_refused(tmp_path):
  spec, params = load_hf(GOLDEN / "qwen3_bf16")
  save_checkpoint(tmp_path / "ours", spec, params)
  model = tmp_path / "ours" / "model.json"
  model.write_text(json.dumps(json.loads(model.read_text()) | {"format": 99}))
  with pytest.raises(ValueError, match="has format 99; this version reads 1"):
    load_checkpoint(tmp_path / "ours")
  model.unlink()
  with pytest.raises(FileNotFoundError, match=r"has no model.json, so it is no finished checkpoint"):
    load_checkpoint(tmp_path / "ours")
  with pytest.raises(ValueError, match="is not empty"):
    save_checkpoint(tmp_path / "ours", spec, params)
