"""Throughput of autoregressive and block decoding of the same weights: `--config=configs/bench/decode.py`.

`--config=configs/bench/decode.py:size=tiny` is over in seconds; single fields: `--config.batch_sizes=1,8`.
"""

import ml_collections

from configs.docid.base import parse_arguments

# name: (d_model, n_layers, n_heads, n_kv_heads, d_ff, vocab_size)
SIZES = {
  "tiny": (32, 2, 4, 2, 64, 256),
  "42m": (512, 8, 8, 4, 1536, 32_768),
  "0.6b": (1024, 28, 16, 8, 3072, 151_936),
  "8b": (4096, 36, 32, 8, 12_288, 151_936),
}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = parse_arguments(arg, ("size", "checkpoint"))
  size = given.get("size", "42m")
  if size not in SIZES:
    raise ValueError(f"--config=...:size={size}: size is one of {', '.join(SIZES)}")
  tiny = size == "tiny"
  config = ml_collections.ConfigDict()
  config.seed = 0

  # What decodes: random weights of Qwen3's shape, or a checkpoint that `convert --from_hf` made.
  config.checkpoint = given.get("checkpoint", "")  # a folder; "": random weights of the sizes below
  config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.d_ff, config.vocab_size = SIZES[size]
  config.head_dim = 128 if size in ("0.6b", "8b") else config.d_model // config.n_heads
  config.dtype = "bfloat16" if size in ("0.6b", "8b") else "float32"  # float32 | bfloat16, weights and computation

  # What is decoded. Every combination of these is a case; a block size that a number of tokens exceeds is left out.
  config.prompt_length = 8 if tiny else 64  # random tokens
  config.new_tokens = (96,) if tiny else (128,)
  config.batch_sizes = (1, 2) if tiny else (1, 8, 32)
  config.block_sizes = (4, 8) if tiny else (4, 8, 16, 32)
  config.tokens_per_forward = (4,) if tiny else (4, 8)  # set by schedule: what random weights can be asked for
  config.thresholds = ()  # of the threshold policy: what a trained checkpoint achieves; (0.9,) adds cases
  config.mask_id = -1  # of a checkpoint whose config names none; -1: what it names, random weights: the last row

  # How it is measured: cases in turn, round after round.
  config.rounds = 5
  config.most_seconds = 900.0  # no new round is begun later than this
  return config.lock()
