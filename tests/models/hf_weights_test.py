"""Loading, refusing and writing weights. The golden files and the safetensors library are the reference."""

import dataclasses
import json
from pathlib import Path
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from diffgr_jax.models.embeddings import grow_embeddings
from diffgr_jax.models.hf_weights import flatten, keep_hf_files, load_hf, read_folder, save_hf, unflatten
from diffgr_jax.models.transformer import abstract_params, logical_axes
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, tree_shardings

GOLDEN = Path(__file__).parents[1] / "golden"


def rewritten(name, tmp_path, change, **config):
  """A copy of a golden folder whose tensors went through `change` (in place) and whose config has other values."""
  folder = tmp_path / name
  shutil.copytree(GOLDEN / name, folder)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  values = json.loads((folder / "config.json").read_text()) | config
  (folder / "config.json").write_text(json.dumps(values))
  return folder


def test_tensors_land_where_the_names_say():
  _, params = load_hf(GOLDEN / "qwen2")
  stored = safetensors.numpy.load_file(GOLDEN / "qwen2" / "model.safetensors")
  for layer in range(3):
    stem = f"model.layers.{layer}."
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
      np.testing.assert_array_equal(attention[ours]["kernel"][layer], stored[f"{stem}self_attn.{theirs}_proj.weight"].T)
      np.testing.assert_array_equal(attention[ours]["bias"][layer], stored[f"{stem}self_attn.{theirs}_proj.bias"])
    np.testing.assert_array_equal(mlp["down"]["kernel"][layer], stored[f"{stem}mlp.down_proj.weight"].T)
  np.testing.assert_array_equal(params["unembed"]["embedding"], stored["lm_head.weight"])


def test_the_dtype_is_that_of_the_tensors_and_can_be_chosen():
  spec, params = load_hf(GOLDEN / "qwen3_bf16")
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"} == {spec.config.param_dtype}
  wide_spec, wide = load_hf(GOLDEN / "qwen3_bf16", param_dtype="float32")
  assert wide_spec.config.param_dtype == "float32"
  for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(wide), strict=True):
    np.testing.assert_array_equal(np.asarray(one).astype(np.float32), other)


def test_shards_hold_the_same_numbers():
  spec, whole = load_hf(GOLDEN / "llada_sharded_padvocab")
  mesh = make_mesh({"fsdp": 2, "tensor": 4})
  shardings = tree_shardings(mesh, abstract_params(spec.config), logical_axes(spec.config), TRAIN_RULES)
  _, sharded = load_hf(GOLDEN / "llada_sharded_padvocab", shardings=shardings)
  for (path, one), (_, other) in zip(flatten(whole), flatten(sharded), strict=True):
    np.testing.assert_array_equal(one, other, err_msg=path)
  kernel = sharded["blocks"]["mlp"]["up"]["kernel"]
  assert kernel.sharding == shardings["blocks"]["mlp"]["up"]["kernel"]
  assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32, 24)}


def test_flatten_and_unflatten_are_inverse():
  tree = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}
  assert list(flatten(tree)) == [("a", 3), ("b.x.z", 2), ("b.y", 1)]
  assert unflatten(dict(flatten(tree))) == tree


# --- refused ---


def renamed(old, new):
  return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
  "name, change, config, message",
  [
    ("qwen3", lambda t: t.pop("model.norm.weight"), {}, r"tensor model.norm.weight \[64\] of a qwen3 model is missing"),
    (
      "qwen3",
      renamed("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.w3.weight"),
      {},
      r"model.layers.1.mlp.up_proj.weight \[160, 64\] .* is missing; found model.layers.1.mlp.w3.weight \[160, 64\]",
    ),
    ("qwen3", lambda t: None, {"num_hidden_layers": 2}, r"unexpected tensor model.layers.2.*2 layers without it"),
    ("qwen3", lambda t: None, {"num_hidden_layers": 4}, r"tensor model.layers.3.* is missing"),
    ("qwen3", lambda t: None, {"intermediate_size": 192}, r"should be \[64, 192\] by config.json, but is \[64, 160\]"),
    ("qwen3", lambda t: None, {"vocab_size": 128}, r"embed_tokens.weight should be \[128, 64\] .* but is \[120, 64\]"),
    ("qwen3", lambda t: None, {"tie_word_embeddings": True}, r"ties lm_head.weight to model.embed_tokens.weight, but"),
    ("qwen3", lambda t: t.update({"model.norm.bias": np.zeros(64)}), {}, r"tensor model.norm.bias is float64"),
    ("llada", lambda t: t.update(x=np.zeros(3, np.float32)), {}, r"unexpected tensor x \[3\]"),
    (
      "qwen3",
      lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.float16)}),
      {},
      r"tensor model.norm.weight is float16; weights may be float32 or bfloat16",
    ),
    (
      "bert_minilm",
      lambda t: None,
      {"architectures": ["BertForMaskedLM"]},
      r"tensor cls.predictions.bias .* is missing",
    ),
    ("bert_mlm", lambda t: None, {"architectures": ["BertModel"]}, r"unexpected tensor cls.predictions"),
  ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(tmp_path, name, change, config, message):
  folder = rewritten(name, tmp_path, change, **config)
  with pytest.raises(ValueError, match=message) as error:
    read_folder(folder)
  assert "\n" not in str(error.value)


# --- variants ---


def equal_trees(one, other):
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, other)))


def test_bert_names_with_a_prefix_and_from_the_first_files(tmp_path):
  def old(tensors):
    for name in list(tensors):
      new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
      tensors[f"bert.{new}"] = tensors.pop(name)

  spec, params = load_hf(rewritten("bert_minilm", tmp_path, old))
  assert (spec.key_prefix, spec.old_norm_names) == ("bert.", True)
  assert equal_trees(params, load_hf(GOLDEN / "bert_minilm")[1])


def test_a_tied_head_that_is_stored_too_must_be_the_embedding(tmp_path):
  def add_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  _, params = load_hf(rewritten("qwen3_tied", tmp_path, add_head))
  assert "unembed" not in params


def test_mixed_precision_becomes_float32(tmp_path):
  def widen(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)

  spec, params = load_hf(rewritten("qwen3_bf16", tmp_path, widen))
  assert spec.config.param_dtype == "float32"
  assert equal_trees(params, load_hf(GOLDEN / "qwen3_bf16", param_dtype="float32")[1])


# --- written ---


def kept(folder, tmp_path):
  spec, stored = read_folder(folder)
  keep_hf_files(folder, tmp_path / "kept", spec, stored)
  return tmp_path / "kept"


@pytest.mark.parametrize("case", ["mixed", "tied head", "bert"])
def test_unusual_folders_come_back_bit_for_bit(tmp_path, case):
  def mixed(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)

  def tied_head(tensors):
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

  def decoder(tensors):
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].copy()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].copy()
    tensors["bert.pooler.dense.bias"] = np.arange(48, dtype=np.float32)

  name, change = {
    "mixed": ("qwen3_bf16", mixed),
    "tied head": ("qwen3_tied", tied_head),
    "bert": ("bert_mlm", decoder),
  }[case]
  folder = rewritten(name, tmp_path, change)
  spec, params = load_hf(folder)
  save_hf(tmp_path / "back", spec, params, origin=kept(folder, tmp_path))
  assert (tmp_path / "back" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_grown_model_is_written_with_its_rows(tmp_path):
  spec, params = load_hf(GOLDEN / "qwen3")
  grown, config = grow_embeddings(params, spec.config, 40)
  grown_spec = dataclasses.replace(spec, config=config, vocab_size=160)
  save_hf(tmp_path / "back", grown_spec, grown, origin=kept(GOLDEN / "qwen3", tmp_path))
  read_spec, read = load_hf(tmp_path / "back")
  assert read_spec.config == config
  assert config.vocab_size == 256
  assert equal_trees(read, grown)


def test_another_precision_is_written_as_such(tmp_path):
  spec, params = load_hf(GOLDEN / "qwen3_bf16", param_dtype="float32")
  save_hf(tmp_path / "back", spec, params, origin=kept(GOLDEN / "qwen3_bf16", tmp_path))
  tensors = safetensors.numpy.load_file(tmp_path / "back" / "model.safetensors")
  original = safetensors.numpy.load_file(GOLDEN / "qwen3_bf16" / "model.safetensors")
  assert {tensor.dtype.name for tensor in tensors.values()} == {"float32"}
  assert all((tensors[name] == original[name].astype(np.float32)).all() for name in original)
  assert original["model.norm.weight"].dtype == ml_dtypes.bfloat16
  assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "float32"


def test_new_files_are_split_at_a_size_and_indexed(tmp_path, monkeypatch):
  monkeypatch.setattr("diffgr_jax.models.hf_weights._MAX_FILE", 200_000)
  spec, params = load_hf(GOLDEN / "qwen3_bf16", param_dtype="float32")
  save_hf(tmp_path / "back", spec, params, origin=kept(GOLDEN / "qwen3_bf16", tmp_path))
  assert not (tmp_path / "back" / "model.safetensors").exists()
  assert len(list((tmp_path / "back").glob("model-*.safetensors"))) == 2
  assert equal_trees(load_hf(tmp_path / "back")[1], params)


def test_another_model_is_not_written_under_a_kept_config(tmp_path):
  spec, params = load_hf(GOLDEN / "qwen3_tied")
  origin = kept(GOLDEN / "qwen3", tmp_path)
  with pytest.raises(ValueError, match=r"model.d_model is 48, but the kept config.json says 64"):
    save_hf(tmp_path / "back", spec, params, origin=origin)


def test_nothing_is_overwritten(tmp_path):
  spec, params = load_hf(GOLDEN / "qwen3_tied")
  origin = kept(GOLDEN / "qwen3_tied", tmp_path)
  (tmp_path / "back").mkdir()
  (tmp_path / "back" / "notes.txt").write_text("mine")
  with pytest.raises(ValueError, match="is not empty; give a new folder"):
    save_hf(tmp_path / "back", spec, params, origin=origin)
