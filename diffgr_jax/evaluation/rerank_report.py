"""The evaluation of a re-ranker as one record: the retriever's order, boosted trees, and the model, on the same lists.

    WORKDIR/results.json          the record
    WORKDIR/rankings.SPLIT.jsonl  each list: user, candidates, target, ranking, verdict - what `--against` reads of
                                  another run, and a study of all (rerank_study.py)

Invalid answers fall back to the input order, or are repaired: both rows stand in the table, and how many answers either
changed. Users who are held out are never measured. Intervals are paired bootstraps over lists.
"""

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Float
import numpy as np

from diffgr_jax.data.interactions.shop import MADE_UP, load_shop, read_users
from diffgr_jax.evaluation.rerank import (
  COMPARED,
  best_possible,
  compare,
  ranking_metrics,
  ranking_table,
  retriever_order,
)
from diffgr_jax.evaluation.rerank_answers import Written, parse_answers, ranked, write_answers
from diffgr_jax.evaluation.rerank_baselines import Trees, fit_trees, kept_trees, read_trees
from diffgr_jax.evaluation.rerank_permutations import permuted
from diffgr_jax.evaluation.retrieval import paired_bootstrap, results_record, typed_command
from diffgr_jax.models.transformer import Params
from diffgr_jax.rerank.answer import Answers, Verdict, count_repairs, count_verdicts
from diffgr_jax.rerank.made_up_shop import Law, make_shop, read_options
from diffgr_jax.rerank.records import RankingTask, Shop
from diffgr_jax.rerank.splits import leave_one_out
from diffgr_jax.training.metrics import recorded_seconds
from diffgr_jax.training.rerank_run import RerankRun, made_up_options

TREES_FILE = "trees.json"
_FIELDS_OF_LISTS = (
  "shop", "shop_path", "shop_category", "held_out_users", "vectors", "retriever", "list_size", "list_pool",
  "list_draws", "list_folds", "list_seed", "supporters", "history_items",
)  # fmt: skip
RETRIEVER, TREES, BEST = "retriever", "boosted trees", "best order, expected"


def evaluate_rerank(
  run: RerankRun,
  params: Params,
  *,
  step: int,
  out: Path,
  users: str | None = None,
  interactions: str | None = None,
  against: str | None = None,
  trees: bool = True,
  permutations: str = "",
) -> dict[str, Any]:
  """Measures a checkpoint on the config's splits, and writes the record and the rankings.

  Args:
    run: what the weights were trained with.
    params: the weights.
    step: of the checkpoint.
    out: where the record goes; the rankings go beside it.
    users: a file of users, one a line: only they are measured.
    interactions: a folder of interactions with the run's items, whose users are measured instead of the run's own.
    against: the workdir (or folder) of another run's rankings, to be compared list by list.
    trees: whether boosted trees are measured too (fitted once a workdir).
    permutations: adds a row of rankings that cannot be invalid (rerank_permutations.py); "": none.

  Raises:
    ValueError: a user who is not in the shop, or is held out; items that the run's shop does not have; no lists.
  """
  own = with_interactions(run, interactions) if interactions else run
  chosen = _chosen_users(own, users)
  fitted = fitted_trees(run) if trees else None
  params = jax.device_put(params, jax.devices()[0])
  metrics, counts = {}, {}
  for split in own.config.eval_splits:
    lists = own.lists(split)
    tasks = [task for task in lists.tasks if chosen is None or task.user in chosen]
    tasks = tasks[: own.config.eval_limit or None]
    if not tasks:
      raise ValueError(f"there is no list to measure on {split}: no target is among its candidates")
    written = write_answers(own, params, tasks)
    answers = parse_answers(own, written, tasks)
    systems = _systems(own, tasks, answers, fitted, law_of(run) if own is run else None)
    if permutations:
      rankings = permuted(own, params, tasks, written, answers, permutations)
      systems[f"{model_name(own)}, {permutations} permutation"] = ranking_metrics(rankings, tasks)
    metrics[split] = _figures(own, systems, written, answers)
    counts[split] = {"asked": lists.asked, "found": lists.found, "measured": len(tasks)}
    rows = ranked(answers, tasks, own.config.invalid)
    _write_rankings(out.parent / f"rankings.{split}.jsonl", own.shop, tasks, rows, answers)
    if against:
      metrics[split][model_name(own)] |= _against(Path(against), split, own.shop, tasks, rows)
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={"training": run.config.seed, "lists": run.config.list_seed, "bootstrap": 0},
    metrics=metrics,
    settings={
      "shop": run.shop.name,
      "content": run.shop.fingerprint,
      "stage": run.config.stage,
      "lists": counts,
      "list_pool": run.config.list_pool,
      "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
      "step": step,
      "rows": step * run.config.batch_size,
      "training_minutes": recorded_seconds(run.workdir, step) / 60,
      "batch_size": run.config.eval_batch_size,
      "max_new_tokens": run.config.max_new_tokens,
      "against": against or "",
    },
  )
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
  return record


def print_rerank(record: Mapping[str, Any], out: Path) -> None:
  """Prints the record: a table for each split, and what was wrong with invalid answers."""
  settings = record["settings"]
  print(
    f"\n{settings['shop']}, {settings['stage']}: {settings['parameters'] / 1e6:.1f}M parameters, step"
    f" {settings['step']}, {settings['training_minutes']:.1f} minutes of training"
  )
  shown = ("R@1", "R@3", "NDCG@3", "NDCG@10", "valid", "tokens/s", "tokens a forward", *_interval_names(record))
  for split, systems in record["metrics"].items():
    rows = {name: {key: own[key] for key in shown if key in own} for name, own in systems.items()}
    print(f"\n{split} ({settings['lists'][split]['measured']} lists)\n{ranking_table(rows)}")
    for name, own in systems.items():
      if "valid" in own:
        faults = ", ".join(f"{key} {own[key]:.1%}" for key in _FAULTS if own.get(key))
        print(f"{name}: {own['valid']:.1%} valid; {faults or 'no faults'}")
  print(f"\nresults: {out}")


_FAULTS = tuple(verdict.name.lower() for verdict in Verdict if verdict is not Verdict.OK)


def _interval_names(record: Mapping[str, Any]) -> list[str]:
  names = {name for systems in record["metrics"].values() for own in systems.values() for name in own}
  return [name for name in sorted(names) if name.endswith((" low", " high"))]


def model_name(run: RerankRun) -> str:
  """How the model's row is called: by its decoder."""
  if run.decoder == "autoregressive":
    return "autoregressive"
  config = run.config
  how = f"{config.policy} {config.threshold}" if config.policy == "threshold" else config.policy
  return f"block {config.block_size}, {how}" + (f", {config.decode_steps} steps" if config.decode_steps else "")


def _systems(
  run: RerankRun, tasks: Sequence[RankingTask], answers: Answers, trees: Trees | None, law: Law | None
) -> dict[str, dict[str, Float[np.ndarray, "Q"]]]:
  """Every system's metrics, list by list."""
  name, other = model_name(run), _other_way(run)
  systems = {RETRIEVER: ranking_metrics(retriever_order(tasks), tasks)}
  if trees is not None:
    systems[TREES] = ranking_metrics(trees.rank(tasks), tasks)
  systems[name] = ranking_metrics(ranked(answers, tasks, run.config.invalid), tasks)
  systems[f"{name}, {other}"] = ranking_metrics(ranked(answers, tasks, other), tasks)
  if law is not None:
    systems[BEST] = best_possible(law.posteriors(tasks))
  return systems


def _other_way(run: RerankRun) -> str:
  """What else may become of invalid answers."""
  return {"input_order": "repair", "repair": "input_order"}[run.config.invalid]


def _figures(
  run: RerankRun, systems: Mapping[str, Mapping[str, Float[np.ndarray, "Q"]]], written: Written, answers: Answers
) -> dict[str, dict[str, float]]:
  """The figures of every system on a split's lists, and of the model's answers."""
  name, other = model_name(run), _other_way(run)
  figures = compare(systems, RETRIEVER)
  if BEST in figures:
    figures[name]["R@1 of the best"] = figures[name]["R@1"] / figures[BEST]["R@1"]
  figures[name] |= answer_figures(written, answers)
  figures[f"{name}, repair" if other == "repair" else name] |= {
    key: float(value) for key, value in count_repairs(answers).items() if key != "answers"
  }
  return figures


def answer_figures(written: Written, answers: Answers) -> dict[str, float]:
  """Validity and its failure classes as shares, and what decoding took."""
  lists = len(answers.verdict)
  counts = count_verdicts(answers)
  figures = {"valid": counts.pop("ok") / lists} | {name: count / lists for name, count in counts.items()}
  figures |= {
    "tokens": float(written.length.mean()),
    "forwards": float(written.forwards.mean()),
    "tokens a forward": float(written.length.sum() / written.forwards.sum()),
    "tokens/s": float(written.length.sum() / written.seconds),
  }
  for part, (tokens, forwards) in written.parts.items():
    if forwards.sum():
      figures[f"tokens a forward, {part}"] = float(tokens.sum() / forwards.sum())
  return figures


# --- the law, trees, users, other runs ---


def law_of(run: RerankRun) -> Law | None:
  """The law of a made-up shop, by which the best possible order is known."""
  if run.config.shop != MADE_UP:
    return None
  return make_shop(read_options(made_up_options(run.config)))[1]


def fitted_trees(run: RerankRun) -> Trees:
  """Boosted trees on the evidence as prompts word it, chosen on valid; kept in the workdir.

  A run on the lists of its start takes over that run's.
  """
  own_pool = json.loads((run.workdir / "config.json").read_text(encoding="utf-8"))["config"]["list_pool"]
  pool = run.config.list_pool
  file = run.workdir / (TREES_FILE if pool == own_pool else f"trees.{pool}.json")
  if not file.exists() and (text := _trees_of_start(run)):
    _write_whole(file, text)
  if file.exists():
    return read_trees(json.loads(file.read_text(encoding="utf-8")))
  trees = fit_trees(run.lists("train").tasks, run.lists("valid").tasks, run.config.list_seed, worded=True)
  _write_whole(file, json.dumps(kept_trees(trees)))
  return trees


def _trees_of_start(run: RerankRun) -> str | None:
  """What the run that this one starts from keeps of its trees, if it has the same lists."""
  first = Path(run.config.start_from)
  if run.config.start != "run" or not (first / TREES_FILE).exists():
    return None
  theirs = json.loads((first / "config.json").read_text(encoding="utf-8"))["config"]
  same = all(theirs.get(name) == run.config[name] for name in _FIELDS_OF_LISTS)
  return (first / TREES_FILE).read_text(encoding="utf-8") if same else None


def _write_whole(file: Path, text: str) -> None:
  partial = file.with_name(file.name + ".partial")
  partial.write_text(text, encoding="utf-8")
  partial.replace(file)


def _chosen_users(run: RerankRun, file: str | None) -> frozenset[str] | None:
  if not file:
    return None
  wanted = read_users(file)
  evaluated = {user for user, may in zip(run.shop.users, run.parts.evaluated, strict=True) if may}
  if unknown := sorted(wanted - set(run.shop.users)):
    raise ValueError(f"--users={file}: {unknown[0]!r} is no user of {run.shop.name}")
  if apart := sorted(wanted - evaluated):
    raise ValueError(f"--users={file}: {apart[0]!r} is held out: such users are never evaluated")
  return wanted


def with_interactions(run: RerankRun, folder: str) -> RerankRun:
  """The run with the users of a folder of interactions, all measured; the run's own users are counted, not measured.

  Raises:
    ValueError: an item that the run's shop does not have.
  """
  given = load_shop("interactions", path=folder, data_dir=run.workdir / "data", on_bad_row=run.config.on_bad_row)
  positions = {item.item_id: at for at, item in enumerate(run.shop.items)}
  if unknown := [item.item_id for item in given.items if item.item_id not in positions]:
    raise ValueError(
      f"--interactions={folder} names {len(unknown)} items that {run.shop.name} does not have, such as {unknown[0]!r}"
    )
  moved = [tuple(positions[given.items[item].item_id] for item in history) for history in given.histories]
  taken = set(run.shop.users)
  names = [f"{user} (given)" if user in taken else user for user in given.users]
  shop = Shop(
    run.shop.name,
    run.shop.items,
    [*run.shop.users, *names],
    [*run.shop.histories, *moved],
    run.shop.fingerprint,
    given.skipped,
  )
  own = RerankRun(run.workdir, run.config, shop, run.vocab, run.codes, run.model)
  own.__dict__["parts"] = leave_one_out(shop, run.shop.users)  # in place of the cached property
  return own


def _write_rankings(
  file: Path, shop: Shop, tasks: Sequence[RankingTask], rows: Sequence[tuple[int, ...]], answers: Answers
) -> None:
  file.parent.mkdir(parents=True, exist_ok=True)
  ids = lambda items: [shop.items[item].item_id for item in items]
  with file.open("w", encoding="utf-8") as lines:
    for task, row, verdict in zip(tasks, rows, answers.verdict.tolist(), strict=True):
      kept = {"user": task.user, "candidates": ids(task.candidates), "target": ids([task.target])[0]}
      kept["ranking"] = ids(row)
      lines.write(json.dumps(kept | {"verdict": Verdict(verdict).name.lower()}) + "\n")


def _against(
  folder: Path, split: str, shop: Shop, tasks: Sequence[RankingTask], rows: Sequence[tuple[int, ...]]
) -> dict[str, float]:
  """Paired differences to another run's rankings of the same lists.

  Raises:
    FileNotFoundError: it has none of this split.
    ValueError: it ranked other lists.
  """
  file = folder / f"rankings.{split}.jsonl"
  if not file.exists():
    raise FileNotFoundError(f"--against={folder}: there is no {file.name}; evaluate that run first")
  positions = {item.item_id: at for at, item in enumerate(shop.items)}
  theirs: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
  for line in file.read_text(encoding="utf-8").splitlines():
    row = json.loads(line)
    key = row["user"], tuple(positions[item] for item in row["candidates"])
    theirs[key] = tuple(positions[item] for item in row["ranking"])
  missing = [task.user for task in tasks if (task.user, task.candidates) not in theirs]
  if missing:
    raise ValueError(f"--against={folder}: it has not ranked the lists of {len(missing)} users, such as {missing[0]!r}")
  mine = ranking_metrics(rows, tasks)
  others = ranking_metrics([theirs[task.user, task.candidates] for task in tasks], tasks)
  figures = {}
  for name in COMPARED:
    interval = paired_bootstrap(np.asarray(mine[name]), np.asarray(others[name]), 0)
    key = f"{name} - {folder.name}"
    figures |= {key: interval.difference, f"{key} low": interval.low, f"{key} high": interval.high}
  return figures
