"""Measures decoding: `python -m diffgr_jax.bench --config=configs/bench/decode.py --out=DIR`.

python -m diffgr_jax.bench --config=configs/bench/decode.py:size=tiny --out=workdir/bench
python -m diffgr_jax.bench --config=configs/bench/decode.py --config.batch_sizes=1,8 --config.new_tokens=128,
python -m diffgr_jax.bench --config=configs/bench/rerank.py:teacher=W/sft,student=W/cft --out=W/frontier

Autoregressive and block decoding of the same weights in one process, against what the machine can do. Writes
results.json, table.md and throughput.png. With configs/bench/rerank.py: a trained teacher and its block-parallel
students, speed beside quality; writes frontier.png.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from diffgr_jax import cli
from diffgr_jax.evaluation.bench import run_bench
from diffgr_jax.evaluation.rerank_bench import run_rerank_bench

_CONFIG = config_flags.DEFINE_config_file("config", None, "what to measure; FILE.py:key=value,...")
flags.mark_flag_as_required("config")
_OUT = flags.DEFINE_string("out", "workdir/bench", "where the results go")


def main(_) -> None:
  run = run_rerank_bench if _CONFIG.value.get("task") == "rerank" else run_bench
  run(_CONFIG.value, Path(_OUT.value))


if __name__ == "__main__":
  cli.run(main)
