"""Autoregressive decoding here against google-tunix's sampler: same weights, same prompts, in turn in one process.

    python3 -m venv /tmp/rival && /tmp/rival/bin/pip install -r benchmarks/requirements-tunix.txt
    JAX_PLATFORMS=cpu /tmp/rival/bin/python -m benchmarks.tunix_decode [--batch_sizes=1,8,32] [--new_tokens=128]

Both decode greedily, without a stop, and must produce the same tokens; the first call, which compiles, is left out.
"""

import functools
import json
from pathlib import Path
import time

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3 import model as qwen3

from configs.bench.decode import get_config
from diffgr_jax import cli
from diffgr_jax.decoding.autoregressive import decode_autoregressive
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import init_params

_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "8", "32"], "sequences decoded together")
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 128, "a sequence", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "counted runs of each", lower_bound=1)
_OUT = flags.DEFINE_string("out", None, "write a record of the figures to this file")
_SIZE = get_config("size=42m")


class _Numbers:
  """A tokenizer of numbers, which is what tunix's sampler wants in place of token ids."""

  def encode(self, text: str, **_) -> list[int]:
    return [int(token) for token in text.split()]

  def decode(self, tokens: list[int], **_) -> str:
    return " ".join(map(str, tokens))

  def bos_id(self) -> None:
    return None

  def eos_id(self) -> int:
    return 0

  def pad_id(self) -> int:
    return 0

  def dedup_bos_ids(self, tokens: list[int]) -> list[int]:
    return tokens


def _ours() -> tuple[TransformerConfig, dict]:
  sizes = {name: _SIZE[name] for name in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff")}
  config = TransformerConfig(
    **sizes, head_dim=_SIZE.head_dim, qk_norm=True, rope_theta=1e6, pattern="causal", alignment="shifted"
  )
  return config, init_params(config, jax.random.key(0))


def _theirs(config: TransformerConfig, params: dict) -> qwen3.Qwen3:
  """tunix's Qwen3 with our weights in it."""
  mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  with jax.set_mesh(mesh):
    model = qwen3.Qwen3(
      qwen3.ModelConfig(
        num_layers=config.n_layers, vocab_size=config.vocab_size, embed_dim=config.d_model, hidden_dim=config.d_ff,
        num_heads=config.n_heads, head_dim=config.head_dim, num_kv_heads=config.n_kv_heads, rope_theta=1_000_000,
        norm_eps=config.norm_epsilon, use_tied_embedding=True,
      ),
      rngs=nnx.Rngs(0),
    )  # fmt: skip
  width, depth = config.head_dim, config.d_model
  for i, layer in enumerate(model.layers):
    block = jax.tree.map(lambda x, i=i: jnp.asarray(np.asarray(x)[i]), params["blocks"])
    attention, mlp = block["attention"], block["mlp"]
    layer.attn.q_proj.w.value = attention["query"]["kernel"].reshape(depth, -1, width)
    layer.attn.k_proj.w.value = attention["key"]["kernel"].reshape(depth, -1, width)
    layer.attn.v_proj.w.value = attention["value"]["kernel"].reshape(depth, -1, width)
    layer.attn.o_proj.w.value = attention["out"]["kernel"].reshape(-1, width, depth)
    layer.attn.q_norm.w.value = attention["query_norm"]["scale"]
    layer.attn.k_norm.w.value = attention["key_norm"]["scale"]
    layer.input_layernorm.w.value = block["attention_norm"]["scale"]
    layer.post_attention_layernorm.w.value = block["mlp_norm"]["scale"]
    for name in ("gate", "up", "down"):
      getattr(layer.mlp, f"{name}_proj").kernel.value = mlp[name]["kernel"]
  model.embedder.input_embedding.value = jnp.asarray(params["embed"]["embedding"])
  model.final_norm.w.value = params["final_norm"]["scale"]
  return model


def _seconds(run) -> float:
  begin = time.perf_counter()
  run()
  return time.perf_counter() - begin


def main(_) -> None:
  config, params = _ours()
  prompt_length, new_tokens = _SIZE.prompt_length, _NEW_TOKENS.value
  cache = CacheConfig(prompt_length + new_tokens, config.n_layers, config.n_kv_heads, config.head_dim)
  sampler = Sampler(_theirs(config, params), _Numbers(), cache)
  laid_out = jax.jit(decoding_params, static_argnums=0)(config, params)
  banned, rows, metrics = np.arange(config.vocab_size) == 0, [], {}
  for batch in map(int, _BATCH_SIZES.value):
    prompts = np.random.default_rng(0).integers(5, config.vocab_size, (batch, prompt_length)).astype(np.int32)
    text = [" ".join(map(str, prompt)) for prompt in prompts]
    how = dict(max_generation_steps=new_tokens, max_prompt_length=prompt_length, eos_tokens=[config.vocab_size])
    rival = functools.partial(sampler, text, **how)
    valid, seeds = np.ones(prompts.shape, bool), np.arange(batch)
    decode = functools.partial(
      decode_autoregressive, laid_out, prompts, valid, seeds, banned, config=config, max_new_tokens=new_tokens, pad_id=0
    )
    ours = lambda decode=decode: jax.block_until_ready(decode())
    same = float(np.mean([(np.asarray(a) == b).mean() for a, b in zip(rival().tokens, ours().tokens, strict=True)]))
    times = np.array([[_seconds(rival), _seconds(ours)] for _ in range(_ROUNDS.value)])
    theirs_rate, our_rate = batch * new_tokens / np.median(times, axis=0)
    ratios = times[:, 0] / times[:, 1]
    figures = {
      "tunix tok/s": theirs_rate, "ours tok/s": our_rate, "ratio": float(np.median(ratios)),
      "ratio low": ratios.min(), "ratio high": ratios.max(), "tokens equal": same,
    }  # fmt: skip
    metrics[f"batch {batch}"] = {"greedy": figures}
    rows.append({"batch": batch, **figures})
  print(format_table(rows))
  if _OUT.value:
    settings = {"new_tokens": new_tokens, "prompt_length": prompt_length, "rounds": _ROUNDS.value}
    record = results_record(
      command=typed_command(), status="measured", seeds={"weights, prompts": 0}, settings=settings, metrics=metrics
    )
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  cli.run(main)
