"""REPRODUCE.md: up to date, of records that exist; the comparison says what is off."""

import dataclasses
import importlib.util
import json
import shlex

import pytest

from benchmarks import reproduce
import diffgr_jax as dg
from diffgr_jax.training.gradient_noise import FIELDS as NOISE_FIELDS
from diffgr_jax.training.rerank_run import DECODING_FIELDS as RERANK_FIELDS
from diffgr_jax.training.run import DECODING_FIELDS as DOCID_FIELDS


def test_the_page_is_up_to_date():
  """Otherwise: python -m benchmarks.reproduce --page"""
  assert (reproduce.ROOT / "REPRODUCE.md").read_text() == reproduce.page()


@pytest.mark.parametrize("name", reproduce.RECIPES)
def test_recipes_compare_figures_that_are_recorded_and_shown(name):
  recipe = reproduce.RECIPES[name]
  if recipe.figures:
    record = reproduce.ROOT / "results" / f"{name}.json"
    assert all(within for _, within in reproduce.compare(recipe, record, record))
  for where in recipe.shown.split(", "):
    if recipe.figures:
      assert f"results/{name}.json" in (reproduce.ROOT / where).read_text()


@pytest.mark.parametrize("name", reproduce.RECIPES)
def test_commands_name_configs_fields_and_flags_that_exist(name):
  for command in reproduce.RECIPES[name].commands:
    words = shlex.split(command.format(data="DATA"))
    if words[:2] != ["python", "-m"]:
      continue
    assert importlib.util.find_spec(words[2]), command
    flags = [word.removeprefix("--").partition("=")[::2] for word in words[3:] if word.startswith("--")]
    source = importlib.util.find_spec(words[2]).loader.get_source(words[2])
    for flag, value in flags:
      if flag.startswith("config."):
        continue
      assert f'"{flag}"' in source, f"{words[2]} has no --{flag}"
      if flag == "config":
        config = dg.config(value.removeprefix("configs/"))
        fields = [field.removeprefix("config.") for field, _ in flags if field.startswith("config.")]
        assert [field for field in fields if field not in config] == [], command
    fields = [value.partition("=")[0] for flag, value in flags if flag == "set"]
    known = RERANK_FIELDS if "eval_limit" in fields else DOCID_FIELDS  # every recipe of re-rankers measures all lists
    known = NOISE_FIELDS if words[2] == "benchmarks.gradient_noise" else known
    assert set(fields) <= set(known), command


def test_what_is_off_is_named(tmp_path):
  figures = {"test": {"one-pass": {"Hit@1": 0.50}}}
  (tmp_path / "old.json").write_text(json.dumps({"metrics": figures}))
  figures["test"]["one-pass"]["Hit@1"] = 0.54
  (tmp_path / "new.json").write_text(json.dumps({"metrics": figures}))
  recipe = reproduce.Recipe("README.md", (), "new.json", 1, (("test", "one-pass", "Hit@1"),))
  compared = lambda recipe: list(reproduce.compare(recipe, tmp_path / "old.json", tmp_path / "new.json"))
  assert compared(recipe) == [("test | one-pass | Hit@1: 0.54, recorded 0.5: MORE THAN 0.03 OFF", False)]
  assert compared(dataclasses.replace(recipe, tolerance=0.1, relative=True))[0][1]
  assert not compared(dataclasses.replace(recipe, tolerance=0.05, relative=True))[0][1]
  with pytest.raises(FileNotFoundError, match="run its commands first"):
    list(reproduce.compare(recipe, tmp_path / "old.json", tmp_path / "none.json"))


def test_commands_run_from_the_root_and_failures_stop():
  reproduce.run("python -c 'import diffgr_jax'")
  with pytest.raises(RuntimeError, match="ended with 3"):
    reproduce.run("python -c 'raise SystemExit(3)'")
