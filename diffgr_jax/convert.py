"""Weights in and out, and the proof that they mean the same: exactly one of

python -m diffgr_jax.convert --from_hf=DIR --out=DIR    Hugging Face folder -> checkpoint of ours
python -m diffgr_jax.convert --to_hf=DIR --out=DIR      checkpoint of ours -> Hugging Face folder
python -m diffgr_jax.convert --check=DIR                recorded outputs of a reference against ours; exit 1 on a miss

Only safetensors are read, nothing that unpickles; neither torch nor transformers is needed.
"""

from collections import Counter
import time

from absl import flags

from diffgr_jax import cli
from diffgr_jax.evaluation.fixture import ATOL, MISS, NOT_RUN, OK, fixture_folders
from diffgr_jax.evaluation.parity import check_folder
from diffgr_jax.models.hf import ModelSpec
from diffgr_jax.models.transformer import count_params
from diffgr_jax.training.pretrained import convert_from_hf, convert_to_hf, set_aside

_FROM_HF = flags.DEFINE_string("from_hf", None, "Hugging Face folder to read")
_TO_HF = flags.DEFINE_string("to_hf", None, "checkpoint of ours to read")
_CHECK = flags.DEFINE_string("check", None, "folder of recordings, or a folder of such folders")
_OUT = flags.DEFINE_string("out", None, "folder to write; must be new or empty")


def main(_) -> int:
  asked = {flag.name: flag.value for flag in (_FROM_HF, _TO_HF, _CHECK) if flag.value is not None}
  if len(asked) != 1:
    raise ValueError(f"give exactly one of --from_hf, --to_hf and --check, not {' and '.join(asked) or 'none'}")
  [(action, folder)] = asked.items()
  if action == "check":
    return check(folder)
  if _OUT.value is None:
    raise ValueError(f"--{action} needs --out, the folder to write")
  start = time.perf_counter()
  convert = {"from_hf": convert_from_hf, "to_hf": convert_to_hf}[action]
  with cli.waiting(f"converting {folder}"):
    spec = convert(folder, _OUT.value)
  print(f"{_OUT.value}: {describe(spec)}; {time.perf_counter() - start:.1f} s")
  if action == "from_hf" and (aside := set_aside(_OUT.value)):
    print(f"kept aside for --to_hf, not a part of the model: {', '.join(aside)}")
  return 0


def describe(spec: ModelSpec) -> str:
  config = spec.config
  return (
    f"{spec.family}, {count_params(config):,} parameters in {config.param_dtype}, {config.n_layers} layers,"
    f" {config.pattern}, {config.alignment}, blocks of {spec.block_size},"
    f" {spec.vocab_size} of {config.vocab_size} rows used"
  )


def check(folder: str) -> int:
  """Prints a line per comparison and a summary; 1 if any missed."""
  statuses, largest = Counter(), 0.0
  for path in fixture_folders(folder):
    for result in check_folder(path):
      print(result.line(), flush=True)
      statuses[result.status] += 1
      if result.status == OK:
        largest = max(largest, result.difference)
  print(
    f"{statuses[OK]} ok (largest difference {largest:.2g}, allowed {ATOL:g}), {statuses[NOT_RUN]} not run,"
    f" {statuses[MISS]} missed"
  )
  return 1 if statuses[MISS] else 0


if __name__ == "__main__":
  cli.run(main)
