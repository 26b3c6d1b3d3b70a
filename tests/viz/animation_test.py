"""A decode as a film: a frame a step, and it names what the step showed."""

from diffgr_jax.viz.animation import animate_trace
from tests.viz.steps_test import long_trace, piece


def test_a_film_has_a_frame_a_step_and_one_before(tmp_path):
  trace = long_trace()
  html = animate_trace(trace, 0, piece, "a query", fps=2)
  assert html.count("data:image/png;base64") == len(trace.steps_taken(0)) + 1
  assert 'type="range"' in html
