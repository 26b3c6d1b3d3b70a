"""What this machine can do: the costs that no decoder of given weights can go below.

A decoder's pass over m positions multiplies all weights with m vectors. On a machine whose memory is slow against its
arithmetic, m = 8 costs hardly more than m = 1; where it is not, parallel decoding has little to win. So the matrix
products alone are measured, at every m that a decoder uses, in the layout that the decoders use (models/inference.py):

    body(m)   the projections of all layers for m positions        head(n)   the unembedding of n of them

An autoregressive step of B rows costs at least body(B) + head(B). A block of m positions, k of them committed a pass,
takes s = m / k passes, and its clean keys must reach the cache: in the pass that opens the next block, or in one of
their own, whichever is cheaper,

    block(m, k, B) = s head(mB) + min(body(2mB) + (s - 1) body(mB), (s + 1) body(mB))

and m (body(B) + head(B)) / block(m, k, B) is the best speed-up that the products allow any exact block decoder here.
Attention to the cache is timed too: with it on both sides, the ceiling is what is left when nothing but products and
attention takes time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
import functools
import time

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from diffgr_jax.models import inference
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.inference import DecodingParams

_REPEATS = 5
_ROUNDS = 8  # inside one program, as decoders run: what it costs to start a program is not in a step


def timed(run: Callable[[], object], repeats: int = _REPEATS) -> float:
  """Median seconds of a call, after one that is not counted (it compiles)."""
  jax.block_until_ready(run())
  return float(np.median([seconds_of(run) for _ in range(repeats)]))


def seconds_of(run: Callable[[], object]) -> float:
  begin = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - begin


def bandwidth(megabytes: int = 0) -> float:
  """Bytes a second that a sum over an array far larger than the caches reads; 0: 256 MB on a CPU, 8 GB elsewhere."""
  megabytes = megabytes or (256 if jax.default_backend() == "cpu" else 8192)
  x = jnp.ones(megabytes * 250_000, jnp.float32)
  return x.nbytes / timed(functools.partial(jax.jit(jnp.sum), x))


def arithmetic(dtype: str, size: int = 0) -> float:
  """Floating-point operations a second of a square matrix product; size 0: 2048 on a CPU, 8192 elsewhere."""
  size = size or (2048 if jax.default_backend() == "cpu" else 8192)
  x = jax.random.normal(jax.random.key(0), (size, size), dtype)  # chips draw less power, and run faster, on constants
  return 2 * size**3 / timed(functools.partial(jax.jit(jnp.matmul), x, x))


@functools.partial(jax.jit, static_argnames="config")
def _body(config: TransformerConfig, params: DecodingParams, x: Float[Array, "D M"]) -> Float[Array, "D M"]:
  """`_ROUNDS` passes over every projection of every layer."""
  return jax.lax.fori_loop(0, _ROUNDS, lambda _, out: _projections(params, x + 1e-6 * jnp.tanh(out)), x)


def _projections(params: DecodingParams, x: Float[Array, "D M"]) -> Float[Array, "D M"]:
  """Every projection once, and nothing else but what makes the results needed."""
  for layer in params["blocks"]:
    attention, mlp = layer["attention"], layer["mlp"]
    multiply = lambda weights, x: jnp.einsum("oi,im->om", weights["kernel"].astype(x.dtype), x)
    query, *others = (multiply(attention[part], x) for part in ("query", "key", "value"))
    x = x + multiply(attention["out"], query) + 1e-6 * sum(other[:1] for other in others)
    wide = multiply(mlp["up"], x) * (multiply(mlp["gate"], x) if "gate" in mlp else 1.0)
    x = x + multiply(mlp["down"], wide)
  return x


@functools.partial(jax.jit, static_argnames="config")
def _head(config: TransformerConfig, params: DecodingParams, hidden: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
  """`_ROUNDS` times the logits, each written down whole."""

  def again(_, x):
    logits = jax.lax.optimization_barrier(inference.logits(config, params, x))
    return hidden + 1e-6 * logits[..., :1].astype(hidden.dtype)

  return jax.lax.fori_loop(0, _ROUNDS, again, hidden)


@jax.jit
def _attention(query, caches, mask) -> Float[Array, "B G Q K"]:
  """`_ROUNDS` times the attention of every layer, each to keys and values of its own: one layer's stay in a cache."""

  def again(_, x):
    for keys, values in caches:
      x = query + 1e-6 * inference.attend(x, keys, values, mask).sum()
    return x

  return jax.lax.fori_loop(0, _ROUNDS, again, query)


@dataclass
class Costs:
  """Seconds of the matrix products of one model: measured when first asked for, and again at every `sample`.

  What is compared with decoding is sampled between the decodings, since the speed of a shared machine drifts.
  """

  config: TransformerConfig
  params: DecodingParams
  runs: dict[tuple[str, int], Callable[[], object]] = field(default_factory=dict)
  measured: dict[tuple[str, int], list[float]] = field(default_factory=dict)  # of `_ROUNDS`

  def sample(self) -> None:
    """Times everything that was asked for so far once more."""
    for what, run in self.runs.items():
      self.measured[what].append(timed(run, 2))

  def body(self, positions: int) -> float:
    x = functools.partial(jnp.ones, (self.config.d_model, positions), self.config.compute_dtype)
    return self._median("body", positions, lambda: functools.partial(_body, self.config, self.params, x()))

  def head(self, positions: int) -> float:
    x = functools.partial(jnp.ones, (1, positions, self.config.d_model), self.config.compute_dtype)
    return self._median("head", positions, lambda: functools.partial(_head, self.config, self.params, x()))

  def attention(self, rows: int, slots: int, positions: int = 1) -> float:
    """Of so many tokens a row against a cache, in all layers."""
    config = self.config

    def prepare() -> Callable[[], Array]:
      draw = lambda *shape: jnp.ones(shape, config.compute_dtype)
      group, heads = config.n_kv_heads, config.n_heads // config.n_kv_heads
      keys = draw(rows * group, slots, config.head_dim)
      query = draw(rows, group, heads * positions, config.head_dim)
      caches = [(keys + layer, keys - layer) for layer in range(config.n_layers)]
      return functools.partial(_attention, query, caches, jnp.ones((rows, positions, slots), bool))

    return self._median(f"attention {slots} {positions}", rows, prepare)

  def _median(self, kind: str, size: int, prepare: Callable[[], Callable[[], object]]) -> float:
    if (kind, size) not in self.runs:
      self.runs[kind, size] = prepare()
      self.measured[kind, size] = [timed(self.runs[kind, size])]
    return float(np.median(self.measured[kind, size])) / _ROUNDS

  def autoregressive_step(self, rows: int) -> float:
    return self.body(rows) + self.head(rows)

  def block(self, size: int, passes: float, rows: int, *, commit: bool = True) -> float:
    """Seconds of one block; without `commit`, as if its clean keys came for nothing."""
    inside, m = self.body(size * rows), size * rows
    least = passes * (inside + self.head(m))
    if not commit:
      return least
    return least + min(self.body(2 * m) - inside, inside)

  def best_speedup(self, size: int, passes: float, rows: int, *, commit: bool = True) -> float:
    """Of block over autoregressive decoding, per token."""
    return size * self.autoregressive_step(rows) / self.block(size, passes, rows, commit=commit)

  def best_with_attention(self, size: int, passes: float, rows: int, slots: int) -> float:
    """The same with attention on both sides; the keys of a block that is committed are in the cheaper of two passes."""
    step = self.autoregressive_step(rows) + self.attention(rows, slots)
    block = self.block(size, passes, rows) + (passes + 1) * self.attention(rows, slots, size)
    return size * step / block
