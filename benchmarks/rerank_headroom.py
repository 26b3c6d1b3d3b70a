"""What a re-ranker can gain: the retriever's order, boosted trees on the same evidence, and the best possible order.

    python -m benchmarks.rerank_headroom --shop=amazon_beauty --path=../shared/data/amazon_beauty \
      --vectors=../shared/data/amazon_beauty/items_minilm_f16.npy --out=results/beauty_headroom.json
    python -m benchmarks.rerank_headroom --shop=made_up --vectors=lsa --out=results/made_up_headroom.json

Leave-one-out; lists of ten whose target is among the retriever's first ten (`top 10`), or its first fifty (`10 of 50`).
Users of the folder's held_out_users.txt, if it has one, are learned from and not measured. Trees are fitted to training
lists, stopped and chosen on valid, and measured on test; once to the numbers of the evidence, and once to what a prompt
says of them. The made-up shop's law gives the best possible figures
exactly: what any order can reach in expectation, and what that order reached on the targets that were drawn.
"""

import functools
import json
from pathlib import Path
import tempfile
import time

from absl import flags

from diffgr_jax import cli
from diffgr_jax.data.interactions.shop import MADE_UP, NAMES, item_documents, load_shop, read_users
from diffgr_jax.evaluation.rerank import (
  best_possible,
  compare,
  order_by_scores,
  ranking_metrics,
  ranking_table,
  retriever_order,
)
from diffgr_jax.evaluation.rerank_baselines import fit_trees
from diffgr_jax.evaluation.retrieval import results_record, typed_command
from diffgr_jax.rerank.candidates import ListOptions, Lists, make_lists
from diffgr_jax.rerank.made_up_shop import Law, make_shop, read_options
from diffgr_jax.rerank.records import Shop
from diffgr_jax.rerank.retrievers import RETRIEVERS
from diffgr_jax.rerank.splits import SPLITS, LeaveOneOut, leave_one_out
from diffgr_jax.training.document_vectors import document_vectors

_SHOP = flags.DEFINE_enum("shop", MADE_UP, NAMES, "whose lists are made")
_PATH = flags.DEFINE_string("path", "", "the folder of its files; of the made-up shop, its options (users=2000,seed=1)")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "where the built shop is kept; default: nowhere")
_BAD_ROW = flags.DEFINE_enum("on_bad_row", "error", ("error", "skip"), "about a row that is no record")
_VECTORS = flags.DEFINE_string("vectors", None, "of the items, for the evidence: lsa, minilm, or a .npy; default: none")
_RETRIEVER = flags.DEFINE_enum("retriever", "covisitation", tuple(RETRIEVERS), "what makes the lists")
_DRAWS = flags.DEFINE_integer("draws", 3, "10 of 50: training lists of one place", lower_bound=1)
_FOLDS = flags.DEFINE_integer("folds", 5, "of the users, for training lists; 0: only a list's own user is left out", 0)
_SEED = flags.DEFINE_integer("seed", 0, "of every draw")
_OUT = flags.DEFINE_string("out", None, "the file of results to write")


class Clock:
  """Seconds of each stage, by name."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._began = time.perf_counter()

  def stop(self, stage: str) -> None:
    now = time.perf_counter()
    self.seconds[stage] = round(now - self._began, 1)
    self._began = now


def main(_) -> None:
  clock = Clock()
  shop, law = _load()
  held_out = Path(_PATH.value) / "held_out_users.txt"
  parts = leave_one_out(shop, read_users(held_out) if law is None and held_out.is_file() else ())
  vectors = document_vectors(_VECTORS.value, item_documents(shop), seed=_SEED.value) if _VECTORS.value else None
  clock.stop("shop")
  figures, counts, chosen = {}, {}, {}
  kinds = {
    "top 10": ListOptions(pool=10, folds=_FOLDS.value, seed=_SEED.value),
    "10 of 50": ListOptions(pool=50, draws=_DRAWS.value, folds=_FOLDS.value, seed=_SEED.value),
  }
  for kind, options in kinds.items():
    lists = _lists(parts, options, vectors, clock, kind)
    counts[kind] = {split: vars(own) | {"tasks": len(own.tasks)} for split, own in lists.items()}
    figures[kind], chosen[kind] = _measure(lists, law, clock, kind)
    print(f"{kind}: {counts[kind]}\n{ranking_table(figures[kind])}", flush=True)
  print(clock.seconds)
  if _OUT.value:
    record = results_record(
      command=typed_command(),
      status="measured",
      seeds={"lists and trees": _SEED.value, "bootstrap": 0},
      metrics=figures,
      settings={
        "shop": shop.name, "content": shop.fingerprint, "users": len(shop.users), "items": len(shop.items),
        "users measured": int(parts.evaluated.sum()), "skipped": dict(shop.skipped), "retriever": _RETRIEVER.value,
        "vectors": Path(_VECTORS.value).name if _VECTORS.value else "none", "folds": _FOLDS.value,
        "lists": counts, "trees": chosen, "seconds": clock.seconds,
      },
    )  # fmt: skip
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _load() -> tuple[Shop, Law | None]:
  if _SHOP.value == MADE_UP:
    return make_shop(read_options(_PATH.value))
  with tempfile.TemporaryDirectory() as scratch:
    data_dir = _DATA_DIR.value or scratch
    return load_shop(_SHOP.value, path=_PATH.value, data_dir=data_dir, on_bad_row=_BAD_ROW.value), None


def _lists(parts: LeaveOneOut, options: ListOptions, vectors, clock: Clock, kind: str) -> dict[str, Lists]:
  make = functools.partial(RETRIEVERS[_RETRIEVER.value], seed=_SEED.value)
  lists = {}
  for split in SPLITS:
    lists[split] = make_lists(parts, split, make, options, vectors=vectors)
    clock.stop(f"{kind}: {split} lists")
  return lists


def _measure(lists: dict[str, Lists], law: Law | None, clock: Clock, kind: str):
  """The figures of each system on the test lists, and how the trees were chosen."""
  test = lists["test"].tasks
  systems = {"retriever": ranking_metrics(retriever_order(test), test)}
  chosen = {}
  for name, worded in (("boosted trees", False), ("boosted trees, as worded", True)):
    trees = fit_trees(lists["train"].tasks, lists["valid"].tasks, _SEED.value, worded=worded)
    systems[name] = ranking_metrics(trees.rank(test), test)
    chosen[name] = {"chosen": trees.settings, "tried": trees.tried}
    clock.stop(f"{kind}: {name}")
  if law is not None:
    posteriors = law.posteriors(test)
    systems["best order, as drawn"] = ranking_metrics(order_by_scores(test, list(posteriors)), test)
    systems["best order, expected"] = best_possible(posteriors)
    clock.stop(f"{kind}: best order")
  return compare(systems, "retriever"), chosen


if __name__ == "__main__":
  cli.run(main)
