"""REPRODUCE.md: up to date, of records that exist; the comparison says what is off."""

import dataclasses
import json

import pytest

from benchmarks import reproduce


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
  for command in recipe.commands:
    for word in command.split():
      if word.startswith("--config=configs/"):
        assert (reproduce.ROOT / word.removeprefix("--config=").split(":")[0]).is_file()


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
