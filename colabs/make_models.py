"""Makes the two models that 02_block_diffusion.ipynb loads: `python colabs/make_models.py --out=colabs/models`

Mid-training, three runs of SFT (the teacher) and two of CFT from it (the student), on the made-up shop, each
resumable, in --workdir; then what is needed of the two, with weights in bfloat16 (training/shipped.py).
colabs/models/README.md says how good they are.
"""

import os
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from absl import flags

import diffgr_jax as dg
from diffgr_jax import cli

_OUT = flags.DEFINE_string("out", "colabs/models", "where teacher/ and student/ go, which must not be there yet")
_WORKDIR = flags.DEFINE_string("workdir", "workdir/models", "of the runs")
_SIZE = flags.DEFINE_string("size", "small", "of the models, as configs/rerank/base.py has it")
_PATH = flags.DEFINE_string("path", "", "options of the made-up shop (rerank/made_up_shop.py)")
_PART = flags.DEFINE_float("part", 1.0, "of all steps", lower_bound=0.0, upper_bound=1.0)

# run: its config's arguments, its steps, fields. Few valid lists are decoded at the end of each.
_FEW = ("--config.eval_splits=('valid',)", "--config.eval_limit=128")
# The teacher learned evenly first: that letters of choices should weigh more, and traces be drawn out where the retriever
# knew, was found later (docs/experiments.md).
_EVEN = ("--config.choice_weight=1", "--config.trace_agreeing=1", *_FEW)
_SLOWER = "--config.learning_rate=2e-3"
_ENDS = "--config.suffix_fraction=0.5"
STAGES = {
  "mid": ("mid_training.py:pool=50", 2600, ("--config.eval_splits=('valid',)", "--config.eval_limit=8")),
  "sft": ("sft.py:pool=50,start={W}/mid", 3000, _EVEN),
  "choose": ("sft.py:pool=50,start={W}/sft", 1500, (_SLOWER, "--config.trace_agreeing=1", *_FEW)),
  "teacher": ("sft.py:pool=50,start={W}/choose", 1100, (_SLOWER, *_FEW)),
  "lists": ("cft.py:pool=50,block=8,start={W}/teacher,lists={W}/mid", 400, (_SLOWER, _ENDS, *_FEW)),
  "student": ("cft.py:pool=50,block=8,start={W}/lists,examples={W}/teacher", 1800, (_SLOWER, _ENDS, *_FEW)),
}


def main(_) -> None:
  out, workdir = Path(_OUT.value), Path(_WORKDIR.value)
  for name in ("teacher", "student"):
    if (out / name).exists():
      raise FileExistsError(f"{out / name} is there already: name another --out, or remove it")
  for name, (config, steps, fields) in STAGES.items():
    arguments = f"{config.format(W=workdir)},size={_SIZE.value},steps={max(2, round(_PART.value * steps))}"
    arguments += f",path={_PATH.value}" if _PATH.value else ""
    command = [sys.executable, "-m", "diffgr_jax.main", f"--config={ROOT}/configs/rerank/{arguments}"]
    done = subprocess.run([*command, f"--workdir={workdir / name}", *fields], env=_environment())
    if done.returncode:
      raise RuntimeError(f"the run {name} ended with {done.returncode}; started again, it goes on")
  for name in ("teacher", "student"):
    print(dg.load(workdir / name).ship(out / name))


def _environment() -> dict[str, str]:
  return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


if __name__ == "__main__":
  cli.run(main)
