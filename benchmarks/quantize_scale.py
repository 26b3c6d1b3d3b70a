"""Time and memory of a DocID index at scale, on made-up clustered vectors.

    taskset -c 0,1 python -m benchmarks.quantize_scale [--documents=300000] [--width=768] [--levels=4] [--codes=256]

The vectors (float16, mapped from a scratch file as a user's .npy would be): two layers of Gaussian clusters and noise,
1,000 x 40 centres. Prints the seconds of the fit, the encoding, the collisions and the measuring, the growth of peak
resident memory (VmHWM) over what the imports took, and the cores in use; compile time is in the seconds.
"""

import os
from pathlib import Path
import tempfile
import time

from absl import flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.docid.build import BuildOptions, fit_quantizer
from diffgr_jax.docid.collisions import in_collision, resolve
from diffgr_jax.docid.quantizer import relative_errors
from diffgr_jax.docid.vectors import read_vectors

_DOCUMENTS = flags.DEFINE_integer("documents", 300_000, "rows")
_WIDTH = flags.DEFINE_integer("width", 768, "columns")
_LEVELS = flags.DEFINE_integer("levels", 4, "of the quantiser")
_CODES = flags.DEFINE_integer("codes", 256, "of a level")
_METHOD = flags.DEFINE_enum("method", "residual_kmeans", ["residual_kmeans", "product"], "of quantising")


def made_up_vectors(path: Path, documents: int, width: int, seed: int = 0) -> None:
  """Writes a float16 matrix, a block at a time."""
  rng = np.random.default_rng(seed)
  coarse = rng.normal(size=(1000, width)).astype(np.float32)
  fine = 0.6 * rng.normal(size=(40, width)).astype(np.float32)
  out = np.lib.format.open_memmap(path, "w+", np.float16, (documents, width))
  for start in range(0, documents, 10_000):
    rows = min(10_000, documents - start)
    block = coarse[rng.integers(1000, size=rows)] + fine[rng.integers(40, size=rows)]
    block += 0.5 * rng.standard_normal((rows, width), dtype=np.float32)
    out[start : start + rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
  out.flush()


def peak_mib() -> float:
  status = Path("/proc/self/status").read_text()
  return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) / 1024


def main(_) -> None:
  options = BuildOptions(method=_METHOD.value, levels=_LEVELS.value, codes=_CODES.value)
  with tempfile.TemporaryDirectory() as scratch:
    path = Path(scratch) / "vectors.npy"
    made_up_vectors(path, _DOCUMENTS.value, _WIDTH.value)
    before, times = peak_mib(), [time.perf_counter()]
    vectors = read_vectors(path)
    quantizer = fit_quantizer(vectors, options)
    times.append(time.perf_counter())
    codes = quantizer.encode(vectors)
    times.append(time.perf_counter())
    costs = lambda rows: quantizer.last_level_costs(np.asarray(vectors[rows], np.float32), codes[rows])
    final, _ = resolve("optimal", codes, (options.codes,) * options.levels, costs=costs)
    times.append(time.perf_counter())
    errors = relative_errors(quantizer, vectors, codes)
    times.append(time.perf_counter())
    size = path.stat().st_size / 2**20
    fit, encode, collide, measure = np.diff(times)
    print(
      f"{_DOCUMENTS.value} x {_WIDTH.value} ({size:.0f} MiB mapped), {options.levels} x {options.codes}"
      f" {options.method}, {len(os.sched_getaffinity(0))} cores: fit {fit:.1f} s, encode {encode:.1f} s, collisions"
      f" {collide:.1f} s ({in_collision(codes)} -> {in_collision(final)}), measure {measure:.1f} s; error left"
      f" {', '.join(f'{error:.3f}' for error in errors)}; peak memory +{peak_mib() - before:.0f} MiB, mapped pages"
      " included"
    )


if __name__ == "__main__":
  cli.run(main)
