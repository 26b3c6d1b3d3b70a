"""Throughput of autoregressive and block decoding of the same weights, in one process, case after case in turn.

    round 1   AR b1 | block 8 k4 b1 | block 8 k8 b1 | ... | AR b32 | ...      every case once a round, so that a machine
    round 2   AR b1 | block 8 k4 b1 | ...                                       that slows down slows all of them

A case is run twice a round: up to its first block (for AR, its first token), and to its end. Speed-ups compare what is
between, so that reading the prompt, which is the same for both, hides nothing. Tokens are accepted ones: rows x new
tokens, none of them behind a stop (there is none). With random weights the tokens of a pass are set by the schedule.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
import functools
import time
from typing import Any

import jax
import numpy as np

from diffgr_jax.decoding.autoregressive import DecodedRows, decode_autoregressive
from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions, BlockState, answers
from diffgr_jax.decoding.policies import Confidence, Policy, Threshold
from diffgr_jax.evaluation.machine import Costs, seconds_of
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.flops import matmul_flops
from diffgr_jax.models.inference import DecodingParams


@dataclass(frozen=True)
class Workload:
  """What is decoded: the model, its prompts, and what may not be produced."""

  config: TransformerConfig
  params: DecodingParams
  prompts: np.ndarray  # [rows of the largest batch, prompt length]
  banned: np.ndarray
  mask_id: int


@dataclass
class Case:
  """One way to decode one batch; its times in seconds."""

  rows: int
  slots: int  # of the cache
  new_tokens: int
  block: int  # 0: autoregressive
  label: str
  run: Callable[[int], Any]  # decodes so many new tokens; every number of them by the same program
  steps: int = 0  # passes a block, by schedule; 0: the policy decides
  compile: float = 0.0
  first: list[float] = field(default_factory=list)  # to the end of the first block
  whole: list[float] = field(default_factory=list)
  forwards: int = 0  # passes, of the slowest row
  agreement: float = 1.0  # share of tokens that greedy autoregressive decoding of the same weights produces too

  @property
  def unit(self) -> int:
    return self.block or 1

  @property
  def per_token(self) -> float:
    """Median seconds per position of the batch, behind the first block."""
    between = np.array(self.whole) - np.array(self.first)
    return float(np.median(between)) / (self.new_tokens - self.unit)


def make_cases(
  work: Workload,
  *,
  batch_sizes: Sequence[int],
  new_tokens: Sequence[int],
  block_sizes: Sequence[int],
  tokens_per_forward: Sequence[int],
  thresholds: Sequence[float] = (),
) -> list[Case]:
  """All combinations; per batch and length, autoregressive decoding first."""
  cases, width = [], work.prompts.shape[1]
  for rows in batch_sizes:
    for length in new_tokens:
      cases.append(
        Case(rows, width + length, length, 0, "AR", functools.partial(_run_autoregressive, work, rows, length))
      )
      for size in block_sizes:
        if size >= length:
          continue
        ways: list[tuple[str, Policy, int]] = [
          (f"block {size}, {k} a pass", Confidence(), size // k) for k in tokens_per_forward if size % k == 0
        ]
        ways += [(f"block {size}, threshold {tau}", Threshold(tau), 0) for tau in thresholds]
        for label, policy, steps in ways:
          options = BlockOptions(size, policy, work.mask_id)
          run = functools.partial(_run_blocks, work, rows, length, options, steps)
          cases.append(Case(rows, width + length, length, size, label, run, steps))
  return cases


def _inputs(work: Workload, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  prompts = work.prompts[:rows]
  return prompts, np.ones(prompts.shape, bool), np.arange(rows), work.banned


def _run_autoregressive(work: Workload, rows: int, slots: int, new_tokens: int) -> DecodedRows:
  how: dict[str, Any] = dict(config=work.config, max_new_tokens=new_tokens, slots=slots, pad_id=0)
  return decode_autoregressive(work.params, *_inputs(work, rows), **how)


def _run_blocks(work: Workload, rows: int, room: int, options: BlockOptions, steps: int, new_tokens: int) -> BlockState:
  size, left_over = options.block_size, work.prompts.shape[1] % options.block_size
  how: dict[str, Any] = dict(
    config=work.config, options=options, max_new_tokens=new_tokens, blocks=-(-(left_over + room) // size)
  )
  return decode_blocks(work.params, *_inputs(work, rows), steps=steps or None, **how)


def measure(cases: Sequence[Case], costs: Costs, *, rounds: int, most_seconds: float, mask_id: int) -> Iterator[Case]:
  """Runs every case once a round and fills in its times; yields a case after each of its runs, for a progress bar.

  The matrix products that they are compared with (`costs`) are timed in every round too.

  No round begins later than `most_seconds` after the first; one is always run.
  """
  begin, greedy = time.perf_counter(), {}
  for case in cases:
    cold = seconds_of(lambda case=case: case.run(case.new_tokens))
    result = case.run(case.new_tokens)
    tokens, case.forwards = _outcome(case, result, mask_id)
    if not case.block:
      greedy[case.rows, case.new_tokens] = tokens
    case.agreement = float((tokens == greedy[case.rows, case.new_tokens]).mean())
    case.compile = cold - seconds_of(lambda case=case: case.run(case.new_tokens))
    least_cost(case, costs)
    yield case
  for done in range(rounds):
    if done and time.perf_counter() - begin > most_seconds:
      return
    costs.sample()
    for case in cases:
      case.first.append(seconds_of(lambda case=case: case.run(case.unit)))
      case.whole.append(seconds_of(lambda case=case: case.run(case.new_tokens)))
      yield case


def _outcome(case: Case, result: Any, mask_id: int) -> tuple[np.ndarray, int]:
  """The new tokens, and the passes that they took."""
  if isinstance(result, DecodedRows):
    return np.asarray(result.tokens), int(result.step)
  tokens, count = answers(result, case.new_tokens, mask_id=mask_id, pad_id=0)
  assert (np.asarray(count) == case.new_tokens).all()
  return np.asarray(tokens), int(jax.device_get(result.forwards).max())


def least_cost(case: Case, costs: Costs) -> float:
  """Seconds that the matrix products of a block (of a step, for AR) take at least."""
  if case.block:
    costs.attention(case.rows, case.slots, case.block)
    return costs.block(case.block, case.block * case.forwards / case.new_tokens, case.rows)
  costs.attention(case.rows, case.slots)
  return costs.autoregressive_step(case.rows)


def case_figures(case: Case, baseline: Case, costs: Costs) -> dict[str, float]:
  """What a table shows of a case; `baseline` is autoregressive decoding of the same rows and length.

  `share` is the speed-up over the best one that this machine's matrix products allow, `share, attention too` over the
  best one that they and attention to the cache allow; `overhead` what is left of a step
  beside matrix products and attention, each timed alone. GFLOP/s counts the products with weights (not attention), and
  for blocks the pass that commits them; GB/s the weights once a pass.
  """
  whole, first = np.array(case.whole), np.array(case.first)
  tokens, step = case.rows * case.new_tokens, case.per_token * case.new_tokens / case.forwards
  figures = {
    "tok/s": tokens / float(np.median(whole)),
    "tok/s low": tokens / float(whole.max()),
    "tok/s high": tokens / float(whole.min()),
    "ms/sequence": 1e3 * float(np.median(whole)) / case.rows,
    "ms to first": 1e3 * float(np.median(first)),
    "forwards": float(case.forwards),
    "tok/forward": case.new_tokens / case.forwards,
    "compile s": case.compile,
    "agrees with AR": case.agreement,
    "rounds": float(len(whole)),
  }
  body, head = matmul_flops(costs.config)
  weights = sum(leaf.nbytes for leaf in jax.tree.leaves(costs.params))
  if case.block:
    passes = case.block / figures["tok/forward"]
    flops = case.rows * ((passes + 1) * body + passes * head)  # per position of the batch; the commitment is one more
    speedup = baseline.per_token / case.per_token
    best = costs.best_speedup(case.block, passes, case.rows)
    figures |= {"speed-up": speedup, "ceiling": best, "share": speedup / best}
    with_attention = costs.best_with_attention(case.block, passes, case.rows, case.slots)
    figures |= {"ceiling, attention too": with_attention, "share, attention too": speedup / with_attention}
    figures["ceiling, commits free"] = costs.best_speedup(case.block, passes, case.rows, commit=False)
  else:
    flops = case.rows * (body + head)
    least = least_cost(case, costs) + costs.attention(case.rows, case.slots)
    figures["overhead"] = 1.0 - least / case.per_token
  figures |= {"GFLOP/s": flops / case.per_token / 1e9, "GB/s": weights / step / 1e9}
  return figures


def crossovers(figures: dict[int, dict[str, dict[str, float]]]) -> dict[str, int | None]:
  """For every way to decode blocks, the smallest measured batch at which autoregressive decoding is faster; None: none.

  Args:
    figures: rows -> label -> what `case_figures` gives.
  """
  labels = dict.fromkeys(label for of_rows in figures.values() for label in of_rows if label != "AR")
  found = {}
  for label in labels:
    slower = [rows for rows, of_rows in sorted(figures.items()) if label in of_rows and of_rows[label]["speed-up"] < 1]
    found[label] = slower[0] if slower else None
  return found
