"""Checkpoints that are not whole are found: each kind of damage, what is left of a killed save, and older folders."""

import json

import pytest

from diffgr_jax.training.kept import check_step, look_through, set_aside, write_manifest


@pytest.fixture
def checkpoints(tmp_path):
  """Three steps as a finished save leaves them: a large and a small file, the manifest, metadata written later."""
  folder = tmp_path / "checkpoints"
  for step in (2, 4, 6):
    (folder / str(step) / "params" / "d").mkdir(parents=True)
    (folder / str(step) / "params" / "d" / "large").write_bytes(bytes(3 << 20))
    (folder / str(step) / "params" / "small").write_text(f"weights of {step}")
    (folder / str(step) / "run").mkdir()
    (folder / str(step) / "run" / "config.json").write_text("{}")
    write_manifest(folder / str(step))
    (folder / str(step) / "_CHECKPOINT_METADATA").write_text("later")
  return folder


def test_whole_steps_are_listed(checkpoints):
  kept = look_through(checkpoints, newest=False)
  assert (kept.steps, kept.damaged, kept.unfinished) == ((2, 4, 6), {}, ())
  listed = json.loads((checkpoints / "4" / "run" / "manifest.json").read_text())
  assert {name: entry[0] for name, entry in listed.items()} == {
    "params/d/large": 3 << 20,
    "params/small": 12,
    "run/config.json": 2,
  }
  assert listed["params/d/large"][1] is None


def test_a_manifest_is_written_before_its_own_folder_has_its_last_name(checkpoints):
  (checkpoints / "6" / "run" / "manifest.json").unlink()
  (checkpoints / "6" / "run").rename(checkpoints / "6" / "run.orbax-checkpoint-tmp-7")
  write_manifest(checkpoints / "6")
  (checkpoints / "6" / "run.orbax-checkpoint-tmp-7").rename(checkpoints / "6" / "run")
  assert check_step(checkpoints / "6") == ""


@pytest.mark.parametrize(
  "damage, message",
  [
    (
      lambda step: (step / "params" / "d" / "large").write_bytes(bytes(5)),
      "large has 5 bytes instead of 3145",
    ),
    (lambda step: (step / "params" / "small").write_text("weights of 9"), "params/small has been changed"),
    (lambda step: (step / "params" / "small").unlink(), "params/small is missing"),
    (lambda step: (step / "run" / "manifest.json").write_text("{"), "run/manifest.json cannot be read"),
    (lambda step: (step / "run" / "manifest.json").unlink(), "run/manifest.json cannot be read"),
  ],
)
def test_a_damaged_newest_step_is_named_and_passed_over(checkpoints, damage, message):
  damage(checkpoints / "6")
  kept = look_through(checkpoints)
  assert kept.steps == (2, 4)
  assert message in kept.damaged[6]
  (line,) = set_aside(checkpoints, kept)
  assert line.startswith("checkpoint 6 is damaged (")
  assert message in line
  assert (checkpoints.parent / "damaged" / "6" / "params").is_dir()
  assert look_through(checkpoints).damaged == {}


def test_what_a_killed_save_left_is_named_and_removed(checkpoints):
  (checkpoints / "8.orbax-checkpoint-tmp-123" / "params").mkdir(parents=True)
  kept = look_through(checkpoints)
  assert kept.steps == (2, 4, 6)
  (line,) = set_aside(checkpoints, kept)
  assert "8.orbax-checkpoint-tmp-123 was never finished" in line
  assert sorted(path.name for path in checkpoints.iterdir()) == ["2", "4", "6"]


def test_a_step_without_a_manifest_counts_as_whole_if_an_older_program_kept_it(checkpoints):
  (checkpoints / "8" / "params").mkdir(parents=True)
  (checkpoints / "9").mkdir()
  kept = look_through(checkpoints)
  assert kept.steps == (2, 4, 6, 8)
  assert kept.damaged == {9: "it has no params"}
  assert look_through(checkpoints / "none").steps == ()
