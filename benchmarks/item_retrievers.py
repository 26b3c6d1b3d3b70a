"""How often each retriever of items finds what was taken next: the table of docs/reranking.md.

    python -m benchmarks.item_retrievers --shop=made_up --out=results/item_retrievers_made_up.json
    python -m benchmarks.item_retrievers --shop=amazon_beauty --path=../shared/data/amazon_beauty \
      --vectors=../shared/data/amazon_beauty/items_minilm_f16.npy --out=results/item_retrievers_beauty.json

Leave-one-out, all users but those of the folder's held_out_users.txt; Hit@10 is the share of them for whom the natural
list has its target, and Hit@50 that for whom ten of fifty have. The generative retriever is trained on the train part
alone for valid, and with the valid targets for test; its semantic IDs are residual codes of the items' vectors, made as
a re-ranking run makes them (configs/rerank/base.py).
"""

from collections.abc import Callable
import functools
import json
from pathlib import Path
import tempfile
import time

from absl import flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.data.interactions.shop import MADE_UP, NAMES, item_documents, load_shop, read_users
from diffgr_jax.docid.build import BuildOptions, build_index
from diffgr_jax.evaluation.retrieval import (
  means,
  place_in_ranking,
  results_record,
  retrieval_metrics,
  typed_command,
)
from diffgr_jax.rerank.retrievers import RETRIEVERS, Requests, Retriever
from diffgr_jax.rerank.splits import LeaveOneOut, leave_one_out
from diffgr_jax.training.document_vectors import document_vectors
from diffgr_jax.training.item_retriever import GENERATIVE, RetrieverRecipe, generative

_SHOP = flags.DEFINE_enum("shop", MADE_UP, NAMES, "whose items are found")
_PATH = flags.DEFINE_string("path", "", "the folder of its files; of the made-up shop, its options (users=2000+seed=1)")
_BAD_ROW = flags.DEFINE_enum("on_bad_row", "error", ("error", "skip"), "about a row that is no record")
_VECTORS = flags.DEFINE_string("vectors", "lsa", "of the items, for their semantic IDs: lsa, minilm, or a .npy")
_STEPS = flags.DEFINE_integer("steps", 1000, "that the generative retriever is trained", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "its d_model", lower_bound=8)
_SEED = flags.DEFINE_integer("seed", 0, "of every draw")
_SPLITS = flags.DEFINE_list("splits", ["valid", "test"], "what is measured")
_OUT = flags.DEFINE_string("out", None, "the file of results to write")

_FIRST = (1, 10, 50)


def main(_) -> None:
  with tempfile.TemporaryDirectory() as scratch:
    path = _PATH.value.replace("+", ",") if _SHOP.value == MADE_UP else _PATH.value
    shop = load_shop(_SHOP.value, path=path, data_dir=scratch, on_bad_row=_BAD_ROW.value)
    held_out = Path(_PATH.value) / "held_out_users.txt"
    parts = leave_one_out(shop, read_users(held_out) if _SHOP.value != MADE_UP and held_out.is_file() else ())
    vectors = document_vectors(_VECTORS.value, item_documents(shop), seed=_SEED.value)
    how = BuildOptions(method="rqvae", levels=4, codes=64, collisions="random", seed=_SEED.value)
    ids, titles = zip(*((item.item_id, item.title) for item in shop.items), strict=True)
    codes = build_index(list(ids), list(titles), vectors, how).codes
    recipe = RetrieverRecipe(steps=_STEPS.value, d_model=_WIDTH.value)
    makers: dict[str, Callable[..., Retriever]] = {
      name: functools.partial(make, seed=_SEED.value) for name, make in RETRIEVERS.items()
    }
    makers[GENERATIVE] = functools.partial(
      generative, codes=codes, folder=Path(scratch) / "weights", recipe=recipe, seed=_SEED.value
    )
    figures = {split: {name: _measure(parts, split, make) for name, make in makers.items()} for split in _SPLITS.value}
  print(_table(figures), flush=True)
  if _OUT.value:
    record = results_record(
      command=typed_command(),
      status="measured",
      seeds={"retrievers and semantic IDs": _SEED.value},
      metrics=figures,
      settings={
        "shop": shop.name, "content": shop.fingerprint, "items": len(shop.items), "skipped": dict(shop.skipped),
        "vectors": Path(_VECTORS.value).name, "steps": recipe.steps, "batch": recipe.batch_size,
        "history": recipe.history, "d_model": recipe.d_model, "layers": recipe.n_layers,
      },
    )  # fmt: skip
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _measure(parts: LeaveOneOut, split: str, make: Callable[..., Retriever]) -> dict[str, float]:
  """Hits, and the seconds that making the retriever and ranking took."""
  users, places = parts.targets(split)
  histories, began = parts.shop.histories, time.perf_counter()
  retriever = make(parts.known(split), len(parts.shop.items))
  made = time.perf_counter()
  ranked = retriever.rank(Requests(histories, users, places), max(_FIRST))
  took = {"seconds to make": round(made - began, 1), "seconds to rank": round(time.perf_counter() - made, 1)}
  targets = [[int(histories[user][place])] for user, place in zip(users, places, strict=True)]
  falling = np.broadcast_to(-np.arange(ranked.shape[1], dtype=np.float64), ranked.shape)
  found = retrieval_metrics(place_in_ranking(ranked, falling, targets), hit_at=_FIRST, mrr_at=(), ndcg_at=())
  return means(found) | {"requests": len(targets)} | took


def _table(figures: dict[str, dict[str, dict[str, float]]]) -> str:
  lines = ["| retriever | " + " | ".join(f"{split} Hit@{k}" for split in figures for k in _FIRST) + " |"]
  lines.append("|---|" + "---:|" * (len(figures) * len(_FIRST)))
  for name in next(iter(figures.values())):
    cells = (f"{figures[split][name][f'Hit@{k}']:.3f}" for split in figures for k in _FIRST)
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  cli.run(main)
