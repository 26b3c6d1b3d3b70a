"""The reference attention as training runs it: forward and backward, against `jax.nn.dot_product_attention`.

    python -m benchmarks.attention [--rounds=10]

One line of JSON a case: milliseconds (median) of each way, in turn in one process, and the largest difference of their
gradients. Shapes are those of a re-ranker's rows (SFT, CFT, mid-training) and of a DocID canvas.
"""

from collections.abc import Callable
import functools
import json
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp

from diffgr_jax import cli
from diffgr_jax.models.attention import (
  Layout,
  attend,
  attend_in_order,
  attend_two_stream,
  attention_mask,
  padded_layout,
)

_ROUNDS = flags.DEFINE_integer("rounds", 10, "timed calls of each way", lower_bound=1)
_BLOCK = 32
# name: pattern, rows, noisy tokens before the row, length, heads, width
_CASES = {
  "sft": ("causal", 4, 0, 576, 4, 32),
  "cft": ("two_stream", 4, 288, 608, 4, 32),
  "mid-training": ("causal", 16, 0, 128, 4, 32),
  "docid": ("bidirectional", 32, 0, 80, 6, 64),
}

Way = Callable[..., jax.Array]


def main(_) -> None:
  for name, (pattern, rows, noisy, length, heads, width) in _CASES.items():
    layout = _layout(rows, noisy, length)
    keys = jax.random.split(jax.random.key(0), 3)
    arrays = [jax.random.normal(key, (rows, noisy + length, heads, width)) for key in keys]
    gradients, seconds = {}, {}
    ways = {
      way: jax.jit(jax.grad(_total(mix), argnums=(0, 1, 2))) for way, mix in _ways(pattern, layout, noisy).items()
    }
    for way, gradient in ways.items():
      gradients[way], seconds[way] = jax.block_until_ready(gradient(*arrays)), []
    for _ in range(_ROUNDS.value):
      for way, gradient in ways.items():
        began = time.perf_counter()
        jax.block_until_ready(gradient(*arrays))
        seconds[way].append(time.perf_counter() - began)
    off = lambda a, b: max(float(jnp.abs(x - y).max()) for x, y in zip(a, b, strict=True))
    record = {"case": name, "status": "measured"}
    record |= {f"{way} ms": round(1e3 * statistics.median(own), 1) for way, own in seconds.items()}
    first = next(iter(gradients.values()))
    print(json.dumps(record | {"largest difference": max(off(first, own) for own in gradients.values())}), flush=True)


def _layout(rows: int, noisy: int, length: int) -> Layout:
  """Whole rows; before them, where they are two streams, the last blocks of the row as noisy ones."""
  clean = padded_layout(jnp.ones((rows, length), bool))
  if not noisy:
    return clean
  join = lambda x: jnp.concatenate([x[:, -noisy:], x], axis=1)
  stream = jnp.concatenate([jnp.ones((rows, noisy), jnp.int32), clean.stream], axis=1)
  return Layout(join(clean.position), join(clean.segment), stream)


def _ways(pattern: str, layout: Layout, noisy: int) -> dict[str, Way]:
  mask = attention_mask(pattern, layout, layout, _BLOCK)
  ways: dict[str, Way] = {
    "jax.nn.dot_product_attention": lambda *x: jax.nn.dot_product_attention(*x, mask=mask[:, None]),
    "dense": functools.partial(attend, mask=mask),
  }
  if pattern == "causal":
    ways["in order"] = functools.partial(attend_in_order, mask=mask)
  if noisy:
    ways["two streams"] = functools.partial(attend_two_stream, layout=layout, noisy=noisy, block_size=_BLOCK)
  return ways


def _total(mix: Way) -> Way:
  return lambda *arrays: (mix(*arrays) ** 2).sum()


if __name__ == "__main__":
  cli.run(main)
