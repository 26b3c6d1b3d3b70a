"""Compiles Splash with each of our patterns for TPU chips that are not there: forward and backward, on a mesh.

    python -m benchmarks.splash_compile [--topologies=v5e:2x2,v5p:2x2x1,v6e:2x2]

One line of JSON a chip and pattern: seconds of compilation, how many kernels of Splash the program has, and the bytes
that a chip needs. Packed rows of 2,048 tokens (two streams of 1,024), bfloat16, 8 heads of 128 on 4 of keys, blocks of
32; rows split by fsdp=2, heads by tensor=2. Needs libtpu (diffgr_jax/parallel/aot.py), and no TPU.
"""

import json
import sys
import time

from absl import flags
import jax
import jax.numpy as jnp

from diffgr_jax import cli
from diffgr_jax.models.attention import Layout, two_stream_layout
from diffgr_jax.models.kernels import splash
from diffgr_jax.parallel import aot
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, partition_spec

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"], "slices of four chips")
_PATTERNS = ("causal", "bidirectional", "block_causal", "two_stream")
_ROWS, _LENGTH, _HEADS, _KV_HEADS, _WIDTH, _BLOCK = 8, 2048, 8, 4, 128, 32
_KERNEL = 'custom_call_target="tpu_custom_call"'


def main(_) -> None:
  aot.prepare_environment()
  failed = False
  for topology in _TOPOLOGIES.value:
    mesh = make_mesh({"fsdp": 2, "tensor": 2}, aot.slice_devices(topology))
    for pattern in _PATTERNS:
      shapes = aot.with_shardings(_shapes(pattern), _places(mesh))
      began = time.perf_counter()
      with jax.set_mesh(mesh):
        compiled = aot.compile_for(lambda pattern=pattern, shapes=shapes: jax.jit(_gradient(pattern)).lower(*shapes))
      kernels = compiled.text.count(_KERNEL)
      failed |= not kernels
      line = {"topology": topology, "pattern": pattern, "status": "compiled", "kernels": kernels}
      line |= {"seconds": round(time.perf_counter() - began, 1), "MiB": round(compiled.peak / 2**20, 1)}
      print(json.dumps(line), flush=True)
  sys.exit(int(failed))


def _gradient(pattern: str):
  """Output and gradients of a pattern's attention; layouts are arguments, so packing is not known beforehand."""

  def total(query, key, value, position, segment):
    clean = Layout(position, segment, jnp.zeros_like(segment))
    layout = two_stream_layout(clean) if pattern == "two_stream" else clean
    out = splash(query, key, value, layout=layout, pattern=pattern, block_size=_BLOCK, rules=TRAIN_RULES)
    return (out.astype(jnp.float32) ** 2).sum()

  return jax.value_and_grad(total, argnums=(0, 1, 2))


def _shapes(pattern: str):
  clean = _LENGTH // 2 if pattern == "two_stream" else _LENGTH
  array = lambda heads: jax.ShapeDtypeStruct((_ROWS, _LENGTH, heads, _WIDTH), jnp.bfloat16)
  layout = jax.ShapeDtypeStruct((_ROWS, clean), jnp.int32)
  return array(_HEADS), array(_KV_HEADS), array(_KV_HEADS), layout, layout


def _places(mesh):
  of = lambda *axes: jax.sharding.NamedSharding(mesh, partition_spec(axes, dict(TRAIN_RULES)))
  keys = of("batch", None, "kv_heads", None)
  return of("batch", "length", "heads", None), keys, keys, of("batch", "length"), of("batch", "length")


if __name__ == "__main__":
  cli.run(main)
