import io

from matplotlib.figure import Figure
from matplotlib.image import imread
import numpy as np
import pytest
from rich.console import Console

from diffgr_jax.decoding.trace import Trace
from diffgr_jax.viz import steps

PIECES = ["[PAD]", "[EOS]", "[MASK]", "▁os", ".", "path", "▁a_very_long_piece_indeed", "join", "▁", "$x^2", "語彙"]
MASK = 2


def piece(token):
  return PIECES[token]


def make_trace(canvas, alive=True):
  """Builds a trace of one row from its canvases; confidences and entropies differ from step to step."""
  canvas = np.asarray(canvas, np.int32)[:, None]
  lines, _, length = canvas.shape
  shape = (lines - 1, 1, length)
  entropy = np.arange(1.0, lines)[:, None, None] * np.ones(shape)
  return Trace(
    canvas=canvas,
    commit_confidence=np.where(canvas == MASK, 0.0, np.linspace(0.1, 1.0, length)),
    confidence=np.full(shape, 0.5),
    entropy=entropy,
    step_map=np.zeros((1, length), np.int32),
    alive=np.geomspace(2500, 1, lines).astype(int)[:, None] if alive else None,
    mask_id=MASK,
  )


def printed(renderable, width=80):
  out = io.StringIO()
  Console(file=out, width=width).print(renderable)  # not a terminal: what a pipe gets
  return out.getvalue()


SHORT = make_trace(
  [[2, 2, 2, 2, 2], [2, 2, 5, 2, 0], [3, 4, 5, 2, 2], [3, 4, 5, 7, 1]],
)


def long_trace(length=24):
  canvas = np.full((5, length), MASK)
  for t in range(1, 5):
    canvas[t:, t - 1 :: 4] = np.resize([6, 5, 7, 3], len(canvas[0, t - 1 :: 4]))
  return make_trace(canvas)


def test_terminal_view_reads_without_colour():
  lines = printed(steps.render_trace(SHORT, 0, piece, title="join path components")).splitlines()
  assert lines[0].strip() == "join path components"
  assert lines[1].split() == ["step", "canvas", "docs", "entropy"]
  assert lines[2].split() == ["0", *["░░"] * 5, "2500", "1.00"]
  assert lines[3].replace("[", " [").split() == ["1", "░░", "░░", "[path]", "░░", "[PAD]", "184", "2.00"]
  # step 2 commits os and the dot, and takes the PAD back
  assert lines[4].replace("[", " [").split() == ["2", "[os]", "[.]", "path", "░░", "~░░", "13", "3.00"]
  assert lines[5].replace("[", " [").split() == ["3", "os", ".", "path", "[join]", "[EOS]", "1", "-"]
  assert "taken back" in lines[6]
  assert "\x1b" not in "".join(lines)


def test_columns_stand_below_each_other():
  lines = printed(steps.render_trace(SHORT, 0, piece)).splitlines()
  assert lines[3].index("path") == lines[2].index("path") == lines[4].index("path")
  assert len({len(line.rstrip()) for line in lines[:5]}) == 1  # the entropies end in one column


@pytest.mark.parametrize("length", [1, 12, 24])
def test_long_canvases_fit_eighty_columns_and_lose_no_position(length):
  trace = long_trace(length)
  text = printed(steps.render_trace(trace, 0, piece, title="q" * 200))
  lines = text.splitlines()
  assert max(map(len, lines)) <= 80
  assert len(lines) <= 3 + 3 * trace.canvas.shape[0]
  assert text.count("░░") == trace.masked.sum() + 1  # and one in the legend
  assert text.count("[") == trace.committed.sum() + 1


def test_colour_follows_confidence_and_can_be_left_out():
  out = io.StringIO()
  console = Console(file=out, width=80, force_terminal=True, color_system="standard")
  console.print(steps.render_trace(SHORT, 0, piece))
  assert "\x1b[" in out.getvalue()
  plain = io.StringIO()
  console.file = plain
  console.print(steps.render_trace(SHORT, 0, piece, colour=False))
  assert "\x1b[" not in plain.getvalue()


def test_without_a_constraint_no_documents_are_counted():
  text = printed(steps.render_trace(make_trace([[2, 2], [3, 1]], alive=False), 0, piece))
  assert "docs" not in text
  assert "entropy" in text


def test_a_row_is_shown_for_as_many_steps_as_it_took():
  canvas = np.stack([np.array([[2, 2], [3, 2], [3, 1]]), np.array([[2, 2], [5, 7], [5, 7]])], axis=1)
  trace = Trace(
    canvas, np.full((3, 2, 2), 0.5), np.ones((2, 2, 2)), np.ones((2, 2, 2)), np.zeros((2, 2), int), None, MASK
  )
  first = lambda row: [line[:4].strip() for line in printed(steps.render_trace(trace, row, piece)).splitlines()]
  assert first(0)[1:-1] == ["0", "1", "2"]
  assert first(1)[1:-1] == ["0", "1"]


@pytest.mark.parametrize("row", [-1, 1])
def test_a_row_that_is_not_there(row, tmp_path):
  with pytest.raises(IndexError, match=rf"row {row} is not in the trace; it has rows 0\.\.0"):
    steps.render_trace(SHORT, row, piece)
  with pytest.raises(IndexError, match=rf"row {row} is not in the trace"):
    steps.draw_trace(SHORT, row, piece, "", tmp_path / "x.png")


def test_pieces_are_shortened_to_the_width_they_have():
  assert steps.display_piece("▁os", 10) == "os"
  assert steps.display_piece("▁", 10) == "␣"
  assert steps.display_piece("[EOS]", 10) == "EOS"
  assert steps.display_piece("[", 10) == "["
  assert steps.display_piece("a\nb", 10) == "a·b"
  assert steps.display_piece("components", 6) == "compo…"
  assert steps.display_piece("components", 10) == "components"
  assert steps.display_piece("語彙表", 5) == "語彙…"  # wide characters take two columns


@pytest.mark.parametrize(
  "trace", [SHORT, long_trace(), make_trace([[3, 4]]), make_trace([[2, 2], [9, 8]], alive=False)]
)
def test_png_is_written_with_nothing_at_its_edge(trace, tmp_path):
  path = steps.draw_trace(trace, 0, piece, "what joins $pa_th^ $ components, " * 9, tmp_path / "new" / "trace.png")
  image = imread(path)[..., :3]
  assert image.shape[1] == 1600
  assert image.min() < 0.5  # something is drawn
  for edge in (image[0], image[-1], image[:, 0], image[:, -1]):
    assert edge.min() > 0.95  # light background, nothing cut off


def test_a_long_canvas_goes_on_in_further_lines_of_its_step(tmp_path):
  rng = np.random.default_rng()
  canvas = rng.integers(3, 9, (3, 70))
  canvas[0], canvas[1, ::2] = MASK, MASK
  trace = make_trace(canvas.tolist())
  image = imread(steps.draw_trace(trace, 0, piece, "a long one", tmp_path / "trace.png"))
  assert image.shape[1] == 32 * 0.4 * 160
  axes = Figure().add_subplot()
  steps.draw_cells(axes, steps.row_view(trace, 0), piece, cell_points=20.0, columns=32)
  cells = [patch.get_bbox() for patch in axes.patches if patch.get_facecolor()[3]]
  assert len(cells) == 70 * (steps.row_view(trace, 0).steps + 1)
  places = sorted((round(box.y0, 6), round(box.x0, 6)) for box in cells)
  assert len(set(places)) == len(cells)  # each has its own place
  heights = np.unique(np.round([box.y0 for box in cells], 6))
  assert np.diff(heights).min() > max(box.height for box in cells)  # and none overlaps the line below
  assert len(heights) == 3 * (steps.row_view(trace, 0).steps + 1)


def test_ranking_lists_documents_in_order():
  ids = ["os.path.join", "posixpath.join", "m" * 90]
  table = steps.render_ranking([-1.25, -3.5, -12.0], ids, ["Join", "Path [b]join", "t " * 90], relevant=ids[1:2])
  lines = printed(table).splitlines()
  assert lines[0].split() == ["rank", "score", "hit", "doc_id", "title"]
  assert lines[1].split() == ["1", "-1.25", "os.path.join", "Join"]
  assert lines[2].split() == ["2", "-3.50", "*", "posixpath.join", "Path", "[b]join"]  # no markup is read
  assert lines[3].split()[:2] == ["3", "-12.00"]
  assert len(lines) == 4
  assert max(map(len, lines)) <= 80
  with pytest.raises(ValueError, match="2 scores, 3 doc_ids, 1 titles; equal numbers"):
    steps.render_ranking([0.0, 1.0], ids, ["x"])
