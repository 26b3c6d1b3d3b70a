"""Boosted trees on the same evidence that re-rankers are shown: the honest rival (LightGBM's lambdarank).

    candidate --features_of--> its place with the retriever, its evidence, and the same beside the list's best
    training lists --fit--> trees, each setting stopped early on valid; the setting best on valid is kept

The features know no item: nothing that is learned of one item's id or title, only what its evidence counts. With
`worded` they read no more of the evidence than a prompt says: the bucket of each number (rerank/wording.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
import itertools
import os
from typing import Any

from jaxtyping import Float
import numpy as np
from tqdm import tqdm

from diffgr_jax.evaluation.rerank import order_by_scores, ranking_metrics
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.rerank.retrievers import QUIET_SECONDS
from diffgr_jax.rerank.wording import COUNTS, POPULARITIES, SIMILARITIES

FEATURES = (
  "place", "followed", "preceded", "supporters", "age of the first supporter", "age of the latest supporter",
  "popularity", "same brand", "same category", "similarity", "history",
  "followed last", "directly", "directly last",
)  # fmt: skip
_WORDED = {
  "followed": COUNTS, "preceded": COUNTS, "popularity": POPULARITIES, "same brand": COUNTS, "same category": COUNTS,
  "similarity": SIMILARITIES, "followed last": COUNTS, "directly": COUNTS, "directly last": COUNTS,
}  # fmt: skip
_RELATIVE = (
  "followed", "preceded", "supporters", "popularity", "same brand", "same category", "similarity", "followed last",
  "directly", "directly last",
)  # fmt: skip
SETTINGS = {"num_leaves": (7, 15, 31), "min_data_in_leaf": (100,), "learning_rate": (0.05,)}
_ROUNDS, _PATIENCE = 1000, 50
_CHOSEN_BY = "NDCG@3"


@dataclass(frozen=True, eq=False)
class Trees:
  """Fitted trees, how they were chosen, and what each setting reached on valid."""

  booster: Any  # lightgbm.Booster
  settings: dict[str, Any]
  tried: list[dict[str, Any]]
  worded: bool = False

  def scores(self, tasks: Sequence[RankingTask]) -> list[Float[np.ndarray, "_"]]:
    """A score of each list's candidates, the greater the better."""
    features = [features_of(task, self.worded) for task in tasks]
    scores = np.asarray(self.booster.predict(np.concatenate(features)))
    return np.split(scores, np.cumsum([len(own) for own in features])[:-1])

  def rank(self, tasks: Sequence[RankingTask]) -> list[tuple[int, ...]]:
    """Each list's candidates, best first."""
    return order_by_scores(tasks, self.scores(tasks))


def fit_trees(
  train: Sequence[RankingTask],
  valid: Sequence[RankingTask],
  seed: int = 0,
  settings: dict[str, tuple] | None = None,
  *,
  worded: bool = False,
) -> Trees:
  """Fits trees of every setting on the training lists and keeps those with the best NDCG@3 on valid.

  Args:
    train: lists to learn from.
    valid: lists that decide when to stop, and which setting is kept.
    seed: of LightGBM.
    settings: values of LightGBM's parameters to try in all combinations; None: `SETTINGS`.
    worded: whether the features are the evidence as a prompt words it.

  Raises:
    ValueError: no lists to learn from or to choose by.
  """
  if not train or not valid:
    raise ValueError(f"trees need lists to learn from and to choose by, not {len(train)} and {len(valid)}")
  grid = SETTINGS if settings is None else settings
  learned = _dataset(train, seed, worded)
  chosen = _dataset(valid, seed, worded, reference=learned)
  best: Trees | None = None
  reached, tried = -1.0, []
  combinations = list(itertools.product(*grid.values()))
  for values in tqdm(combinations, desc="boosted trees", unit="setting", delay=QUIET_SECONDS, leave=False):
    own = dict(zip(grid, values, strict=True))
    booster = _lightgbm().train(
      _parameters(seed) | own,
      learned,
      num_boost_round=_ROUNDS,
      valid_sets=[chosen],
      callbacks=[_lightgbm().early_stopping(_PATIENCE, verbose=False)],
    )
    trees = Trees(booster, own | {"trees": booster.best_iteration}, tried, worded)
    figure = float(ranking_metrics(trees.rank(valid), valid)[_CHOSEN_BY].mean())
    tried.append(trees.settings | {f"valid {_CHOSEN_BY}": figure})
    if figure > reached:
      best, reached = trees, figure
  assert best is not None
  return best


def read_trees(kept: dict[str, Any]) -> Trees:
  """What `kept_trees` made of worded trees."""
  booster = _lightgbm().Booster(model_str=kept["model"])
  return Trees(booster, kept["settings"], kept["tried"], worded=True)


def kept_trees(trees: Trees) -> dict[str, Any]:
  """Trees as JSON holds them."""
  return {"settings": trees.settings, "tried": trees.tried, "model": trees.booster.model_to_string()}


def _lightgbm() -> Any:
  """The library, loaded where trees are asked for and not before: it needs OpenMP's runtime, which bare machines lack.

  Raises:
    RuntimeError: it cannot be loaded; says what to install.
  """
  try:
    import lightgbm
  except OSError as error:
    raise RuntimeError(
      f"LightGBM, for boosted trees, cannot be loaded ({error}): install libgomp (apt-get install libgomp1)"
    ) from error
  return lightgbm


def features_of(task: RankingTask, worded: bool = False) -> Float[np.ndarray, "K F"]:
  """What is known of each candidate of a list, and, for counts, how far it lies below the list's greatest.

  Args:
    task: a list with its evidence.
    worded: whether numbers of the evidence are those of their buckets.
  """
  age = {item: len(task.history) - 1 - at for at, item in enumerate(task.history)}  # 0: the last item
  never = float(len(task.history))
  rows = []
  for place, own in enumerate(task.evidence):
    ages = [age[item] for item in own.supporters]
    rows.append(
      (
        place, own.followed, own.preceded, len(own.supporters), ages[0] if ages else never, min(ages, default=never),
        own.popularity, own.same_brand, own.same_category, own.similarity, len(task.history),
        own.followed_last, own.directly, own.directly_last,
      )
    )  # fmt: skip
  features = np.array(rows, np.float64)
  for name, buckets in _WORDED.items() if worded else ():
    column = FEATURES.index(name)
    features[:, column] = [buckets.number(value) for value in features[:, column].tolist()]
  relative = features[:, [FEATURES.index(name) for name in _RELATIVE]]
  return np.concatenate([features, relative.max(axis=0) - relative], axis=1)


def _dataset(tasks: Sequence[RankingTask], seed: int, worded: bool, reference: Any = None) -> Any:
  features = np.concatenate([features_of(task, worded) for task in tasks])
  taken = np.concatenate([np.array(task.candidates) == task.target for task in tasks]).astype(np.int32)
  names = [*FEATURES, *(f"{name} below the best" for name in _RELATIVE)]
  sizes = [len(task.candidates) for task in tasks]
  columns = [name.replace(" ", "_") for name in names]
  return _lightgbm().Dataset(
    features, taken, reference, group=sizes, feature_name=columns, params=_parameters(seed), free_raw_data=False
  )


def _parameters(seed: int) -> dict[str, Any]:
  return {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [3],
    "lambdarank_truncation_level": 10,
    "seed": seed,
    "deterministic": True,
    "force_row_wise": True,
    "feature_pre_filter": False,  # settings differ in min_data_in_leaf, which it would fix
    "num_threads": len(os.sched_getaffinity(0)),
    "verbosity": -1,
  }
