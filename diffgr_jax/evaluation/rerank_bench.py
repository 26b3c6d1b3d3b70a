"""The bench command on re-rankers: an autoregressive teacher against its block-parallel students, on the same lists.

    round 1   AR b1 | block 32, .4, b1 | block 32, .5, b1 | ... | AR b8 | ...       every case once a round

A case decodes all its lists; its time has the prompts in it, compilation apart. Quality and tokens are what the policy
achieved on trained weights: R@1, NDCG@3 and validity stand beside the speed. `ceiling` is what the matrix products of
this machine allow at the tokens a forward that were achieved (evaluation/machine.py), `share` how much of it is had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from diffgr_jax.evaluation.machine import Costs
from diffgr_jax.evaluation.rerank import ranking_metrics
from diffgr_jax.evaluation.rerank_answers import Written, parse_answers, ranked, write_answers
from diffgr_jax.evaluation.rerank_report import answer_figures
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import Params
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_run import RerankRun, open_rerank
from diffgr_jax.viz.frontier import draw_frontier

_COLUMNS = (
  "tokens/s", "low", "high", "speed-up", "ceiling", "share", "tokens a forward", "tokens a forward, reasoning",
  "tokens a forward, answer", "R@1", "NDCG@3", "valid",
)  # fmt: skip


@dataclass
class RerankCase:
  """One way to decode the lists."""

  label: str
  rows: int
  run: RerankRun
  params: Params
  block: int  # 0: autoregressive
  seconds: list[float] = field(default_factory=list)
  written: Written | None = None


def check_rerank_bench(config: Any) -> None:
  """Raises ValueError with the field, its value and what it may be."""
  for tau in config.thresholds:
    if not 0.0 < tau <= 1.0:
      raise ValueError(f"config.thresholds holds probabilities in (0, 1], not {tau}")
  if strange := [name for name in config.policies if name not in ("prefix", "threshold", "dynamic")]:
    raise ValueError(
      f"config.policies holds prefix, threshold or dynamic, which commit above a threshold, not {strange[0]!r}"
    )
  for name in ("batch_sizes", "policies", "thresholds", "students"):
    if not config[name]:
      raise ValueError(f"config.{name} is empty: there is nothing to measure")
  if min(config.batch_sizes) < 1 or config.rounds < 1 or config.lists < 0:
    raise ValueError("config.batch_sizes and config.rounds hold numbers of at least 1, config.lists of at least 0")
  if config.split not in ("valid", "test"):
    raise ValueError(f"config.split is valid or test, not {config.split!r}")


def run_rerank_bench(config: Any, out: Path) -> dict[str, Any]:
  """Measures what `configs/bench/rerank.py` describes; returns the record that results.json holds."""
  check_rerank_bench(config)
  cases = _cases(config)
  tasks = cases[0].run.lists(config.split).tasks
  tasks = tasks[: config.lists or None]
  rounds = _measure(cases, tasks, config.rounds, config.most_seconds)
  figures = _figures(cases, tasks)
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={"lists": cases[0].run.config.list_seed},
    metrics={f"{config.split}, batch {rows}": of_rows for rows, of_rows in figures.items()},
    settings={
      "config": json.loads(config.to_json()), "shop": cases[0].run.shop.name, "lists": len(tasks),
      "rounds": rounds, "device": jax.devices()[0].device_kind,
      "count": "accepted tokens, prompts in the time, compilation apart; tokens a forward as the policy achieved",
    },
  )  # fmt: skip
  out.mkdir(parents=True, exist_ok=True)
  (out / "results.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
  table = "\n\n".join(render_rerank(rows, of_rows) for rows, of_rows in figures.items())
  (out / "table.md").write_text(table + "\n", encoding="utf-8")
  draw_frontier(figures, out / "frontier.png", title=f"{cases[0].run.shop.name}, {len(tasks)} {config.split} lists")
  print(f"{table}\n\nwritten: {out}/results.json, table.md, frontier.png")
  return record


def _cases(config: Any) -> list[RerankCase]:
  teacher = open_rerank(Path(config.teacher))
  weights = restore_params(teacher.workdir, teacher.model)[0]
  students = []
  for folder in config.students:
    run = open_rerank(Path(folder))
    if not run.converted:
      raise ValueError(f"config.students: {folder} is a run of the stage {run.config.stage!r}, not a converted one")
    students.append((folder, restore_params(run.workdir, run.model)[0]))
  cases = []
  for rows in config.batch_sizes:
    cases.append(RerankCase("AR", rows, teacher, weights, 0))
    for folder, params in students:
      own = open_rerank(Path(folder)).config.block_size
      for size in dict.fromkeys((own, *config.block_sizes)):
        for policy, tau in itertools.product(config.policies, config.thresholds):
          run = open_rerank(Path(folder))
          run.set_decoding([f"block_size={size}", f"policy={policy}", f"threshold={tau}"])
          cases.append(RerankCase(f"block {size}, {policy} {tau}", rows, run, params, size))
  return cases


def _measure(cases: Sequence[RerankCase], tasks: Sequence[RankingTask], rounds: int, most_seconds: float) -> int:
  """Fills in the cases' times and answers; returns the rounds that came to their end."""
  spent = 0.0
  bar = tqdm(total=len(cases) * rounds, desc="decoding", unit="run")
  for done in range(rounds):
    if done and spent > most_seconds:
      bar.close()
      return done
    for case in cases:
      bar.set_postfix_str(f"{case.label}, batch {case.rows}")
      case.written = write_answers(case.run, case.params, tasks, batch_size=case.rows, quiet=True)
      case.seconds.append(case.written.seconds)
      spent += case.written.seconds
      bar.update()
  bar.close()
  return rounds


def _figures(cases: Sequence[RerankCase], tasks: Sequence[RankingTask]) -> dict[int, dict[str, dict[str, float]]]:
  """rows -> label -> figures."""
  model, weights = cases[0].run.model, cases[0].params
  costs = Costs(model, jax.jit(functools.partial(decoding_params, model))(weights))
  baseline = {case.rows: _rate(case) for case in cases if not case.block}
  found: dict[int, dict[str, dict[str, float]]] = {}
  for case in cases:
    assert case.written is not None
    answers = parse_answers(case.run, case.written, tasks)
    metrics = ranking_metrics(ranked(answers, tasks, case.run.config.invalid), tasks)
    tokens = int(case.written.length.sum())
    own = answer_figures(case.written, answers) | {name: float(metrics[name].mean()) for name in ("R@1", "NDCG@3")}
    own |= {"tokens/s": _rate(case), "low": tokens / max(case.seconds), "high": tokens / min(case.seconds)}
    own["ms a list"] = 1e3 * float(np.median(case.seconds)) / len(tasks)
    if case.block:
      own["speed-up"] = own["tokens/s"] / baseline[case.rows]
      own["ceiling"] = costs.best_speedup(case.block, case.block / own["tokens a forward"], case.rows)
      own["share"] = own["speed-up"] / own["ceiling"]
    found.setdefault(case.rows, {})[case.label] = own
  return found


def _rate(case: RerankCase) -> float:
  """Median accepted tokens a second."""
  assert case.written is not None
  return int(case.written.length.sum()) / float(np.median(case.seconds))


def render_rerank(rows: int, figures: dict[str, dict[str, float]]) -> str:
  """A Markdown table of one batch size."""
  lines = [
    {"decoder": label} | {column: _shown(column, own[column]) for column in _COLUMNS if column in own}
    for label, own in figures.items()
  ]
  return f"batch {rows}:\n\n{format_table(lines)}"


def _shown(column: str, value: float) -> object:
  if column in ("share", "valid"):
    return f"{100 * value:.0f}%" if column == "share" else f"{100 * value:.1f}%"
  if column in ("R@1", "NDCG@3"):
    return f"{value:.3f}"
  return f"{value:.0f}" if value >= 100 else f"{value:.2f}"
