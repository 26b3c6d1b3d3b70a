import json
from pathlib import Path

from matplotlib import image
import numpy as np
import pytest

from diffgr_jax.viz.stages import draw_stages

STUDY = Path(__file__).parents[2] / "results/made_up_quick.json"


@pytest.fixture
def record():
  return json.loads(STUDY.read_text(encoding="utf-8"))


def _drawn(record, path, **how):
  return image.imread(draw_stages(record, path, **how))


def test_a_study_is_drawn_with_a_row_for_each_run(record, tmp_path):
  few = _drawn(record, tmp_path / "few.png", only=["sft", "teacher"])
  all_runs = _drawn(record, tmp_path / "all.png")
  assert all_runs.shape[0] > few.shape[0]
  assert all_runs.shape[1] == few.shape[1]


def test_the_picture_shows_the_figures(record, tmp_path):
  before = _drawn(record, tmp_path / "before.png")
  own = next(name for name in record["metrics"]["test"] if name.startswith("opd: block"))
  for field in ("R@1", "valid", "R@1 - teacher low", "valid - teacher high"):
    changed = json.loads(json.dumps(record))
    changed["metrics"]["test"][own][field] += 0.02
    assert not np.array_equal(before, _drawn(changed, tmp_path / "after.png")), field


def test_pooled_seeds_show_the_least_and_the_most(record, tmp_path):
  before = _drawn(record, tmp_path / "before.png")
  own = next(name for name in record["metrics"]["test"] if name.startswith("opd: block"))
  record["metrics"]["test"][own] |= {"R@1 least": 0.5, "R@1 most": 0.55}
  assert not np.array_equal(before, _drawn(record, tmp_path / "after.png"))


def test_students_at_several_thresholds_are_a_line(record, tmp_path):
  before = _drawn(record, tmp_path / "before.png")
  systems = record["metrics"]["test"]
  own = next(name for name in systems if name.startswith("opd: block"))
  systems[own.replace("opd:", "opd_slow:")] = systems[own] | {"tokens a forward": 1.0, "valid": 0.99}
  line = _drawn(record, tmp_path / "line.png")
  assert line.shape[1] > before.shape[1]
  systems[own.replace("opd:", "opd_slow:")]["tokens a forward"] = 2.0
  assert not np.array_equal(line, _drawn(record, tmp_path / "after.png"))


@pytest.mark.parametrize(
  ("how", "message"),
  [
    ({"split": "valid"}, "no figures of split 'valid': test"),
    ({"only": ["OPD"]}, "no run 'OPD': there are mid, sft"),
    ({"against": "sft2"}, "no run 'sft2'"),
  ],
)
def test_what_is_not_there_is_named(record, tmp_path, how, message):
  with pytest.raises(ValueError, match=message):
    draw_stages(record, tmp_path / "no.png", **how)
