"""Low-rank adapters (LoRA, arXiv 2106.09685): a frozen projection W and a small product that is trained beside it.

    y = x W + (alpha / rank) (x A) B        A: [in, rank], drawn; B: [rank, out], zero: at first, nothing is added

`config.lora_rank` and `config.lora_targets` say where. A and B are leaves `lora_in` and `lora_out` beside the kernel,
so they travel, lie on the mesh and are saved with the other parameters. Only they have gradients and optimizer state
(training/state.py). `merge` makes W + (alpha / rank) A B of them: what decoders with a cache run, and what is exported.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffgr_jax.models.config import TransformerConfig

Params = dict[str, Any]
NAMES = ("lora_in", "lora_out")


class LoraLinear(nnx.Linear):
  """A projection with an adapter beside it."""

  def __init__(self, config: TransformerConfig, inputs: int, outputs: int, axes: Any, *, rngs: nnx.Rngs, **how: Any):
    super().__init__(inputs, outputs, rngs=rngs, **how)
    rank, dtype = config.lora_rank, config.param_dtype
    draw = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
    self.adapter_scale = scale(config)
    self.lora_in = nnx.Param(draw(rngs.params(), (inputs, rank), jnp.dtype(dtype)), axes=(axes[0], "rank"))
    self.lora_out = nnx.Param(jnp.zeros((rank, outputs), dtype), axes=("rank", axes[1]))

  def __call__(self, inputs: Float[Array, "*B I"], out_sharding: Any = None) -> Float[Array, "*B O"]:
    matrix = lambda weight: weight.get_value().astype(self.dtype)
    added = (inputs.astype(self.dtype) @ matrix(self.lora_in)) @ matrix(self.lora_out)
    return super().__call__(inputs, out_sharding) + self.adapter_scale * added


def scale(config: TransformerConfig) -> float:
  return config.lora_alpha / config.lora_rank


def without_adapters(config: TransformerConfig) -> TransformerConfig:
  """The config of the base model, and of the merged one."""
  return dataclasses.replace(config, lora_rank=0, lora_alpha=TransformerConfig.lora_alpha, lora_targets=())


def split_adapters(params: Params) -> tuple[Params, Params]:
  """The adapters of a tree of parameters (or of anything of their form), and the rest of it."""
  adapters, base = {}, {}
  for name, value in params.items():
    if isinstance(value, dict):
      inside, outside = split_adapters(value)
      adapters |= {name: inside} if inside else {}
      base |= {name: outside} if outside else {}
    else:
      (adapters if name in NAMES else base)[name] = value
  return adapters, base


def join(base: Params, adapters: Params) -> Params:
  """One tree of both: `split_adapters`, undone."""
  both = dict(base)
  for name, value in adapters.items():
    both[name] = join(both.get(name, {}), value) if isinstance(value, dict) else value
  return both


def trained_part(config: TransformerConfig, params: Params) -> Params:
  """What a training step changes: all parameters, or the adapters where the model has them."""
  return split_adapters(params)[0] if config.lora_rank else params


def with_trained(config: TransformerConfig, params: Params, trained: Params) -> Params:
  """The parameters with another trained part."""
  return join(split_adapters(params)[1], trained) if config.lora_rank else trained


def merge(config: TransformerConfig, params: Params) -> Params:
  """The parameters of the base model with the adapters in its kernels, in the kernels' dtype.

  Computed in float32; `without_adapters(config)` is the model they belong to.
  """
  if not config.lora_rank:
    return params

  def merged(node: Params) -> Params:
    if "lora_in" in node:
      rest = {name: value for name, value in node.items() if name not in NAMES}
      wide = [jnp.asarray(node[name], jnp.float32) for name in NAMES]
      kernel = node["kernel"].astype(jnp.float32) + scale(config) * jnp.matmul(
        wide[0], wide[1], precision=jax.lax.Precision.HIGHEST
      )
      return rest | {"kernel": kernel.astype(node["kernel"].dtype)}
    return {name: merged(value) if isinstance(value, dict) else value for name, value in node.items()}

  return merged(params)
