"""The training examples of a re-ranker: messages as tokens.

sft, cft       a list's prompt, a kept trace's reasoning, its ranking
mid_training   next item     history -> the item that was taken next
               caption       an item's ID -> its title, brand and categories
               lists         candidates' IDs and an order of their letters -> the IDs in that order
               text          general text, in pieces

They are made once and kept in WORKDIR/examples.npz. A resumed run, the next stage (`traces="start"`), or any run of the
same vocabulary (`examples=WORKDIR`: CFT on the lists of mid-training) reads them back, without lists or traces.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.data.packing import Example
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.evaluation.rerank_baselines import Trees
from diffgr_jax.evaluation.rerank_report import fitted_trees
from diffgr_jax.parallel.distributed import in_turn
from diffgr_jax.rerank.chat import Message, Segment, count_tokens, encode_in_parts, segments
from diffgr_jax.rerank.prompt import PromptOptions, name_candidate, render, render_reply
from diffgr_jax.rerank.reasoning import Outcome, TraceRules, count_outcomes, evidence_scores
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.rerank.retrievers import QUIET_SECONDS
from diffgr_jax.rerank.template_traces import TemplateTraces
from diffgr_jax.rerank.trace_files import read_traces, write_traces
from diffgr_jax.rerank.wording import item_fields
from diffgr_jax.training.rerank_options import MID_TRAINING, SAMPLED_TRACES, START_TRACES, TEMPLATE
from diffgr_jax.training.rerank_run import RerankRun, open_rerank
from diffgr_jax.training.sampled_traces import sampled_traces
from diffgr_jax.training.shipped import is_shipped

_END = (Segment("end", ""),)
EXAMPLES_FILE, TRACES_FILE = "examples.npz", "traces.jsonl"
_TEXT_PIECE = 1000  # characters
_SHORT_MESSAGE = 50  # tokens: IDs make longer ones
_WHOLE_LISTS = 0.5  # share of the lists to be written down that keep all their candidates


def training_examples(run: RerankRun) -> list[Example]:
  """The run's examples, made on the first call. In a job of several processes the first makes them.

  Raises:
    ValueError: nothing to learn from.
  """
  file = run.workdir / EXAMPLES_FILE
  with in_turn("training examples"):
    if not file.exists() and jax.process_index() == 0:
      if run.config.examples:
        folders = [Path(folder) for folder in run.config.examples.split("+")]
        made = [(example, True) for folder in folders for example in read_examples(folder / EXAMPLES_FILE)]
      elif run.config.stage != MID_TRAINING and run.config.traces == START_TRACES:
        made = [(example, True) for example in read_examples(_examples_before(Path(run.config.start_from)))]
      else:
        made = list(_made(run))
      if not made:
        how = f"config.traces is {run.config.traces!r}, config.trace_agreeing {run.config.trace_agreeing}"
        raise ValueError(f"no example to learn from: {how}")
      write_examples(file, _permuted(made, run))
  return read_examples(file)


def _examples_before(folder: Path) -> Path:
  """The examples of a run, or (where it had none: conversion, RL) of the nearest one that it began with."""
  while not (folder / EXAMPLES_FILE).exists():
    config = open_rerank(folder).config
    if config.start != "run" or is_shipped(folder):
      break
    folder = Path(config.start_from)
  return folder / EXAMPLES_FILE


def write_examples(file: Path, examples: list[Example]) -> None:
  ends = np.cumsum([len(example.tokens) for example in examples])
  partial = file.with_name(file.name + ".partial.npz")
  tokens, parts = (np.concatenate([getattr(one, name) for one in examples]) for name in ("tokens", "parts"))
  np.savez_compressed(partial, tokens=tokens.astype(np.int32), parts=parts.astype(np.int8), ends=ends)
  partial.replace(file)


def read_examples(file: Path) -> list[Example]:
  """Raises FileNotFoundError where there is no such file."""
  if not file.exists():
    raise FileNotFoundError(f"{file} does not exist: config.traces 'start' needs a run that was trained on traces")
  with np.load(file) as kept:
    ends = kept["ends"][:-1]
    pairs = zip(np.split(kept["tokens"], ends), np.split(kept["parts"].astype(np.int32), ends), strict=True)
    return [Example(tokens, parts) for tokens, parts in pairs]


def _made(run: RerankRun) -> Iterator[tuple[Example, bool]]:
  """Examples, and whether each says by itself what its IDs are."""
  if run.config.stage == MID_TRAINING:
    drawn = list(_mid_training(run))
    messages, shown = [message for message, _ in drawn], [is_list for _, is_list in drawn]
  else:
    total, has_own = len(run.lists("train").tasks), run.config.traces == SAMPLED_TRACES  # a bar of its own
    bar: dict[str, Any] = dict(desc="traces", unit="list", delay=QUIET_SECONDS, leave=False, disable=has_own)
    outcomes = list(tqdm(_outcomes(run), total=total, **bar))
    counts = count_outcomes(outcomes)
    print("traces: " + ", ".join(f"{count} {what}" for what, count in counts.most_common()), flush=True)
    kept = agreeing_at_most(outcomes, run.config.trace_agreeing, run.config.seed)
    print(f"{len(kept)} traces to learn from", flush=True)
    write_traces(run.workdir / TRACES_FILE, kept, run.shop)
    messages = [
      render(outcome.task, run.shop, run.prompts, outcome.trace.reasoning, outcome.trace.ranking)
      for outcome in kept
      if outcome.trace is not None
    ]
    shown = [True] * len(messages)
  how = run.vocab, run.codes, run.prompts.template
  for message, own in zip(encode_in_parts(messages, len(messages), "messages", *how), shown, strict=True):
    yield Example(message.tokens, message.parts.astype(np.int32)), own


def _permuted(made: Sequence[tuple[Example, bool]], run: RerankRun) -> list[Example]:
  """The examples, the codes of `config.permuted_codes` of those permuted whose IDs can be read in them."""
  rng = np.random.default_rng([run.config.seed, 0])
  drawn = rng.random(len(made)) < run.config.permuted_codes
  return [
    Example(permute_codes(one.tokens, run.vocab, rng), one.parts) if shown and is_drawn else one
    for (one, shown), is_drawn in zip(made, drawn.tolist(), strict=True)
  ]


def permute_codes(tokens: Int[np.ndarray, "T"], vocab: Vocabulary, rng: np.random.Generator) -> Int[np.ndarray, "T"]:
  """Tokens in which the codes of every level are permuted: the same IDs of items that there are not."""
  first = vocab.docid_token(0, 0)
  levels, codes = vocab.docid_levels, vocab.docid_codes
  others = np.concatenate([level * codes + rng.permutation(codes) for level in range(levels)])
  is_code = tokens >= first
  return np.where(is_code, first + others[np.where(is_code, tokens - first, 0)], tokens).astype(tokens.dtype)


# --- traces ---


def _outcomes(run: RerankRun) -> Iterator[Outcome]:
  """What became of each training list."""
  config, tasks = run.config, run.lists("train").tasks
  if config.traces == SAMPLED_TRACES:
    writer, asked = sampled_traces(run, tasks)
    yield from writer.traces(asked)
    return
  rules = TraceRules(lambda contents: count_tokens(contents, run.vocab), config.least_reasoning)
  if config.traces != TEMPLATE:
    source, skipped = read_traces(config.traces.split("+"), run.shop, rules, run.codes, config.on_bad_row)
    left = source.unused(tasks)
    if skipped or left:
      print(f"{config.traces}: {dict(Counter(skipped))} skipped, {left} rows of no list", flush=True)
    yield from source.traces(tasks)
    return
  score = evidence_scores
  if config.trace_scores == "trees":
    score = tree_scores(fitted_trees(run), tasks)
  yield from TemplateTraces(run.shop, run.prompts, rules, score, config.seed, config.trace_moved).traces(tasks)


def agreeing_at_most(outcomes: Sequence[Outcome], share: float, seed: int) -> list[Outcome]:
  """The kept traces, of which at most a share agrees with the retriever on the first place; the surplus is drawn out.

  A trace is kept where it is right, and that is easiest where the retriever is right already: of the made-up shop's
  lists its first candidate is taken in three of ten, of the kept traces it stands first in seven.
  """
  kept = [outcome for outcome in outcomes if outcome.trace is not None]
  agrees = [one.trace is not None and one.trace.ranking[0] == one.task.candidates[0] for one in kept]
  others = len(kept) - sum(agrees)
  most = len(kept) if share == 1.0 else round(share / (1.0 - share) * others)
  places = np.flatnonzero(agrees)
  surplus = np.random.default_rng(seed).permutation(places)[most:]
  dropped = set(surplus.tolist())
  return [one for place, one in enumerate(kept) if place not in dropped]


def tree_scores(trees: Trees, tasks: Sequence[RankingTask]) -> Callable[[RankingTask], Sequence[float]]:
  """The trees' score of each candidate, for tasks that are known beforehand (with or without their targets)."""
  key = lambda task: (task.user, task.history, task.candidates)
  scores = dict(zip(map(key, tasks), trees.scores(tasks), strict=True))
  return lambda task: scores[key(task)].tolist()


# --- mid-training ---


def _mid_training(run: RerankRun) -> Iterator[tuple[Message, bool]]:
  """Examples of all kinds, so many of each that their shares are the config's, and whether they are lists."""
  config, rng = run.config, np.random.default_rng(run.config.seed)
  makers = {"next_item": _next_items, "caption": _captions, "lists": _listings, "text": _general}
  kinds = {kind: list(make(run)) if config.mixture[kind] else [] for kind, make in makers.items()}
  shares = {kind: config.mixture[kind] for kind, messages in kinds.items() if messages and config.mixture[kind]}
  if not shares:
    return
  # The kind that has most for its share is used once, the others are repeated up to theirs: but no more than is read.
  read = config.steps * config.batch_size * config.row_length / _SHORT_MESSAGE
  whole = min(read, max(len(kinds[kind]) / share for kind, share in shares.items()))
  for kind, share in shares.items():
    own, wanted = kinds[kind], round(whole * share)
    for epoch in range(-(-wanted // len(own))):
      order = rng.permutation(len(own))[: wanted - epoch * len(own)]
      yield from ((own[at], kind == "lists") for at in order)


def _next_items(run: RerankRun) -> Iterator[Message]:
  """Each place of each user's training part: the history before it, and the item there."""
  options = run.prompts
  for history in run.parts.known("train"):
    for place in range(1, len(history)):
      shown = history[max(0, place - options.history_items) : place]
      asked = [options.wording.history, *(part for item in shown for part in (options.wording.before_item, item))]
      yield (*segments("user", asked), *segments("answer", [history[place]]), *_END)


def _captions(run: RerankRun) -> Iterator[Message]:
  words = run.prompts.wording
  for number, item in enumerate(run.shop.items):
    said = words.separator.join(item_fields(item, words.labels, title_words=12, name_words=12))
    if said:
      yield (*segments("user", [number]), *segments("answer", [said]), *_END)


def _listings(run: RerankRun) -> Iterator[Message]:
  """Each training list's candidates, to be written down in a random order: what an answer asks for beside a choice.

  Looking an ID up by its letter, among IDs that share codes, is slow to be learned from whole messages; here all
  targets are of that kind, in a fifth of the tokens. Half of the lists are cut to their first candidates, mostly to
  very few: with codes that cannot be known beforehand, lists of ten alone taught nothing in the time in which these
  did (docs/experiments.md).
  """
  rng = np.random.default_rng(run.config.seed)
  for task in run.lists("train").tasks:
    candidates = task.candidates[: _listed(len(task.candidates), rng)]
    yield listing(candidates, rng.permutation(len(candidates)).tolist(), run.prompts)


def listing(candidates: Sequence[int], order: Sequence[int], options: PromptOptions) -> Message:
  """Candidates, the letters of an order, and their IDs in that order (without letters: in their own)."""
  words, template = options.wording, options.template
  ranking = [candidates[at] for at in order]
  shown = [part for item in candidates for part in name_candidate(item, candidates, template)]
  letters = [template.label(candidates.index(item)) for item in ranking if template.labels]
  asked = segments("user", [words.candidates.lstrip(), *shown, " order", *letters])
  return (*asked, *render_reply((), ranking if letters else candidates, candidates, template))


def _listed(size: int, rng: np.random.Generator) -> int:
  """So many candidates of a list of `size`: all, or k of them with a chance of 1/k."""
  if rng.random() < _WHOLE_LISTS:
    return size
  chances = 1 / np.arange(1, size + 1)
  return int(rng.choice(size, p=chances / chances.sum())) + 1


def _general(run: RerankRun) -> Iterator[Message]:
  for file in run.config.text_files:
    text = Path(file).read_text(encoding="utf-8")
    for start in range(0, len(text), _TEXT_PIECE):
      if piece := " ".join(text[start : start + _TEXT_PIECE].split()):
        yield (*segments("user", ["text"]), *segments("answer", [piece]), *_END)
