"""The moving loss curve: what it reads, and that it follows a run."""

import json
import time

from diffgr_jax.viz.live import draw_losses, live_losses, read_losses


def write(workdir, *rows):
  with (workdir / "metrics.jsonl").open("a") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)


def test_losses_are_read_while_they_are_written(tmp_path):
  assert read_losses(tmp_path) == ([], [])
  write(tmp_path, {"step": 20, "loss": 2.0}, {"step": 10, "loss": 3.0}, {"step": 20, "valid MRR@100": 0.5})
  write(tmp_path, {"step": 20, "loss": 1.5})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 30, "lo')
  assert read_losses(tmp_path) == ([10, 20], [3.0, 1.5])
  assert draw_losses([10, 20], [3.0, 1.5], 100).startswith(b"\x89PNG")
  assert draw_losses([], [], 100).startswith(b"\x89PNG")


def test_the_picture_follows_the_run(tmp_path, monkeypatch):
  import IPython.display

  pictures = []

  class Shown:
    def update(self, picture):
      pictures.append(picture.data)

  monkeypatch.setattr(IPython.display, "display", lambda picture, display_id: pictures.append(picture.data) or Shown())
  with live_losses(tmp_path, 100, every=0.01):
    write(tmp_path, {"step": 10, "loss": 3.0})
    until = time.monotonic() + 20
    while len(pictures) < 2 and time.monotonic() < until:
      time.sleep(0.01)
    write(tmp_path, {"step": 20, "loss": 2.0})
  assert len(pictures) >= 3
  assert pictures[0] != pictures[-1] == draw_losses([10, 20], [3.0, 2.0], 100)
