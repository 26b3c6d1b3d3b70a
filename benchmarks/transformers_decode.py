"""Autoregressive decoding by Hugging Face transformers: the shapes of configs/bench/decode.py, random weights.

    python -m benchmarks.transformers_decode --size=8b --prompt_length=2200 --new_tokens=160 --out=FILE

Needs torch and transformers on the machine (they are in no requirements file of ours). Qwen3 in bfloat16 on a GPU, in
float32 on a CPU; greedy, without a stop. Two rivals: `generate` as it comes (a cache that grows, eager kernels), and
with the static cache, which transformers compiles. As in `diffgr_jax.bench`, what counts is the time between the end
of the prompt (the first new token) and the last token; medians over rounds, compile time apart.
"""

import functools
import json
from pathlib import Path
import time

from absl import app, flags
import torch
import transformers

from configs.bench.decode import get_config
from diffgr_jax.evaluation.retrieval import results_record, typed_command

_SIZE = flags.DEFINE_string("size", "42m", "shapes, by name (configs/bench/decode.py)")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1"], "sequences decoded together")
_PROMPT = flags.DEFINE_integer("prompt_length", 64, "random tokens", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "a sequence", lower_bound=2)
_CACHES = flags.DEFINE_list("caches", ["dynamic", "static"], "dynamic: generate as it comes; static: compiled")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "counted runs of each", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "write a record of the figures to this file")


def _model(device: str) -> transformers.PreTrainedModel:
  size = get_config(f"size={_SIZE.value}")
  shape = transformers.Qwen3Config(
    vocab_size=size.vocab_size, hidden_size=size.d_model, num_hidden_layers=size.n_layers,
    num_attention_heads=size.n_heads, num_key_value_heads=size.n_kv_heads, head_dim=size.head_dim,
    intermediate_size=size.d_ff, rope_theta=1e6, tie_word_embeddings=True, max_position_embeddings=40_960,
  )  # fmt: skip
  torch.manual_seed(0)
  with torch.device(device):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    model = transformers.AutoModelForCausalLM.from_config(shape)
    torch.set_default_dtype(before)
  return model.eval()


def _seconds(model: transformers.PreTrainedModel, prompts: torch.Tensor, new_tokens: int, cache: str) -> float:
  """Of one call; the device is done at its end."""
  how = {"cache_implementation": "static"} if cache == "static" else {}
  begin = time.perf_counter()
  with torch.inference_mode():
    out = model.generate(
      prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=new_tokens,
      min_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None, **how,
    )  # fmt: skip
  if out.is_cuda:
    torch.cuda.synchronize()
  assert out.shape[1] == prompts.shape[1] + new_tokens, out.shape
  return time.perf_counter() - begin


def main(_) -> None:
  device = "cuda" if torch.cuda.is_available() else "cpu"
  model, length = _model(device), _NEW_TOKENS.value
  figures: dict[str, dict[str, float]] = {}
  for batch in map(int, _BATCH_SIZES.value):
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(5, model.config.vocab_size, (batch, _PROMPT.value), generator=generator).to(device)
    for cache in _CACHES.value:
      run = functools.partial(_seconds, model, prompts, cache=cache)
      try:
        cold = run(new_tokens=length)
        run(new_tokens=length)
        times = [(run(new_tokens=1), run(new_tokens=length)) for _ in range(_ROUNDS.value)]
      except Exception as error:
        print(f"transformers {cache}, batch {batch}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        continue
      rates = sorted(batch * (length - 1) / (whole - first) for first, whole in times)
      figures[f"batch {batch}, {cache} cache"] = {
        "tok/s": rates[len(rates) // 2], "low": rates[0], "high": rates[-1], "ms to first": 1e3 * times[0][0],
        "ms/sequence": 1e3 * sorted(whole for _, whole in times)[len(times) // 2], "first call s": cold,
      }  # fmt: skip
      print(f"transformers {cache}, batch {batch}: {figures[f'batch {batch}, {cache} cache']}", flush=True)
  settings = {
    "size": _SIZE.value, "prompt_length": _PROMPT.value, "new_tokens": length, "rounds": _ROUNDS.value,
    "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "dtype": str(model.dtype),
    "torch": torch.__version__, "transformers": transformers.__version__,
  }  # fmt: skip
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={"weights, prompts": 0},
    settings=settings,
    metrics={"decoding": figures},
  )
  if _OUT.value:
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
