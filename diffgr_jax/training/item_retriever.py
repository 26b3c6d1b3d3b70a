"""The generative retriever of items: a small masked-diffusion model over semantic IDs, whose one pass ranks a shop.

    prompt  . . . BOS <d0_7><d1_2><d2_9> <d0_1><d1_4><d2_4> SEP     the codes of the history's last items, left-padded
    canvas  M M M                                                  one pass: log p of every level's codes
    score of an item = sum over levels of log p(its code)          ranked by rerank/retrievers.py, ModelRetriever

It is the DocID stage (stages/docid.py: masked-diffusion bound and document-level softmax) with histories as queries and
items as documents. Popular items are taken oftener, so nothing of a code's frequency is subtracted.

No leak. A model cannot forget one user's later items, as counts can. So it is trained on the histories that a split may
know, and training lists need `folds`: those of a fold are made by a model that has seen none of the fold's users.
Weights are kept in a folder, named by all that they follow from, so that a next stage does not train them again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import functools
import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.decoding.scoring import one_pass_scores
from diffgr_jax.diffusion.corruption import make_process
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser, CodeDenoiser
from diffgr_jax.models.params_file import read_params, write_params
from diffgr_jax.models.transformer import Params, init_params
from diffgr_jax.rerank.counts import History
from diffgr_jax.rerank.retrievers import QUIET_SECONDS, ModelRetriever
from diffgr_jax.stages.docid import DocIdStage
from diffgr_jax.training.optimizer import learning_rate_schedule, make_optimizer
from diffgr_jax.training.state import TrainState, train_step

GENERATIVE = "generative"  # config.retriever
_PAD, _BOS, _MASK, _SEP, _FIRST_CODE = range(5)  # of a vocabulary that has the codes of all levels besides
_ALL_ITEMS = 20_000  # of a shop, at most, that every row is compared with; of more, so many drawn ones


@dataclass(frozen=True)
class RetrieverRecipe:
  """The model and how it is trained.

  Attributes:
    history: items of a prompt, the last ones.
    d_model, n_layers, n_heads, d_ff: of the transformer.
    steps, batch_size, learning_rate: of AdamW, with a warm-up of a tenth and cosine decay.
    all_masked_fraction: of the rows, whose whole canvas is masked, as it is in retrieval.
  """

  history: int = 10
  d_model: int = 64
  n_layers: int = 2
  n_heads: int = 4
  d_ff: int = 192
  steps: int = 1000
  batch_size: int = 256
  learning_rate: float = 3e-3
  all_masked_fraction: float = 0.7


@dataclass(frozen=True, eq=False)
class ItemModel:
  """What of a shop's semantic IDs and a recipe the weights are for."""

  codes: Int[np.ndarray, "N L"]
  recipe: RetrieverRecipe = RetrieverRecipe()

  @property
  def size(self) -> int:
    """Codes a level."""
    return int(self.codes.max()) + 1

  @functools.cached_property
  def tokens(self) -> Int[np.ndarray, "N L"]:
    """The items' codes in the model's vocabulary."""
    return _FIRST_CODE + self.codes + np.arange(self.codes.shape[1]) * self.size

  @functools.cached_property
  def denoiser(self) -> CodeDenoiser:
    recipe, levels = self.recipe, self.codes.shape[1]
    model = TransformerConfig(
      vocab_size=_FIRST_CODE + levels * self.size,
      d_model=recipe.d_model,
      n_layers=recipe.n_layers,
      n_heads=recipe.n_heads,
      n_kv_heads=recipe.n_heads,
      head_dim=recipe.d_model // recipe.n_heads,
      d_ff=recipe.d_ff,
      qk_norm=True,
      token_types=1 + levels,
    )
    return CodeDenoiser(CanvasDenoiser(model, _PAD, slots=True), _MASK, _FIRST_CODE, self.size)

  @functools.cached_property
  def stage(self) -> DocIdStage:
    return DocIdStage(
      denoiser=self.denoiser,
      process=make_process("exact_count", all_masked_fraction=self.recipe.all_masked_fraction),
      mask_id=self.size,
      valid_size=self.size,
      document_weight=1.0,
      document_negatives=0 if len(self.codes) <= _ALL_ITEMS else _ALL_ITEMS,
    )

  def prompts(self, histories: Sequence[History]) -> Int[np.ndarray, "B P"]:
    """The prompts of histories, of one width."""
    levels = self.codes.shape[1]
    prompts = np.full((len(histories), 2 + self.recipe.history * levels), _PAD, np.int32)
    prompts[:, -1] = _SEP
    for row, history in zip(prompts, histories, strict=True):
      recent = self.tokens[list(history[-self.recipe.history :])].reshape(-1)
      row[-2 - len(recent) : -1] = [_BOS, *recent]
    return prompts

  def fit(self, histories: Sequence[History], seed: int) -> Params:
    """Trains on every place of the histories but the first of each.

    Raises:
      ValueError: no history has two items.
    """
    places = [(user, place) for user, history in enumerate(histories) for place in range(1, len(history))]
    if not places:
      raise ValueError("a generative retriever learns what follows what, and no history that it may know has two items")
    prompts = self.prompts([histories[user][:place] for user, place in places])
    targets = np.array([histories[user][place] for user, place in places], np.int32)
    recipe, rng = self.recipe, np.random.default_rng(seed)
    optimizer = _optimizer(recipe.learning_rate, recipe.steps)
    params = jax.jit(functools.partial(init_params, self.denoiser.config))(jax.random.key(seed))
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    shared = self._shared(np.bincount(targets, minlength=len(self.codes)) / len(targets))
    order = np.empty(0, np.int64)
    for _ in tqdm(range(recipe.steps), desc="generative retriever", delay=QUIET_SECONDS, leave=False):
      while len(order) < recipe.batch_size:
        order = np.concatenate([order, rng.permutation(len(places))])
      rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
      batch = {
        "prompt": prompts[rows],
        "docid": self.codes[targets[rows]],
        "doc_index": targets[rows],
        "asked": np.zeros(len(rows), bool),
      }
      state, _ = train_step(state, batch, shared, jnp.int32(seed), stage=self.stage, optimizer=optimizer)
    return state.params

  def _shared(self, share: Float[np.ndarray, "N"]) -> dict[str, Array]:
    """What the document-level term reads of the items."""
    return {
      "codes": jnp.asarray(self.codes),
      "scored": jnp.ones(self.codes.shape, bool),
      "log_frequency": jnp.zeros((self.codes.shape[1], self.size + 1)),
      "asked": jnp.ones(len(self.codes), bool),
      "share": jnp.asarray(share, jnp.float32),
    }

  def scores(self, params: Params, histories: Sequence[History]) -> Float[np.ndarray, "B N"]:
    """log p(item) of every item after each history, up to a constant of the row."""
    prompts, rows = self.prompts(histories), self.recipe.batch_size
    padded = np.pad(prompts, ((0, -len(prompts) % rows), (0, 0)), mode="edge")
    codes, scored = jnp.asarray(self.codes), jnp.ones(self.codes.shape, bool)
    banned = jnp.zeros(self.size + 1, bool)
    how = dict(denoise=self.denoiser, mask_id=self.size)
    made = [
      np.asarray(one_pass_scores(params, jnp.asarray(padded[start : start + rows]), codes, scored, banned, **how))
      for start in range(0, len(padded), rows)
    ]
    return np.concatenate(made)[: len(prompts)]


def generative(
  histories: Sequence[History],
  num_items: int,
  *,
  codes: Int[np.ndarray, "N L"],
  folder: Path,
  recipe: RetrieverRecipe = RetrieverRecipe(),  # noqa: B008 (frozen)
  seed: int = 0,
) -> ModelRetriever:
  """Trains a retriever on the histories, or reads the one that was trained on them.

  Args:
    histories: that it may learn from (rerank/candidates.py).
    num_items: of the shop.
    codes: the items' semantic IDs.
    folder: where weights are kept.
    recipe: the model, and how it is trained.
    seed: of every draw.

  Raises:
    ValueError: codes of another number of items, or histories to learn nothing from.
  """
  if len(codes) != num_items:
    raise ValueError(f"the shop has {num_items} items, and {len(codes)} semantic IDs are given")
  model = ItemModel(np.asarray(codes, np.int32), recipe)
  file = folder / f"{_named_by(histories, model, seed)}.safetensors"
  if file.exists():
    params, _ = read_params(file, model.denoiser.config)
  else:
    params = model.fit(histories, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_params(file, params)
  return ModelRetriever(GENERATIVE, functools.partial(model.scores, params), seed)


@functools.cache
def _optimizer(learning_rate: float, steps: int):
  """One object for all folds, so that their step compiles once."""
  schedule = learning_rate_schedule(learning_rate, warmup_steps=steps // 10, steps=steps)
  return make_optimizer(schedule, b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)


def _named_by(histories: Sequence[History], model: ItemModel, seed: int) -> str:
  """A name that is another one as soon as anything is that the weights follow from."""
  digest = hashlib.sha256(repr((seed, sorted(asdict(model.recipe).items()), model.codes.shape)).encode())
  digest.update(np.ascontiguousarray(model.codes).tobytes())
  digest.update(repr([tuple(map(int, history)) for history in histories]).encode())
  return digest.hexdigest()[:16]
