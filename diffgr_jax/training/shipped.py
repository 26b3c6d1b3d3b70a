"""A trained run made small enough to be shipped: its config, vocabulary and codes, and weights in bfloat16.

    diffgr_jax.load("W/cft").ship("models/reranker")    about 2 MB where the model has a million parameters

Whatever reads the weights of a workdir (`load`, evaluate, bench, `start=` of a next stage) reads such a folder too.
What a checkpoint has beside them, the optimizer and the position in the data, stays behind: a shipped run cannot go on.
"""

import dataclasses
import json
from pathlib import Path
import shutil
from typing import Any

from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.params_file import read_params, write_params
from diffgr_jax.models.transformer import Params

WEIGHTS = "weights.safetensors"
_KEPT = ("vocab", "index")  # of a workdir
# Fields that name folders of the machine that trained, and what a shipped run has there. Some runs must name the first
# two (`check_config`), so these are not emptied.
_FORGOTTEN = {"start_from": "forgotten", "teacher": "forgotten", "examples": "", "data_dir": ""}


def ship_run(workdir: Path, config: Any, params: Params, step: int, out: str | Path) -> Path:
  """Writes what answers of a run, as `config` decodes, to the folder `out`, which must not exist yet.

  Raises:
    FileExistsError: `out` is there.
  """
  out = Path(out)
  if out.exists():
    raise FileExistsError(f"{out} is there already: name another folder, or remove it")
  out.mkdir(parents=True)
  for name in _KEPT:
    if (workdir / name).is_dir():
      shutil.copytree(workdir / name, out / name)
  if config.task == "rerank":  # it reads its items' codes, and gives none
    codes = CodeIndex.load(out / "index" / "codes.npz")
    dataclasses.replace(codes, quantizer=None).save(out / "index" / "codes.npz")
  record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  own = json.loads(config.to_json())
  record["config"] = own | {name: instead for name, instead in _FORGOTTEN.items() if own.get(name)}
  (out / "config.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
  write_params(out / WEIGHTS, params, "bfloat16", step=step)
  return out


def is_shipped(folder: Path) -> bool:
  return (folder / WEIGHTS).is_file()


def shipped_params(folder: Path, model: TransformerConfig) -> tuple[Params, int]:
  """The weights of a shipped run, in the dtypes of its model, and the step that they are of."""
  params, notes = read_params(folder / WEIGHTS, model)
  return params, int(notes["step"])
