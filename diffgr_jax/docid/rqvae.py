"""RQ-VAE: residual quantisation in the latent space of an autoencoder (arXiv 2203.01941; DocIDs: TIGER, 2305.05065).

    x --encoder--> z --residual quantisation--> zq = c0 + ... + c(L-1) --decoder--> x'
                   '------------ gradient goes straight past, or turned ----------'

    loss       |x - x'|^2 + commitment * sum over levels of |r_l - c_l|^2       (r_l: what level l has to express)
    codebooks  exponential moving averages of the r_l that chose each code (van den Oord et al., 2017, appendix A.1),
               started by residual k-means; no gradient
    dead code  one whose moving count falls below `dead_share` of the mean count takes a random r_l of the batch

The estimator of the gradient through the quantisation is `straight_through` (the identity) or `rotation`: the rotation
and scaling that carry z to zq, held constant (Fifty et al., arXiv 2410.06424).
"""

from collections.abc import Iterator
from dataclasses import dataclass
import functools
from typing import Any, ClassVar

from flax import struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped
import numpy as np
import optax
from tqdm import tqdm

from diffgr_jax.docid.quantizer import Arrays, check_width
from diffgr_jax.docid.residual_quantizer import (
  POINTS_PER_CODE,
  fit_codebooks,
  quantise,
  residual_costs,
  sum_of_codes,
)
from diffgr_jax.docid.vectors import QUIET_SECONDS, chunks, mean_and_variance, sample_rows

Layers = list[dict[str, Any]]  # kernel [in, out] and bias [out] of each layer
ESTIMATORS = ("straight_through", "rotation")


@dataclass(frozen=True)
class RqvaeOptions:
  """How an RQ-VAE is shaped and trained."""

  latent: int = 64
  hidden: tuple[int, ...] = (512, 256)  # widths of the encoder's layers; the decoder's are the same backwards
  steps: int = 2000
  batch: int = 1024
  learning_rate: float = 1e-3
  weight_decay: float = 1e-4
  commitment: float = 0.25
  decay: float = 0.99  # of the moving averages, per step
  dead_share: float = 0.05  # of the mean count
  estimator: str = "straight_through"

  def __post_init__(self):
    if self.estimator not in ESTIMATORS:
      raise ValueError(f"the estimator is one of {', '.join(ESTIMATORS)}, not {self.estimator!r}")
    for name in ("latent", "steps", "batch"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name} is at least 1, not {getattr(self, name)}")
    for name in ("decay", "dead_share"):
      if not 0.0 <= getattr(self, name) < 1.0:
        raise ValueError(f"{name} is in [0, 1), not {getattr(self, name)}")
    if self.learning_rate <= 0 or min(self.weight_decay, self.commitment) < 0:
      raise ValueError("learning_rate is above 0, weight_decay and commitment are not below it")


@dataclass(frozen=True, eq=False)
class Rqvae:
  """A trained RQ-VAE. Inputs are centred and scaled to unit variance a coordinate before the encoder."""

  kind: ClassVar[str] = "rqvae"
  codebooks: Float[np.ndarray, "L K d"]
  encoder: tuple[dict[str, np.ndarray], ...]
  decoder: tuple[dict[str, np.ndarray], ...]
  mean: Float[np.ndarray, "D"]
  scale: Float[np.ndarray, ""]  # standard deviation of a coordinate

  @property
  def levels(self) -> int:
    return self.codebooks.shape[0]

  @property
  def codes(self) -> int:
    return self.codebooks.shape[1]

  @property
  def width(self) -> int:
    return len(self.mean)

  def latents(self, vectors: Float[np.ndarray, "B D"]) -> Float[Array, "B d"]:
    return _mlp(list(self.encoder), (vectors - self.mean) / self.scale)

  def encode(self, vectors: Shaped[np.ndarray, "N D"]) -> Int[np.ndarray, "N L"]:
    check_width(self, vectors)
    codebooks = jnp.asarray(self.codebooks)
    codes = np.empty((len(vectors), self.levels), np.int32)
    for rows, block in chunks(vectors, label="encoding"):
      codes[rows] = np.asarray(quantise(codebooks, self.latents(block))[0])[: rows.stop - rows.start]
    return codes

  def decode(self, codes: Int[np.ndarray, "N l"]) -> Float[np.ndarray, "N D"]:
    decoded = np.empty((len(codes), self.width), np.float32)
    for rows, block in chunks(sum_of_codes(self.codebooks, codes)):
      output = np.asarray(_mlp(list(self.decoder), block))[: rows.stop - rows.start]
      decoded[rows] = output * self.scale + self.mean
    return decoded

  def last_level_costs(
    self, vectors: Shaped[np.ndarray, "N D"], codes: Int[np.ndarray, "N L"]
  ) -> Float[np.ndarray, "N K"]:
    check_width(self, vectors)
    costs = np.empty((len(vectors), self.codes), np.float32)
    for rows, block in chunks(vectors):
      latents = np.asarray(self.latents(block))[: rows.stop - rows.start]
      costs[rows] = residual_costs(self.codebooks, latents, codes[rows])
    return costs

  def arrays(self) -> Arrays:
    named = {"codebooks": self.codebooks, "mean": self.mean, "scale": self.scale}
    for part, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
      named |= {f"{part}_{n}_{name}": value for n, layer in enumerate(layers) for name, value in layer.items()}
    return named

  @classmethod
  def from_arrays(cls, arrays: Arrays) -> "Rqvae":
    layers = lambda part: tuple(
      {name: arrays[f"{part}_{n}_{name}"] for name in ("kernel", "bias")}
      for n in range(sum(key.startswith(part) and key.endswith("kernel") for key in arrays))
    )
    scale = arrays["scale"].reshape(())  # older files hold it as [1]
    return cls(arrays["codebooks"], layers("encoder"), layers("decoder"), arrays["mean"], scale)


@struct.dataclass
class TrainState:
  """What a training step changes."""

  params: Any  # the layers of the encoder and the decoder
  opt_state: Any
  counts: Float[Array, "L K"]  # moving averages: how often a code is chosen in a batch
  sums: Float[Array, "L K d"]  # ... and the sum of what chose it

  @property
  def codebooks(self) -> Float[Array, "L K d"]:
    return self.sums / self.counts[:, :, None]


def fit_rqvae(
  vectors: Shaped[np.ndarray, "N D"], levels: int, codes: int, *, seed: int = 0, options: RqvaeOptions | None = None
) -> Rqvae:
  """Trains an RQ-VAE on all vectors, read in random batches.

  Args:
    vectors: finite floats, in memory or mapped.
    levels: L.
    codes: K, at most N.
    seed: decides the weights, the k-means starts and the order of the vectors.
    options: its shape and its training.

  Raises:
    ValueError: no level, more codes than vectors, or a loss that is not finite.
  """
  if levels < 1:
    raise ValueError(f"a quantiser has at least 1 level, not {levels}")
  options = options or RqvaeOptions()
  mean, variance = mean_and_variance(vectors)
  scale = np.sqrt(np.maximum(np.float32(variance / len(mean)), np.float32(1e-12)))
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(options.learning_rate, options.steps), weight_decay=options.weight_decay
  )
  key = jax.random.key(seed)
  state = _start(key, vectors, mean, scale, levels, codes, optimizer, options, seed)
  batches = _batches(vectors, min(options.batch, len(vectors)), seed)
  pending = None
  with tqdm(total=options.steps, unit="step", desc="RQ-VAE", delay=QUIET_SECONDS, leave=False) as bar:
    for step in range(options.steps):
      state, error = train_step(
        state, next(batches), mean, scale, jax.random.fold_in(key, step), optimizer=optimizer, options=options
      )
      if pending is not None and step % 50 == 0:  # one step late, as the training loop does
        bar.set_postfix(error=f"{_finite(float(pending), step):.3f}", refresh=False)
      pending = error
      bar.update()
  assert pending is not None
  _finite(float(pending), options.steps)
  params = jax.tree.map(np.asarray, state.params)
  return Rqvae(np.asarray(state.codebooks), tuple(params["encoder"]), tuple(params["decoder"]), mean, np.asarray(scale))


@functools.partial(jax.jit, static_argnames=("optimizer", "options"), donate_argnames="state")
def train_step(
  state: TrainState,
  vectors: Float[np.ndarray, "B D"] | Float[Array, "B D"],
  mean: Float[np.ndarray, "D"] | Float[Array, "D"],
  scale: Shaped[np.ndarray, ""] | Float[Array, ""] | np.floating,
  key: Key[Array, ""],
  *,
  optimizer: optax.GradientTransformation,
  options: RqvaeOptions,
) -> tuple[TrainState, Float[Array, ""]]:
  """One step on a batch: gradients for the two networks, moving averages for the codebooks.

  Returns:
    The new state, and the reconstruction error as a share of the variance.
  """
  inputs = (jnp.asarray(vectors) - mean[None, :]) / scale
  codebooks = state.codebooks

  def loss(params):
    latents = _mlp(params["encoder"], inputs)
    codes, residuals = quantise(codebooks, jax.lax.stop_gradient(latents))
    chosen = jax.vmap(lambda codebook, code: codebook[code])(codebooks, codes.T)
    output = _mlp(params["decoder"], carry_gradient(latents, chosen.sum(axis=0), options.estimator))
    reconstruction = jnp.mean(jnp.sum((inputs - output) ** 2, axis=1))
    # Up to and with level l, what was chosen stands still: the gradient of each level's term reaches z whole.
    distance = latents[None] - jnp.cumsum(chosen, axis=0)
    commitment = jnp.sum(jnp.mean(jnp.sum(distance**2, axis=2), axis=1))
    return reconstruction + options.commitment * commitment, (reconstruction, codes, residuals)

  grads, (reconstruction, codes, residuals) = jax.grad(loss, has_aux=True)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  counts, sums = _moving_averages(state, codes, residuals, key, options)
  params = optax.apply_updates(state.params, updates)
  return TrainState(params, opt_state, counts, sums), reconstruction / inputs.shape[1]


def carry_gradient(latents: Float[Array, "B d"], quantised: Float[Array, "B d"], estimator: str) -> Float[Array, "B d"]:
  """The value of `quantised`, its gradient to `latents` the identity, or the rotation that carries one to the other."""
  if estimator == "straight_through":
    return latents + jax.lax.stop_gradient(quantised - latents)
  length, goal = (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-6 for x in (latents, quantised))
  source, target = latents / length, quantised / goal
  middle = source + target
  middle = middle / (jnp.linalg.norm(middle, axis=1, keepdims=True) + 1e-6)
  source, target, middle, stretch = jax.lax.stop_gradient((source, target, middle, goal / length))
  along = lambda direction: jnp.sum(latents * direction, axis=1, keepdims=True)
  turned = stretch * (latents - 2.0 * along(middle) * middle + 2.0 * along(source) * target)
  return turned + jax.lax.stop_gradient(quantised - turned)  # what rounding left


def _moving_averages(
  state: TrainState,
  codes: Int[Array, "B L"],
  residuals: Float[Array, "L B d"],
  key: Key[Array, ""],
  options: RqvaeOptions,
) -> tuple[Float[Array, "L K"], Float[Array, "L K d"]]:
  """The codebooks' moving counts and sums after a batch; dead codes start again at random residuals of it."""
  levels, size, _ = state.sums.shape
  one_level = lambda code, rows: (
    jnp.zeros(size).at[code].add(1.0),
    jnp.zeros((size, rows.shape[1])).at[code].add(rows),
  )
  counts, sums = jax.vmap(one_level)(codes.T, residuals)
  counts = options.decay * state.counts + (1 - options.decay) * counts
  sums = options.decay * state.sums + (1 - options.decay) * sums
  usual = len(codes) / size
  dead = counts < options.dead_share * usual
  rows = jax.random.randint(key, (levels, size), 0, len(codes))
  fresh = jax.vmap(lambda residual, row: residual[row])(residuals, rows)
  return jnp.where(dead, usual, counts), jnp.where(dead[:, :, None], usual * fresh, sums)


# --- start ---


def _start(key, vectors, mean, scale, levels, codes, optimizer, options: RqvaeOptions, seed: int) -> TrainState:
  """Random networks, and codebooks by residual k-means of what the encoder makes of a sample."""
  widths = [len(mean), *options.hidden, options.latent]
  encoder = _random_layers(jax.random.fold_in(key, 1 << 30), widths)
  decoder = _random_layers(jax.random.fold_in(key, (1 << 30) + 1), widths[::-1])
  sample = (sample_rows(vectors, POINTS_PER_CODE // 4 * codes, seed) - mean) / scale
  latents = np.asarray(_mlp(encoder, sample))
  codebooks = jnp.asarray(fit_codebooks(latents, levels, codes, seed=seed, iterations=5))
  params = {"encoder": encoder, "decoder": decoder}
  counts = jnp.full((levels, codes), min(options.batch, len(vectors)) / codes)
  return TrainState(params, optimizer.init(params), counts, codebooks * counts[:, :, None])


def _random_layers(key: Key[Array, ""], widths: list[int]) -> Layers:
  keys = jax.random.split(key, len(widths) - 1)
  return [
    {"kernel": jax.random.normal(k, (i, o)) * jnp.sqrt(2.0 / (i + o)), "bias": jnp.zeros(o)}
    for k, i, o in zip(keys, widths, widths[1:], strict=False)
  ]


@jax.jit
def _mlp(layers: Layers, inputs: Array | np.ndarray) -> Array:
  """Dense layers with GELU between them."""
  hidden = jnp.asarray(inputs, jnp.float32)
  for n, layer in enumerate(layers):
    hidden = jnp.dot(hidden if n == 0 else jax.nn.gelu(hidden), layer["kernel"]) + layer["bias"][None, :]
  return hidden


def _batches(vectors: Shaped[np.ndarray, "N D"], size: int, seed: int) -> Iterator[Float[np.ndarray, "{size} D"]]:
  """Random batches without end; every epoch has an order of its own, and leaves out the rows that fill no batch."""
  rng = np.random.default_rng(seed)
  while True:
    order = rng.permutation(len(vectors))
    for start in range(0, len(order) - size + 1, size):
      yield np.asarray(vectors[np.sort(order[start : start + size])], np.float32)


def _finite(error: float, step: int) -> float:
  if not np.isfinite(error):
    raise ValueError(f"the RQ-VAE's loss is {error} by step {step}: lower --learning_rate")
  return error
