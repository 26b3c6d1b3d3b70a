"""Pictures of results: what is drawn is what the records hold, and what cannot be compared is refused."""

import json

import pytest

from diffgr_jax.viz import quality

MACHINE = {"platform": "here", "processor": "x86_64", "cpus": 2}


def record(documents=100, machine=MACHINE, **methods):
  figures = {name: {"Hit@1": hit, "queries/s": speed, "queries": 10} for name, (hit, speed) in methods.items()}
  return {"machine": machine, "settings": {"documents": documents, "parameters": 7}, "metrics": {"valid": figures}}


@pytest.fixture
def drawn(monkeypatch):
  """What the last picture holds: its axes, before they are written."""
  kept = {}
  write = quality._write

  def look(figure, axes, path, **how):
    kept["axes"] = axes
    return write(figure, axes, path, **how)

  monkeypatch.setattr(quality, "_write", look)
  return kept


def points_of(axes):
  return [[tuple(map(float, point)) for point in collection.get_offsets()] for collection in axes.collections]


def test_a_point_for_each_method_and_the_frontier_of_them(drawn, tmp_path):
  records = {
    "a": record(BM25=(0.3, 500.0), ours=(0.5, 40.0), slow=(0.4, 4.0)),
    "b": record(ours=(0.6, 20.0), BM25=(0.3, 490.0)),
  }
  path = quality.draw_speed(records, tmp_path / "deep" / "speed.png", split="valid")
  assert path.read_bytes()[:4] == b"\x89PNG"
  axes = drawn["axes"]
  assert sorted(points_of(axes)) == [[(4.0, 0.4)], [(20.0, 0.6)], [(40.0, 0.5)], [(500.0, 0.3)]]  # a baseline once
  (frontier,) = axes.lines
  assert list(zip(*frontier.get_data(), strict=True)) == [(20.0, 0.6), (40.0, 0.5), (500.0, 0.3)]
  assert [text.get_text() for text in axes.get_legend().get_texts()] == ["BM25", "a: ours", "a: slow", "b: ours"]


def test_the_runs_of_a_study_are_told_apart(drawn, tmp_path):
  study = record(**{"BM25": (0.3, 500.0), "a: one-pass": (0.5, 40.0), "a: beam 9": (0.6, 4.0), "b: beam 9": (0.4, 5.0)})
  quality.draw_speed({"study": study}, tmp_path / "speed.png", split="valid")
  legend = drawn["axes"].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == ["BM25", "a: one-pass", "a: beam 9", "b: beam 9"]
  colours = [tuple(points.get_facecolor()[0]) for points in drawn["axes"].collections]
  assert colours[1] == colours[2] != colours[3]
  quality.draw_speed({"study": study}, tmp_path / "speed.png", split="valid", only=("a",))
  assert [text.get_text() for text in drawn["axes"].get_legend().get_texts()] == ["BM25", "one-pass", "beam 9"]
  with pytest.raises(ValueError, match="--only=c: there are a, b"):
    quality.draw_speed({"study": study}, tmp_path / "speed.png", split="valid", only=("c",))


def test_a_sweep_is_one_line_whose_points_bear_what_was_swept(drawn, tmp_path):
  names = ("top-k, 8 steps, beam 4", "top-k, 2 steps, beam 4", "top-k, 16 steps, beam 4", "match 100")
  run = record(**dict(zip(names, ((0.5, 4.0), (0.4, 9.0), (0.6, 2.0), (0.3, 30.0)), strict=True)))
  for name, canvases in zip(names, (29.0, 5.0, 61.0, 1.0), strict=True):
    run["metrics"]["valid"][name]["canvases"] = canvases
  quality.draw_speed({"run": run}, tmp_path / "speed.png", split="valid")
  axes = drawn["axes"]
  assert sorted(points_of(axes)) == [[(9.0, 0.4), (4.0, 0.5), (2.0, 0.6)], [(30.0, 0.3)]]
  assert [text.get_text() for text in axes.texts] == ["2", "8", "16"]
  legend = [text.get_text() for text in axes.get_legend().get_texts()]
  assert legend == ["top-k, 2 to 16 steps, beam 4, 5 to 61 canvases", "match 100, 1 canvas"]


def test_a_line_for_each_method_over_the_scale(drawn, tmp_path):
  records = {"big": record(1000, BM25=(0.2, 1.0), ours=(0.4, 1.0)), "small": record(10, BM25=(0.3, 1.0))}
  records["again"] = record(1000, ours=(0.6, 1.0))
  path = quality.draw_scale(records, tmp_path / "scale.png", split="valid", scale="documents")
  assert path.read_bytes()[:4] == b"\x89PNG"
  axes = drawn["axes"]
  assert [list(zip(*line.get_data(), strict=True)) for line in axes.lines] == [[(10, 0.3), (1000, 0.2)], [(1000, 0.5)]]
  points = {collection.get_label(): collection.get_offsets().tolist() for collection in axes.collections}
  assert points == {"BM25": [[1000, 0.2], [10, 0.3]], "ours": [[1000, 0.4], [1000, 0.6]]}


def test_what_cannot_be_drawn_is_named(tmp_path):
  one, other = record(BM25=(0.3, 5.0)), record(BM25=(0.3, 5.0), machine={**MACHINE, "cpus": 64})
  with pytest.raises(ValueError, match="are of 2 machines; queries a second compare on one machine only"):
    quality.draw_speed({"a": one, "b": other}, tmp_path / "x.png", split="valid")
  with pytest.raises(ValueError, match="on the split 'test'; there are the splits valid"):
    quality.draw_speed({"a": one}, tmp_path / "x.png", split="test")
  with pytest.raises(ValueError, match=r"no record has Hit@1 and settings\.examples"):
    quality.draw_scale({"a": one}, tmp_path / "x.png", split="valid", scale="examples")
  with pytest.raises(ValueError, match="all records have 100 documents; quality against scale needs"):
    quality.draw_scale({"a": one, "b": one}, tmp_path / "x.png", split="valid")
  with pytest.raises(ValueError, match="scale is one of documents, parameters, examples"):
    quality.draw_scale({"a": one}, tmp_path / "x.png", split="valid", scale="time")


def test_records_are_read_by_name(tmp_path):
  run = tmp_path / "myrun"
  run.mkdir()
  for file in (run / "results.json", tmp_path / "gqwiki.json"):
    file.write_text(json.dumps(record(BM25=(0.3, 5.0))))
  assert list(quality.read_records([run / "results.json", tmp_path / "gqwiki.json"])) == ["myrun", "gqwiki"]
  (tmp_path / "other").mkdir()
  again = tmp_path / "other" / "gqwiki.json"
  again.write_text(json.dumps(record()))
  with pytest.raises(ValueError, match="two records are called 'gqwiki'"):
    quality.read_records([tmp_path / "gqwiki.json", again])
  for content in ("{", "[]", '{"metrics": 3}', '{"metrics": {"decode": {"AR": {"tok/s": 3}}}}'):
    again.write_text(content)
    with pytest.raises(ValueError, match=r"is no results\.json of retrieval"):
      quality.read_records([again])
  with pytest.raises(FileNotFoundError, match="no such file"):
    quality.read_records([tmp_path / "nothing.json"])


def test_a_line_for_each_number_of_levels_and_the_pass_that_it_comes_on_top_of(drawn, tmp_path):
  cost = lambda scoring: {"scoring ms": scoring, "picking ms": 1.0}
  figures = {
    "4 levels": {"forward pass": {"ms": 50.0}, "10 documents": cost(2.0), "1,000 documents": cost(9.0)},
    "8 levels": {"forward pass": {"ms": 60.0}, "10 documents": cost(4.0), "1,000 documents": cost(19.0)},
  }
  path = quality.draw_cost(figures, tmp_path / "cost.png", batch=2)
  assert path.read_bytes()[:4] == b"\x89PNG"
  lines = [line for line in drawn["axes"].lines if line.get_linestyle() == "-"]
  assert [list(zip(*line.get_data(), strict=True)) for line in lines] == [
    [(10, 3.0), (1000, 10.0)],
    [(10, 5.0), (1000, 20.0)],
  ]
  passes = [line.get_ydata()[0] for line in drawn["axes"].lines if line.get_linestyle() == ":"]
  assert passes == [50.0, 60.0]
