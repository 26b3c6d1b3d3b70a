"""Traces that a trained teacher writes: the second generation, for the `traces` command and inside a run.

Of all that a template might have worded, a teacher at temperature 0 writes one thing: what a converted model, which
commits several tokens without knowing which of its wordings the others are of, can learn to write at once.
Sequence-level distillation (Kim and Rush 2016, arXiv 1606.07947), which non-autoregressive translation begins with for
that reason (Gu et al. 2018, arXiv 1711.02281).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffgr_jax.evaluation.rerank_answers import make_sampler
from diffgr_jax.rerank.chat import count_tokens
from diffgr_jax.rerank.model_traces import ModelTraces
from diffgr_jax.rerank.reasoning import TraceRules
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_run import RerankRun, check_same_tokens, open_rerank

_FOLDER = "traces"


def teacher_traces(
  teacher: RerankRun,
  tasks: Sequence[RankingTask],
  folder: Path,
  *,
  temperature: float,
  step: int | None = None,
  right: bool = True,
  least_reasoning: int | None = None,
  **how: Any,
) -> ModelTraces:
  """What samples a teacher's traces of `tasks` into `folder`; resumable.

  Args:
    teacher: an autoregressive run. Its decoding is set to `temperature`.
    tasks: lists that are asked.
    folder: of the files.
    temperature: of the draws; 0: the likeliest token.
    step: of the teacher's checkpoint; None: its newest.
    right: only answers that put the target first are kept, which a teacher learns from; a student, which is to write as
      its teacher does, may learn from all.
    least_reasoning: tokens of a reasoning that is kept; None: as the teacher's config says.
    how: fields of `ModelTraces`: tries, batch_size, seed, shard, shards.

  Raises:
    ValueError: the teacher writes in blocks.
  """
  if teacher.converted:
    raise ValueError(f"{teacher.workdir} is a run of the stage {teacher.config.stage!r}: name its teacher")
  teacher.set_decoding([f"temperature={temperature}"])
  params, step = restore_params(teacher.workdir, teacher.model, step)
  least = teacher.config.least_reasoning if least_reasoning is None else least_reasoning
  rules = TraceRules(lambda contents: count_tokens(contents, teacher.vocab), least, right)
  return ModelTraces(
    teacher.shop,
    teacher.codes,
    teacher.vocab,
    teacher.prompts,
    rules,
    make_sampler(teacher, params, tasks, how["batch_size"]),
    f"{teacher.workdir} step {step}, temperature {temperature}",
    folder,
    **how,
  )


def sampled_traces(run: RerankRun, tasks: Sequence[RankingTask]) -> tuple[ModelTraces, list[RankingTask]]:
  """What a run with traces of its teacher's asks, and of which of its training lists.

  Raises:
    ValueError: a teacher of another vocabulary or other IDs, one that writes in blocks, or a job of several processes.
  """
  config = run.config
  if jax.process_count() > 1:
    raise ValueError(
      "config.traces 'sampled' is for one process: let `python -m diffgr_jax.traces` write them, in shards, and name"
      " its files"
    )
  folder = config.trace_model or config.start_from
  teacher = open_rerank(Path(folder))
  check_same_tokens(teacher, run, f"config.trace_model {folder}")
  count = min(config.trace_lists or len(tasks), len(tasks))
  drawn = np.sort(np.random.default_rng(config.seed).permutation(len(tasks))[:count])
  asked = [tasks[at] for at in drawn.tolist()]
  how: dict[str, Any] = dict(tries=config.trace_tries, batch_size=config.eval_batch_size, seed=config.seed)
  how |= dict(temperature=config.trace_temperature, right=config.trace_right, least_reasoning=config.least_reasoning)
  return teacher_traces(teacher, asked, run.workdir / _FOLDER, **how), asked
