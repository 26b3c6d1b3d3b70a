"""Peak host memory and time of loading and converting a made-up checkpoint of about 1B parameters.

    python -m benchmarks.convert_memory [--dtype=bfloat16] [--scratch=DIR]

Every step runs in a process of its own, and prints the growth of its peak resident memory (VmHWM) over what the imports
took, and beside it what the parameters themselves take. The checkpoint is deleted at the end.
"""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import time

from absl import flags
import jax
import numpy as np

from diffgr_jax import cli
from diffgr_jax.models import tensor_file
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.hf import read_spec
from diffgr_jax.models.hf_weights import expected_shapes, load_hf, read_folder
from diffgr_jax.models.transformer import abstract_params
from diffgr_jax.training.pretrained import convert_from_hf, convert_to_hf, load_checkpoint

_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "of the made-up weights")
_SCRATCH = flags.DEFINE_string("scratch", None, "where to work; default: the system's folder for such files")
_STEP = flags.DEFINE_enum("step", None, ["make", "load", "from_hf", "restore", "to_hf"], "one step only (used inside)")

# Qwen3's shape at about 1.07B parameters: 28 layers of 1792, tied embedding of 75,008 rows.
_CONFIG = {
  "architectures": ["Qwen3ForCausalLM"],
  "model_type": "qwen3",
  "hidden_act": "silu",
  "hidden_size": 1792,
  "intermediate_size": 4864,
  "num_hidden_layers": 24,
  "num_attention_heads": 14,
  "num_key_value_heads": 7,
  "head_dim": 128,
  "rms_norm_eps": 1e-6,
  "rope_theta": 1e6,
  "tie_word_embeddings": True,
  "vocab_size": 75008,
}


def make(folder: Path, dtype: str) -> None:
  """Writes the checkpoint: every tensor the same small block of random bits, repeated (loading does not care)."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(_CONFIG))
  kind = tensor_file.dtype_of(dtype)
  shapes = expected_shapes(read_spec(folder))
  path = folder / tensor_file.SINGLE_FILE
  header = tensor_file.make_header([(name, kind, shape) for name, shape in sorted(shapes.items())])
  slots = tensor_file.create_files({path: header})
  block = np.random.default_rng(0).standard_normal(1 << 20).astype(kind)
  for slot in slots.values():
    tensor_file.write_tensor(slot, np.resize(block, slot.shape))


def peak_bytes() -> int:
  """The peak resident memory of this process, file-backed pages included (Linux)."""
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def run_step(step: str, scratch: Path, dtype: str) -> None:
  source, ours, back = scratch / "source", scratch / "ours", scratch / "back"
  jax.devices()
  steps = {
    "make": lambda: make(source, dtype),
    "load": lambda: load_hf(source),
    "from_hf": lambda: convert_from_hf(source, ours),
    "restore": lambda: load_checkpoint(ours),
    "to_hf": lambda: convert_to_hf(ours, back),
  }
  before, start = peak_bytes(), time.perf_counter()
  result = steps[step]()
  seconds = time.perf_counter() - start
  if step == "make":
    return
  del result
  leaves = jax.tree.leaves(abstract_params(model_config(source)))
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
  gib = lambda count: f"{count / 2**30:.2f} GiB"
  print(
    f"{step:<8} {seconds:6.1f} s   peak growth {gib(peak_bytes() - before)}   parameters {gib(sum(sizes))}"
    f" ({sum(leaf.size for leaf in leaves) / 1e9:.2f}B)   largest stacked tensor {gib(max(sizes))}",
    flush=True,
  )


def model_config(folder: Path) -> TransformerConfig:
  return read_folder(folder)[0].config


def main(_) -> int:
  if _STEP.value is not None:
    run_step(_STEP.value, Path(_SCRATCH.value), _DTYPE.value)
    return 0
  scratch = Path(tempfile.mkdtemp(dir=_SCRATCH.value))
  print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores, {_DTYPE.value}")
  try:
    for step in ("make", "load", "from_hf", "restore", "to_hf"):
      arguments = [f"--step={step}", f"--scratch={scratch}", f"--dtype={_DTYPE.value}"]
      subprocess.run([sys.executable, "-m", "benchmarks.convert_memory", *arguments], check=True)
    same = subprocess.run(["cmp", scratch / "source/model.safetensors", scratch / "back/model.safetensors"])
    print("back     " + ("byte for byte the same" if same.returncode == 0 else "DIFFERENT"))
    return same.returncode
  finally:
    shutil.rmtree(scratch)


if __name__ == "__main__":
  cli.run(main)
