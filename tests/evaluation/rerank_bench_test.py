"""The frontier: every case on the same lists, a record, a table and a picture; bad fields are named."""

import itertools
import json

import pytest

from configs.bench.rerank import get_config
from diffgr_jax.evaluation.rerank_bench import check_rerank_bench, run_rerank_bench


def config_of(folder, **fields):
  config = get_config(f"teacher={folder / 'sft'},student={folder / 'convert'}")
  with config.unlocked():
    config.update(dict(lists=5, batch_sizes=(1, 4), thresholds=(0.5, 1.0), rounds=1) | fields)
  return config


def test_the_frontier_of_a_teacher_and_its_conversion(rerank_runs, tmp_path):
  folder, _ = rerank_runs
  record = run_rerank_bench(config_of(folder, block_sizes=(1,)), tmp_path)
  assert json.loads((tmp_path / "results.json").read_text())["metrics"] == record["metrics"]
  for rows in (1, 4):
    figures = record["metrics"][f"test, batch {rows}"]
    cases = itertools.product((8, 1), ("prefix", "threshold"), (0.5, 1.0))
    blocks = [f"block {size}, {policy} {tau}" for size, policy, tau in cases]
    assert list(figures) == ["AR", *blocks]
    assert figures["AR"]["tokens a forward"] == 1
    for label in blocks:
      assert figures[label]["share"] == pytest.approx(figures[label]["speed-up"] / figures[label]["ceiling"])
      assert figures[label]["tokens a forward"] >= 1
    # Blocks of one are the teacher itself: the same tokens, so the same quality.
    for name in ("R@1", "NDCG@3", "valid", "tokens"):
      assert figures["block 1, prefix 1.0"][name] == figures["AR"][name]
  assert "| AR" in (tmp_path / "table.md").read_text()
  assert (tmp_path / "frontier.png").stat().st_size > 10_000


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"thresholds": (1.2,)}, r"config.thresholds holds probabilities in \(0, 1\], not 1.2"),
    ({"policies": ("random",)}, "config.policies holds prefix, threshold or dynamic"),
    ({"thresholds": ()}, "config.thresholds is empty"),
    ({"batch_sizes": (0,)}, "numbers of at least 1"),
    ({"split": "train"}, "config.split is valid or test, not 'train'"),
  ],
)
def test_bad_fields_are_named(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    check_rerank_bench(config_of(tmp_path, **fields))


def test_a_teacher_is_no_student(rerank_runs, tmp_path):
  folder, _ = rerank_runs
  config = get_config(f"teacher={folder / 'sft'},student={folder / 'sft'}")
  with pytest.raises(ValueError, match="is a run of the stage 'sft', not a converted one"):
    run_rerank_bench(config, tmp_path)
