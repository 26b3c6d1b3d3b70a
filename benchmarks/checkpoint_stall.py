"""How long a save holds training up: a run of one config with and without checkpoints, step by step.

    python -m benchmarks.checkpoint_stall --config=configs/docid/base.py:steps=60 --every=20

Prints a line for each save (seconds that `save` took before training went on) and the stall: what saves, and the steps
during which one was written, took more than the median step of the others, as a share of all step time at the interval
that was measured and, scaled, at the config's own checkpoint_every.
"""

import json
from pathlib import Path
import tempfile
import time

from absl import flags
from ml_collections import config_flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.training import loop

_CONFIG = config_flags.DEFINE_config_file("config", "configs/docid/base.py:steps=60", "what is trained")
_EVERY = flags.DEFINE_integer("every", 20, "steps between two saves")


def main(_) -> None:
  config, own_interval = _CONFIG.value, _CONFIG.value.checkpoint_every
  with config.unlocked():
    config.update(checkpoint_every=_EVERY.value, eval_every=0, log_every=1)
  saves: list[float] = []
  real_save = loop.Checkpoints.save

  def timed_save(*args, **kwargs):
    began = time.perf_counter()
    real_save(*args, **kwargs)
    saves.append(time.perf_counter() - began)

  loop.Checkpoints.save = timed_save
  with tempfile.TemporaryDirectory() as workdir:
    loop.train_and_evaluate(config, workdir)
    lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    megabytes = sum(f.stat().st_size for f in (Path(workdir) / "checkpoints").glob(f"{config.steps}/**/*")) / 1e6
  seconds = {line["step"]: line["step_seconds"] for line in lines if "step_seconds" in line}
  del seconds[1]
  writing = {step for step in seconds if (step - 1) % _EVERY.value < 3 and step > _EVERY.value}
  quiet = float(np.median([seconds[step] for step in seconds if step not in writing]))
  slower = sum(seconds[step] - quiet for step in writing) / max(len(saves) - 1, 1)
  # The last save ends the run; the first one compiles the copies of the arrays.
  held = float(np.median(saves[1:-1])) if len(saves) > 2 else float(np.median(saves))
  print(f"checkpoint of {megabytes:.1f} MB; saves: " + ", ".join(f"{second:.3f}" for second in saves) + " s")
  print(
    f"step {quiet:.4f} s (median without a save); a save holds training up {held:.3f} s and slows the next steps by"
  )
  print(f"{slower:.3f} s: {share(held + slower, quiet, _EVERY.value)} of step time at every {_EVERY.value} steps,")
  print(f"{share(held + slower, quiet, own_interval)} at the config's own {own_interval}")


def share(stall: float, step: float, every: int) -> str:
  return f"{100 * stall / (step * every):.2f}%"


if __name__ == "__main__":
  cli.run(main)
