"""DocID training and decoding on TPU slices: `--config=configs/pod/docid.py:size=8b,job=train`.

Qwen3's shapes over its vocabulary, and titles of up to 32 tokens; with `index=FILE.npz` learned DocIDs instead, of up
to 32 levels (rows for them are there in any case). `pretrained=DIR` starts from a Hugging Face folder; without it,
weights are random. docs/pods.md says which slices these were compiled for, with
`python -m diffgr_jax.preflight`.
"""

import ml_collections

from configs.docid import base

ARGUMENTS = ("size", "job", "path", "index", "pretrained", "steps", "seed")
# name: (d_model, n_layers, n_heads, n_kv_heads, d_ff)
SIZES = {
  "1b": (2048, 28, 16, 8, 6144),  # Qwen3-1.7B: 1.4B without its embeddings
  "8b": (4096, 36, 32, 8, 12288),  # Qwen3-8B
}
# (size, job): fsdp, tensor; what is left is data.
_MESHES = {("1b", "train"): (16, 1), ("8b", "train"): (256, 1), ("1b", "decode"): (1, 1), ("8b", "decode"): (1, 8)}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = base.parse_arguments(arg, ARGUMENTS)
  size, job = given.pop("size", "8b"), given.pop("job", "train")
  for name, value, allowed in (("size", size, SIZES), ("job", job, ("train", "decode"))):
    if value not in allowed:
      raise ValueError(f"--config=...:{name}={value}: {name} is one of {', '.join(allowed)}")
  index, pretrained = given.pop("index", ""), given.pop("pretrained", "")
  given = {"path": "corpus", "steps": "20000"} | given
  config = base.get_config(",".join(f"{key}={value}" for key, value in given.items()) + ",dataset=folder")
  with config.unlocked():
    config.split_case = False
    config.eval_splits = ()
    config.docid, config.docid_index = "codes" if index else "title", index
    config.docid_levels, config.docid_codes = 32, 256
    config.canvas_length = 32
    config.prompt_length = 224  # and a canvas of 32: 256 positions
    config.vocab_size = 151_936

    config.start, config.pretrained = ("pretrained", pretrained) if pretrained else ("random", "")
    config.slot_embeddings = False
    config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.d_ff = SIZES[size]
    config.head_dim = 128
    config.tie_embeddings = size == "1b"
    config.rope_theta = 1e6
    config.remat = "full"
    config.compute_dtype = "bfloat16"
    config.param_dtype = "float32" if job == "train" else "bfloat16"

    config.document_weight = 0.0  # the term needs all logits, and all documents at every step
    config.ce_chunk = 0 if index else 16_384  # codes have few logits
    config.batch_size = 1024
    config.learning_rate = 2e-5
    config.warmup_steps = 500
    config.eval_batch_size = 256
    fsdp, tensor = _MESHES[size, job]
    config.mesh = ml_collections.ConfigDict({"replica": 1, "data": -1, "fsdp": fsdp, "tensor": tensor, "sequence": 1})
  return config
