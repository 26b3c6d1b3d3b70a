"""The one parser: what a model wrote, as a ranking of the candidates or as the fault it has.

    answer     list_open entry separator entry separator ... entry list_close [EOS]
    entry      ID, or any label of the template and ID; the ID decides

An ID is one code of every level, in order; the separator may be nothing, since an entry's length is known.

Every answer gets one verdict. Of several faults the greatest counts:

    TRUNCATED > UNPARSABLE > OUT_OF_SET > DUPLICATE > OMISSION > OK

    TRUNCATED    it did not end: there is no [EOS] (of a text: the caller says so)
    UNPARSABLE   it ended, and is not of the form above; the answer is what stands behind the last marker that opens one
    OUT_OF_SET   an ID that is no candidate's
    DUPLICATE    a candidate more often than once
    OMISSION     a candidate less often than once

Ten IDs with one of them twice leave one out: that is a DUPLICATE. The counts of each fault are kept beside the verdict.
Candidates whose IDs are equal (codes need not be unique) are told apart by nothing in an answer: their ID stands for
the first of them where it comes first, for the second where it comes again, and is a duplicate only from then on.

Whatever could be read of a faulty answer, from its beginning to its first fault of form, can be repaired: duplicates
and strangers drop out, and what is missing is appended in the input order. From nothing comes the input order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import enum
import functools
import itertools
import math
import re
from typing import Literal

from jaxtyping import Bool, Int
import numpy as np

from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.docid.codes import level_name
from diffgr_jax.rerank.chat import ChatTemplate, marker_tokens, markers_tokens, text_tokens
from diffgr_jax.rerank.wording import Content, joined

STRANGER = -1  # an entry that is no candidate
NO_ENTRY = -2  # behind the last entry
NO_CODE = -1  # where there is no candidate

_ID_TOKEN = re.compile(r"<([a-z]+[0-9]*)_([0-9]{1,6})>")
_ID_TOKENS = re.compile(r"(?:\s*<[a-z]+[0-9]*_[0-9]{1,6}>)+")
_LABEL = re.compile(r"(?:^|(?<=[>,]))\s*[a-z]\s*(?=<[a-z])")  # before an ID, in a list
_THINK_END = "</think>"


class Verdict(enum.IntEnum):
  """What an answer is; of several faults the greatest counts."""

  OK = 0
  OMISSION = 1
  DUPLICATE = 2
  OUT_OF_SET = 3
  UNPARSABLE = 4
  TRUNCATED = 5


@dataclass(frozen=True)
class AnswerForm:
  """The tokens that an answer is made of (`answer_form`)."""

  marker: tuple[int, ...]
  list_open: tuple[int, ...]
  separator: tuple[int, ...]
  list_close: tuple[int, ...]
  eos_id: int
  first_code: int  # the token of code 0 of level 0; those of a level follow each other
  level_codes: int
  levels: int
  labels: tuple[int, ...] = ()  # one of which stands before each ID: the first letters that are single tokens


@dataclass(frozen=True, eq=False)
class Answers:
  """What B answers say.

  Attributes:
    verdict: a `Verdict` each.
    entries: of what could be read: the candidate's place in the input order, STRANGER or NO_ENTRY.
    duplicates: entries beyond the first of a candidate.
    strangers: entries that are no candidate.
    omitted: candidates without an entry.
    candidates: how many there are.
  """

  verdict: Int[np.ndarray, "B"]
  entries: Int[np.ndarray, "B M"]
  duplicates: Int[np.ndarray, "B"]
  strangers: Int[np.ndarray, "B"]
  omitted: Int[np.ndarray, "B"]
  candidates: Int[np.ndarray, "B"]

  @property
  def ok(self) -> Bool[np.ndarray, "B"]:
    return self.verdict == Verdict.OK


def answer_form(vocab: Vocabulary, template: ChatTemplate) -> AnswerForm:
  """The form of the answers that `encode_messages` writes.

  Raises:
    ValueError: a vocabulary without DocID tokens or markers, or a form in which IDs could not be told apart.
  """
  parts = (template.list_open, template.list_separator, template.list_close)
  opening, separator, closing = map(tuple, text_tokens(parts, vocab))
  marker = markers_tokens(template.answer_open, vocab)
  if not (marker and closing):
    raise ValueError(f"an answer needs a marker before it and an end of its list; got {template}")
  (eos_id,) = marker_tokens("[EOS]", vocab)
  first = vocab.docid_token(0, 0)
  labels = text_tokens([template.label(place) for place in range(len(template.labels))], vocab)
  labels = tuple(rows[0] for rows in itertools.takewhile(lambda rows: len(rows) == 1, labels))
  if template.labels and len(labels) < 2:
    raise ValueError("the tokenizer has no single tokens for the template's labels: train the vocabulary on prompts")
  return AnswerForm(marker, opening, separator, closing, eos_id, first, vocab.docid_codes, vocab.docid_levels, labels)


def candidate_codes(codes: Int[np.ndarray, "N L"], lists: Sequence[Sequence[int]]) -> Int[np.ndarray, "B C L"]:
  """The codes of every list's candidates, NO_CODE behind the end of shorter lists."""
  longest = max(map(len, lists), default=0)
  result = np.full((len(lists), longest, codes.shape[1]), NO_CODE, np.int32)
  for row, items in enumerate(lists):
    result[row, : len(items)] = codes[list(items)]
  return result


def count_verdicts(answers: Answers) -> dict[str, int]:
  """How many answers have each verdict, by its name in small letters."""
  counts = np.bincount(answers.verdict, minlength=len(Verdict))
  return {verdict.name.lower(): int(counts[verdict]) for verdict in Verdict}


# --- tokens ---


def parse_tokens(tokens: Int[np.ndarray, "B T"], form: AnswerForm, candidates: Int[np.ndarray, "B C L"]) -> Answers:
  """Parses what a model wrote.

  Args:
    tokens: what was generated for each prompt, without the prompt; behind the first [EOS] anything may stand.
    form: of the answers.
    candidates: `candidate_codes` of each row's task.

  Raises:
    ValueError: there are no candidates.
  """
  levels, lead = form.levels, 1 if form.labels else 0
  period = lead + levels + len(form.separator)
  margin = len(form.marker) + len(form.list_open) + period + len(form.list_close)
  padded = np.pad(tokens.astype(np.int64), ((0, 0), (0, margin)), constant_values=-1)
  ends = padded == form.eos_id
  ended = ends.any(axis=1)
  end = np.where(ended, ends.argmax(axis=1), tokens.shape[1])
  padded = np.where(np.arange(padded.shape[1]) < end[:, None], padded, -1)

  start = answer_starts(padded, form.marker)
  opened = (start >= 0) & _spells(padded, start, form.list_open)
  first = start + len(form.list_open)
  at = first[:, None] + period * np.arange(tokens.shape[1] // period + 1)  # IDs stand at even distances
  level = np.arange(levels)
  codes = _take(padded, at[..., None] + lead + level) - form.first_code - form.level_codes * level
  is_id = ((codes >= 0) & (codes < form.level_codes)).all(axis=-1) & opened[:, None]
  if form.labels:
    is_id &= np.isin(_take(padded, at), form.labels)
  goes_on = np.logical_and.accumulate(is_id & _spells(padded, at + lead + levels, form.separator), axis=1)
  read = is_id & np.pad(goes_on[:, :-1], ((0, 0), (1, 0)), constant_values=True)

  count = read.sum(axis=1)
  close = first + np.where(count > 0, count * period - len(form.separator), 0)
  whole = opened & _spells(padded, close, form.list_close) & (close + len(form.list_close) == end)
  fault = np.where(ended, np.where(whole, Verdict.OK, Verdict.UNPARSABLE), Verdict.TRUNCATED)
  return _judged(codes[:, : count.max(initial=0)], count, fault, candidates)


def answer_starts(tokens: Int[np.ndarray, "B T"], marker: Sequence[int]) -> Int[np.ndarray, "B"]:
  """Where the last marker of each row ends; -1 where there is none."""
  windows = tokens.shape[1] - len(marker) + 1
  if windows < 1:
    return np.full(len(tokens), -1)
  found = np.ones((len(tokens), windows), bool)
  for offset, token in enumerate(marker):
    found &= tokens[:, offset : offset + windows] == token
  last = windows - 1 - found[:, ::-1].argmax(axis=1)
  return np.where(found.any(axis=1), last + len(marker), -1)


def _take(tokens: Int[np.ndarray, "B W"], places: Int[np.ndarray, "B *k"]) -> Int[np.ndarray, "B *k"]:
  """The tokens at each row's places; places outside give the last token, which is padding."""
  width = tokens.shape[1]
  inside = np.where((places >= 0) & (places < width), places, width - 1)
  flat = inside.reshape(len(tokens), math.prod(places.shape[1:]))
  return np.take_along_axis(tokens, flat, axis=1).reshape(places.shape)


def _spells(
  tokens: Int[np.ndarray, "B W"], places: Int[np.ndarray, "B *k"], word: Sequence[int]
) -> Bool[np.ndarray, "B *k"]:
  """Whether a word stands at each row's places."""
  same = np.ones(places.shape, bool)
  for offset, token in enumerate(word):
    same &= _take(tokens, places + offset) == token
  return same


# --- texts ---


def parse_texts(texts: Sequence[str], finished: Sequence[bool], candidates: Int[np.ndarray, "B C L"]) -> Answers:
  """Parses answers as texts: a list in brackets, IDs with or without quotes and commas, alone or as {"ranking": [...]}.

  The list is the one that the last `[` opens, behind any </think>. IDs are <a_12><b_7>... or <d0_12><d1_7>..., with or
  without space between their tokens.

  Args:
    texts: a reasoning may stand in front of the list.
    finished: of each text, whether it came to its end; a text does not show it.
    candidates: `candidate_codes` of each text's task.

  Raises:
    ValueError: there are no candidates, or not one list and one `finished` for each text.
  """
  if not len(texts) == len(finished) == len(candidates):
    raise ValueError(f"{len(texts)} texts, {len(finished)} times finished, {len(candidates)} lists of candidates")
  levels = candidates.shape[2]
  lists = [_read_list(text, levels) for text in texts]
  count = np.array([len(found) for found, _ in lists], np.int64)
  codes = np.full((len(texts), count.max(initial=0), levels), NO_CODE, np.int64)
  for row, (found, _) in enumerate(lists):
    codes[row, : len(found)] = np.array(found, np.int64).reshape(-1, levels)
  whole = np.array([whole for _, whole in lists], bool)
  ended = np.array(finished, bool)
  fault = np.where(ended, np.where(whole, Verdict.OK, Verdict.UNPARSABLE), Verdict.TRUNCATED)
  return _judged(codes, count, fault, candidates)


def split_citations(text: str, items: Mapping[tuple[int, ...], int], levels: int) -> tuple[Content, ...] | None:
  """A text whose IDs are made items.

  Args:
    text: with IDs as `parse_texts` reads them.
    items: by their codes.
    levels: how many codes an ID has.

  Returns:
    Texts and items; None where tokens of IDs are no whole ID, or one of no item in `items`.
  """
  contents: list[Content] = []
  behind = 0
  for run in _ID_TOKENS.finditer(text):
    codes = _run_codes(run[0], levels)
    if not all(code in items for code in codes) or not codes:
      return None
    contents.append(text[behind : run.start()] + " " * run[0][0].isspace())
    for code in codes:
      contents.append(items[code])
    behind = run.end()
  return joined([*contents, text[behind:]])


def _read_list(text: str, levels: int) -> tuple[list[tuple[int, ...]], bool]:
  """The IDs of the list that a text ends with, up to the first thing that is none, and whether the list is whole."""
  start = text.rfind("[")
  if start < 0 or _THINK_END in text[start:]:
    return [], False
  body, close, rest = text[start + 1 :].partition("]")
  body = _LABEL.sub("", body)
  found: list[tuple[int, ...]] = []
  entries = body.split(",") if body.strip() else []
  for entry in entries:
    entry = entry.strip()
    if len(entry) > 1 and entry[0] == entry[-1] == '"':
      entry = entry[1:-1]
    codes = _run_codes(entry, levels) if _ID_TOKENS.fullmatch(entry.rstrip()) else []
    if not codes:
      return found, False
    found += codes
  return found, bool(close) and rest.strip() in ("", "}")


def _run_codes(run: str, levels: int) -> list[tuple[int, ...]]:
  """The IDs that a run of tokens spells; none where it is not made of whole IDs."""
  names = _level_names(levels)
  tokens = [(names.get(name), int(code)) for name, code in _ID_TOKEN.findall(run)]
  if len(tokens) % levels or any(level != place % levels for place, (level, _) in enumerate(tokens)):
    return []
  return [tuple(code for _, code in tokens[i : i + levels]) for i in range(0, len(tokens), levels)]


@functools.cache
def _level_names(levels: int) -> dict[str, int]:
  return {name: level for level in range(levels) for name in (level_name(level), f"d{level}")}


# --- what the entries are ---


def _judged(
  codes: Int[np.ndarray, "B M L"],
  count: Int[np.ndarray, "B"],
  fault: Int[np.ndarray, "B"],
  candidates: Int[np.ndarray, "B C L"],
) -> Answers:
  """Finds the candidates of the first `count` IDs and adds what is wrong with them to the faults of form."""
  if not candidates.shape[1]:
    raise ValueError("an answer ranks at least one candidate; got lists without any")
  real = (candidates != NO_CODE).all(axis=-1)
  size = real.sum(axis=1)
  twins = (candidates[:, :, None] == candidates[:, None]).all(axis=-1) & real[:, None]
  first_twin = twins.argmax(axis=-1)  # candidates with one ID go by the first of them
  earlier_twins = np.tril(twins, -1).sum(axis=-1)

  named = (codes[:, :, None] == candidates[:, None]).all(axis=-1) & real[:, None]
  is_read = np.arange(codes.shape[1]) < count[:, None]
  known = named.any(axis=-1) & is_read
  leader = named.argmax(axis=-1)
  again = (leader[:, :, None] == leader[:, None]) & known[:, :, None] & known[:, None]
  seen = np.tril(again, -1).sum(axis=-1)  # earlier entries with the same ID
  bearers = named.sum(axis=-1)
  which = np.minimum(seen, np.maximum(bearers - 1, 0))
  its_place = (first_twin[:, None] == leader[..., None]) & (earlier_twins[:, None] == which[..., None]) & real[:, None]
  duplicate = known & (seen >= bearers)

  strangers, duplicates = (is_read & ~known).sum(axis=1), duplicate.sum(axis=1)
  omitted = size - (known & ~duplicate).sum(axis=1)
  verdict = np.maximum.reduce([
    fault,
    np.where(strangers > 0, Verdict.OUT_OF_SET, Verdict.OK),
    np.where(duplicates > 0, Verdict.DUPLICATE, Verdict.OK),
    np.where(omitted > 0, Verdict.OMISSION, Verdict.OK),
  ])  # fmt: skip
  entries = np.where(known, its_place.argmax(axis=-1), np.where(is_read, STRANGER, NO_ENTRY))
  return Answers(verdict, entries, duplicates, strangers, omitted, size)


# --- rankings ---


def rankings(answers: Answers, invalid: Literal["input_order", "repair"]) -> Int[np.ndarray, "B C"]:
  """The places in the input order of each task's candidates, best first.

  Args:
    answers: parsed.
    invalid: what becomes of an answer whose verdict is not OK: "input_order" leaves the candidates as they were;
      "repair" keeps what could be read, without duplicates and strangers, and appends what is missing.

  Returns:
    A permutation of the candidates in each row; of a shorter list, its candidates come first.
  """
  width, entries = int(answers.candidates.max(initial=0)), answers.entries.shape[1]
  place = np.arange(width)
  is_entry = answers.entries[:, :, None] == place
  order = np.where(is_entry.any(axis=1), is_entry.argmax(axis=1) if entries else 0, entries + place)
  if invalid == "input_order":
    order = np.where(answers.ok[:, None], order, place)
  order = np.where(place < answers.candidates[:, None], order, entries + width + place)
  return np.argsort(order, axis=1, kind="stable")


def count_repairs(answers: Answers) -> dict[str, int]:
  """What "repair" does: how many answers it changes, and how many entries it drops and appends in them."""
  return {
    "answers": len(answers.verdict),
    "repaired": int((~answers.ok).sum()),
    "duplicates dropped": int(answers.duplicates.sum()),
    "strangers dropped": int(answers.strangers.sum()),
    "missing appended": int(answers.omitted.sum()),
  }
