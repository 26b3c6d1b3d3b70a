"""Every recorded output of the reference implementations, and proof that the comparison can fail."""

from collections import Counter
import json
from pathlib import Path
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffgr_jax.evaluation.fixture import MISS, NOT_RUN, OK, Check, fixture_folders
from diffgr_jax.evaluation.parity import check_folder

GOLDEN = Path(__file__).parents[1] / "golden"
# 76 in all; none may be left out.
DECODES = {
  "llada": 10, "llada_sharded_padvocab": 2, "dream": 14, "sdar": 33, "fast_dllm_v2": 9,
  "qwen2": 2, "qwen3": 2, "qwen3_bf16": 2, "qwen3_tied": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_compilation():
  """These tests compile many tiny programs: leave out the optimisations, which take most of the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("folder", fixture_folders(GOLDEN), ids=lambda path: path.name)
def test_agrees_with_the_reference(folder):
  results = list(check_folder(folder))
  assert [result.line() for result in results if result.status == MISS] == []
  cases = json.loads((folder / "cases.json").read_text())
  passed = {result.name.split(".mask")[0] for result in results if result.status == OK}
  decodes = [case["name"] for case in cases if case["kind"] == "decode"]
  assert len(passed & set(decodes)) == len(decodes) == DECODES.get(folder.name, 0)
  not_run = {result.name for result in results if result.status == NOT_RUN}
  assert all(name.endswith("pooler_output") for name in not_run)
  forwards = [case["name"] for case in cases if case["kind"] != "decode"]
  assert all(any(name.startswith(forward) for name in passed) for forward in forwards)


def copied(name, tmp_path):
  shutil.copytree(GOLDEN / name, tmp_path / name)
  return tmp_path / name


def statuses(folder):
  return Counter(result.status for result in check_folder(folder))


def test_one_wrong_weight_is_a_miss(tmp_path):
  folder = copied("a2d_qwen3", tmp_path)
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  tensors["model.layers.1.mlp.down_proj.weight"][3, 5] += 0.05
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  assert statuses(folder)[MISS] == 3


def test_a_mask_that_our_pattern_does_not_make_is_a_miss(tmp_path):
  folder = copied("a2d_qwen3", tmp_path)
  inputs = dict(np.load(folder / "inputs.npz"))
  inputs["mask_b4"][2, 9] = True
  np.savez(folder / "inputs.npz", **inputs)
  results = list(check_folder(folder))
  assert {(result.name, result.difference) for result in results if result.status == MISS} == {("logits_b4.mask", 2)}


def test_another_token_and_nan_are_misses(tmp_path):
  folder = copied("qwen3_tied", tmp_path)
  expected = dict(np.load(folder / "expected.npz"))
  expected["gen"][1, -1] += 1
  expected["padded_logits"][0, -1, 0] = np.nan
  np.savez(folder / "expected.npz", **expected)
  results = list(check_folder(folder))
  assert {result.name for result in results if result.status == MISS} == {"gen", "padded_logits"}


def test_a_case_of_an_unknown_kind_or_input_is_refused(tmp_path):
  folder = copied("a2d_qwen3", tmp_path)
  cases = json.loads((folder / "cases.json").read_text())
  (folder / "cases.json").write_text(json.dumps([{**cases[0], "kind": "speech"}]))
  with pytest.raises(ValueError, match=r"case logits has kind 'speech'"):
    list(check_folder(folder))
  (folder / "cases.json").write_text(json.dumps([{**cases[0], "inputs": {"pixels": "input_ids"}}]))
  with pytest.raises(ValueError, match=r"case logits of a2d_qwen3 has the input 'pixels'"):
    list(check_folder(folder))


def test_a_folder_without_recordings_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds a cases.json"):
    fixture_folders(tmp_path)


def test_a_line_names_folder_check_status_and_difference():
  line = Check("qwen3", "logits", OK, 1.2e-5, "28 of 28 rows").line()
  assert line.split() == ["qwen3", "logits", "ok", "1.2e-05", "28", "of", "28", "rows"]
