"""Traces as JSON lines: a user's own, and what the other sources write.

    {"user": "A3", "reasoning": ["After ", {"item": "B01"}, " others took ...", ...], "ranking": ["B07", "B01", ...]}

Items are named by their ids, so that a file outlives the codes of an index. A reasoning may also be one string; where
the codes of the items are given, the IDs in it (<a_12><b_7>...) become items. A row belongs to the task of its user
whose candidates are those of its ranking. Rows with a key "dropped" tell of tries that were not kept, and are passed
over.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from jaxtyping import Int
import numpy as np

from diffgr_jax.data.records import BadRow
from diffgr_jax.data.rows import OnBadRow, existing, identifier, parse_object, read_rows, whole_characters
from diffgr_jax.rerank.answer import split_citations
from diffgr_jax.rerank.reasoning import NO_TRACE, Outcome, Trace, TraceRules
from diffgr_jax.rerank.records import RankingTask, Shop
from diffgr_jax.rerank.wording import Content, joined, plain_part

_Key = tuple[str, frozenset[int]]  # user, candidates


@dataclass(frozen=True)
class JsonlTraces:
  """Traces that were read."""

  rows: Mapping[_Key, Trace]
  rules: TraceRules

  def traces(self, tasks: Sequence[RankingTask]) -> Iterator[Outcome]:
    """Yields an outcome for each task."""
    for task in tasks:
      trace = self.rows.get((task.user, frozenset(task.candidates)))
      yield Outcome(task, None, NO_TRACE) if trace is None else self.rules.judge(task, trace)

  def unused(self, tasks: Sequence[RankingTask]) -> int:
    """How many rows belong to none of the tasks."""
    return len(self.rows.keys() - {(task.user, frozenset(task.candidates)) for task in tasks})


def read_traces(
  files: Iterable[str | Path],
  shop: Shop,
  rules: TraceRules,
  codes: Int[np.ndarray, "N L"] | None = None,
  on_bad_row: OnBadRow = "error",
) -> tuple[JsonlTraces, Counter[str]]:
  """Reads traces.

  Args:
    files: JSON lines.
    shop: of the items.
    rules: which traces are kept for the tasks.
    codes: of the shop's items, for IDs in strings. IDs that several items have are read as the first of them.
    on_bad_row: "error", or "skip": left out and counted.

  Returns:
    The source, and the counts of skipped rows by fault.

  Raises:
    BadRow: `FILE:LINE: what is wrong; what would be right`, with on_bad_row="error".
    FileNotFoundError: no such file.
  """
  positions = item_positions(shop)
  items = {} if codes is None else {tuple(row): item for item, row in reversed(list(enumerate(codes.tolist())))}
  rows: dict[_Key, Trace] = {}
  skipped: Counter[str] = Counter()

  def parse(line: bytes, place: str) -> tuple[_Key, Trace] | None:
    row = parse_object(line, place)
    if "dropped" in row:
      return None
    user = identifier(row, ("user",), place)
    trace = row_trace(row, positions, items, place)
    key = (user, frozenset(trace.ranking))
    if key in rows:
      raise BadRow(place, "second trace", f"user {user!r} has a trace for these candidates already; keep one of them")
    rows[key] = trace
    return key, trace

  for file in files:
    for _ in read_rows(existing(file), parse, on_bad_row, skipped):
      pass
  return JsonlTraces(rows, rules), skipped


def item_positions(shop: Shop) -> dict[str, int]:
  return {item.item_id: position for position, item in enumerate(shop.items)}


def row_trace(
  row: Mapping[str, Any], positions: Mapping[str, int], items: Mapping[tuple[int, ...], int], place: str
) -> Trace:
  """The trace of a row.

  Args:
    row: of a file.
    positions: of the shop's items, by id.
    items: positions by codes, for IDs in strings; empty: strings are texts.
    place: of the row, for errors.

  Raises:
    BadRow: it is none.
  """
  ranking = _ranking(row.get("ranking"), positions, place)
  return Trace(_reasoning(row.get("reasoning"), positions, items, place), ranking)


def trace_row(user: str, trace: Trace, shop: Shop) -> dict[str, Any]:
  """A trace as a row of a file."""
  reasoning = [
    content if isinstance(content, str) else {"item": shop.items[content].item_id} for content in trace.reasoning
  ]
  return {"user": user, "reasoning": reasoning, "ranking": [shop.items[item].item_id for item in trace.ranking]}


def write_traces(path: str | Path, outcomes: Iterable[Outcome], shop: Shop) -> Counter[str]:
  """Writes the kept traces, under another name until the file is whole, and counts outcomes by what became of them."""
  path, counts = Path(path), Counter[str]()
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  with partial.open("w", encoding="utf-8") as file:
    for outcome in outcomes:
      counts[outcome.dropped or "kept"] += 1
      if outcome.trace is not None:
        file.write(json.dumps(trace_row(outcome.task.user, outcome.trace, shop), ensure_ascii=False) + "\n")
  partial.replace(path)
  return counts


# --- one row ---


def _ranking(value: Any, positions: Mapping[str, int], place: str) -> tuple[int, ...]:
  if not isinstance(value, list) or not value:
    raise BadRow(place, "no ranking", "a trace needs 'ranking', a list of item ids, best first")
  ranking = tuple(_position(item, positions, place) for item in value)
  if len(set(ranking)) < len(ranking):
    twice = next(item for item in value if value.count(item) > 1)
    raise BadRow(place, "item ranked twice", f"the ranking has item {twice!r} twice; it has every candidate once")
  return ranking


def _reasoning(
  value: Any, positions: Mapping[str, int], items: Mapping[tuple[int, ...], int], place: str
) -> tuple[Content, ...]:
  if not isinstance(value, str | list) or not value:
    raise BadRow(place, "no reasoning", "a trace needs 'reasoning', a string or a list of strings and {\"item\": id}")
  contents: list[Content] = []
  for part in [value] if isinstance(value, str) else value:
    if isinstance(part, str):
      contents += _text(whole_characters(part, place), items, place)
    elif isinstance(part, dict) and part.keys() == {"item"}:
      contents.append(_position(part["item"], positions, place))
    else:
      raise BadRow(place, "broken reasoning", f'a part of a reasoning is a string or {{"item": id}}, not {part!r:.60}')
  return joined(contents)


def _text(text: str, items: Mapping[tuple[int, ...], int], place: str) -> list[Content]:
  """A text with its IDs as items, and without anything that could be a marker."""
  contents = split_citations(text, items, len(next(iter(items)))) if items else (text,)
  if contents is None:
    raise BadRow(place, "unknown ID", "the reasoning has tokens such as <a_1> that are the ID of no item of the shop")
  return [plain_part(content) if isinstance(content, str) else content for content in contents]


def _position(value: Any, positions: Mapping[str, int], place: str) -> int:
  name = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
  if not isinstance(name, str) or name not in positions:
    raise BadRow(place, "unknown item", f"{value!r:.60} is no item of the shop; correct the id or remove the row")
  return positions[name]
