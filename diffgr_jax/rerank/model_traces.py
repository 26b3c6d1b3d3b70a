"""Traces sampled from an autoregressive model, as GR2 samples its teacher: no target is shown, right ones are kept.

    try 0   every task of the shard        batch 0, batch 1, ...
    try 1   those without a trace yet      batch 0, ...
    ...

    FOLDER/traces-00001-of-00004.jsonl     a row for every try of every task: the trace, or why it was dropped
    FOLDER/traces-00001-of-00004.json      the manifest: what the rows were made with, and their counts once finished

Which batches there are follows from the rows before them, and each batch has a seed of its own. So a shard that was
stopped goes on at its first batch that is not whole in the file, and comes to the rows that it would have had anyway.
The model of the manifest is the caller's name for it; with another model, other tasks or settings a shard is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.data.rows import parse_object
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.rerank.answer import Verdict, answer_starts, candidate_codes, parse_texts, split_citations
from diffgr_jax.rerank.chat import encode_messages, marker_tokens, markers_tokens, tokens_text
from diffgr_jax.rerank.prompt import PromptOptions, render_prompt
from diffgr_jax.rerank.reasoning import FOREIGN_ITEM, Outcome, Trace, TraceRules, count_outcomes, given_items
from diffgr_jax.rerank.records import RankingTask, Shop
from diffgr_jax.rerank.retrievers import QUIET_SECONDS
from diffgr_jax.rerank.trace_files import item_positions, row_trace, trace_row
from diffgr_jax.rerank.wording import joined, plain_part

_FORMAT = 1

# prompts as tokens, and a seed -> what was generated for each, [EOS] included where it came
Sample = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]


@dataclass(frozen=True, eq=False)
class ModelTraces:
  """Samples traces, and keeps the first right one of each task.

  Attributes:
    shop: of the tasks.
    codes: of its items.
    vocab: the model's.
    options: of the prompts.
    rules: which traces are kept.
    sample: draws answers.
    model: what the manifest calls the model, such as its checkpoint's path and step, and the temperature.
    folder: of the files.
    tries: how often a task is tried at most.
    batch_size: prompts a call of `sample`.
    seed: of the draws.
    shard: this one, from 0; it has every `shards`-th task.
    shards: how many there are.
  """

  shop: Shop
  codes: Int[np.ndarray, "N L"]
  vocab: Vocabulary
  options: PromptOptions
  rules: TraceRules
  sample: Sample
  model: str
  folder: Path
  tries: int = 4
  batch_size: int = 32
  seed: int = 0
  shard: int = 0
  shards: int = 1

  def __post_init__(self):
    if self.tries < 1 or self.batch_size < 1:
      raise ValueError(f"tries and batch_size are at least 1, not {self.tries} and {self.batch_size}")
    if not 0 <= self.shard < self.shards:
      raise ValueError(f"shard is from 0 to shards - 1 = {self.shards - 1}, not {self.shard}")

  @property
  def file(self) -> Path:
    """The shard's rows."""
    return self.folder / f"traces-{self.shard:05d}-of-{self.shards:05d}.jsonl"

  def traces(self, tasks: Sequence[RankingTask]) -> Iterator[Outcome]:
    """Samples what the file does not hold yet, then yields the outcome of each task of the shard.

    Raises:
      ValueError: the file was made with other settings, or is not what such a shard writes.
    """
    mine = tasks[self.shard :: self.shards]
    settings = self._settings(tasks)
    self._open_manifest(settings)
    journal = Journal(self.file)
    outcomes = {
      place: Outcome(task, None, fault) for place, task in enumerate(mine) if (fault := self.rules.task_fault(task))
    }
    hopeful = [place for place in range(len(mine)) if place not in outcomes]
    for attempt in range(self.tries):
      pending = [place for place in hopeful if place not in outcomes or outcomes[place].trace is None]
      batches = range(0, len(pending), self.batch_size)
      what = f"answers, try {attempt + 1} of {self.tries}"
      for number in tqdm(batches, desc=what, unit="batch", delay=QUIET_SECONDS, leave=False):
        batch = pending[number : number + self.batch_size]
        rows = journal.take([(place, attempt) for place in batch])
        if rows is None:
          drawn = self._draw([mine[place] for place in batch], [attempt, number])
          rows = [self._row(place, attempt, outcome) for place, outcome in zip(batch, drawn, strict=True)]
          journal.append(rows)
        outcomes |= {place: self._outcome(mine[place], row) for place, row in zip(batch, rows, strict=True)}
    journal.cut()
    _write_json(self.manifest, settings | {"finished": dict(count_outcomes(outcomes.values()))})
    yield from (outcomes[place] for place in range(len(mine)))

  # --- drawing ---

  def _draw(self, tasks: Sequence[RankingTask], seeds: Sequence[int]) -> list[Outcome]:
    prompts = [render_prompt(task, self.shop, self.options) for task in tasks]
    encoded = encode_messages(prompts, self.vocab, self.codes, self.options.template)
    seed = int(np.random.SeedSequence([self.seed, self.shard, *seeds]).generate_state(1)[0])
    drawn = self.sample([message.tokens.tolist() for message in encoded], seed)
    if len(drawn) != len(tasks):
      raise ValueError(f"sample gave {len(drawn)} answers to {len(tasks)} prompts")
    return [self._read(task, list(map(int, tokens))) for task, tokens in zip(tasks, drawn, strict=True)]

  def _read(self, task: RankingTask, tokens: list[int]) -> Outcome:
    """What one answer comes to. IDs are read as text, so that a model without DocID tokens may spell them."""
    (eos,) = marker_tokens("[EOS]", self.vocab)
    finished = eos in tokens
    tokens = tokens[: tokens.index(eos)] if finished else tokens
    marker = markers_tokens(self.options.template.answer_open, self.vocab)
    start = int(answer_starts(np.array([tokens], np.int64).reshape(1, -1), marker)[0])
    if start < 0 or not all(0 <= token < self.vocab.size for token in tokens):
      return Outcome(task, None, _verdict_name(Verdict.UNPARSABLE if finished else Verdict.TRUNCATED))
    answers = parse_texts(
      [self.vocab.decode(tokens[start:])], [finished], candidate_codes(self.codes, [task.candidates])
    )
    if not answers.ok[0]:
      return Outcome(task, None, _verdict_name(Verdict(answers.verdict[0])))
    ranking = tuple(task.candidates[place] for place in answers.entries[0])
    items = {tuple(self.codes[item].tolist()): item for item in sorted(given_items(task), reverse=True)}
    reasoning = split_citations(tokens_text(tokens[: start - len(marker)], self.vocab), items, self.codes.shape[1])
    if reasoning is None:
      return Outcome(task, None, FOREIGN_ITEM)
    plain = joined(plain_part(content) if isinstance(content, str) else content for content in reasoning)
    return self.rules.judge(task, Trace(plain, ranking))

  # --- rows ---

  def _row(self, place: int, attempt: int, outcome: Outcome) -> dict[str, Any]:
    head = {"task": place, "try": attempt}
    if outcome.trace is None:
      return head | {"user": outcome.task.user, "dropped": outcome.dropped}
    return head | trace_row(outcome.task.user, outcome.trace, self.shop)

  def _outcome(self, task: RankingTask, row: dict[str, Any]) -> Outcome:
    if "dropped" in row:
      return Outcome(task, None, str(row["dropped"]))
    return Outcome(task, row_trace(row, self._positions, {}, f"{self.file}: task {row['task']}"))

  @functools.cached_property
  def _positions(self) -> dict[str, int]:
    return item_positions(self.shop)

  # --- the manifest ---

  @property
  def manifest(self) -> Path:
    return self.file.with_suffix(".json")

  def _settings(self, tasks: Sequence[RankingTask]) -> dict[str, Any]:
    content = (self.shop.fingerprint, self.codes.tolist(), self.options, list(tasks))
    return {
      "format": _FORMAT,
      "model": self.model,
      "tasks": len(tasks),
      "content": hashlib.sha256(repr(content).encode()).hexdigest()[:16],
      "shard": self.shard,
      "shards": self.shards,
      "tries": self.tries,
      "batch_size": self.batch_size,
      "seed": self.seed,
      "least_tokens": self.rules.least_tokens,
      "target_first": self.rules.target_first,
    }

  def _open_manifest(self, settings: dict[str, Any]) -> None:
    """Writes the manifest of a shard that begins, and refuses to go on with a shard of other settings."""
    if not self.manifest.exists():
      if self.file.exists():
        raise ValueError(f"{self.file} has no manifest {self.manifest.name}: remove it, or take another folder")
      self.folder.mkdir(parents=True, exist_ok=True)
      _write_json(self.manifest, settings)
      return
    try:
      found = json.loads(self.manifest.read_text(encoding="utf-8"))
      changed = [name for name, value in settings.items() if found.get(name) != value]
    except (ValueError, AttributeError):
      raise ValueError(f"{self.manifest} is no manifest of traces: remove the shard's files") from None
    if changed:
      what = ", ".join(f"{name} {found.get(name)!r} instead of {settings[name]!r}" for name in changed)
      raise ValueError(f"{self.manifest}: this shard was made with {what}; take another folder, or remove the shard")


class Journal:
  """The rows of a file: first those that it holds are taken, batch after batch, then new ones are appended."""

  def __init__(self, path: Path):
    """Reads the rows of a file, if there is one, without a last line that was not written to its end.

    Raises:
      BadRow: another line is broken.
    """
    self.path = path
    self._rows: list[dict[str, Any]] = []
    self._ends = [0]  # of the rows, in bytes
    self._taken = 0
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for number, line in enumerate(lines, start=1):
      if line.endswith(b"\n"):
        self._rows.append(parse_object(line, f"{path}:{number}"))
        self._ends.append(self._ends[-1] + len(line))

  def take(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]] | None:
    """The next rows, which are those of the tasks and tries in `keys`.

    Returns:
      The rows; None where the file does not hold all of them: then what it holds of them is cut off.

    Raises:
      ValueError: the rows are of other tasks or tries.
    """
    rows = self._rows[self._taken : self._taken + len(keys)]
    found = [(row.get("task"), row.get("try")) for row in rows]
    if found != list(keys)[: len(found)]:
      raise ValueError(f"{self.path}: rows {self._taken + 1} and on are not the tries that come next; remove the shard")
    if len(rows) < len(keys):
      self.cut()
      return None
    self._taken += len(keys)
    return rows

  def append(self, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows behind those that were taken, down to the disk."""
    self.cut()
    with self.path.open("ab") as file:
      for row in rows:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        file.write(line)
        self._rows.append(row)
        self._ends.append(self._ends[-1] + len(line))
      file.flush()
      os.fsync(file.fileno())
    self._taken = len(self._rows)

  def cut(self) -> None:
    """Cuts the file behind the rows that were taken or appended."""
    if self._taken == len(self._rows) and self._size() == self._ends[-1]:
      return
    del self._rows[self._taken :], self._ends[self._taken + 1 :]
    os.truncate(self.path, self._ends[-1])

  def _size(self) -> int:
    return self.path.stat().st_size if self.path.exists() else 0


def _verdict_name(verdict: Verdict) -> str:
  return verdict.name.lower()


def _write_json(path: Path, value: dict[str, Any]) -> None:
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
  partial.replace(path)
