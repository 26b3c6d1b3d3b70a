"""A chat message as segments, the markers of a chat template, and the message as tokens.

    role         system   user     reasoning   answer     end
    markers     S      s U       R           r A        E
    part        PROMPT PROMPT    REASONING   ANSWER     EOS       S s U R: PROMPT, r: REASONING, A: ANSWER, E: EOS

A prompt is what a model is given, up to and with R. So the tokens of a message without an assistant's roles are exactly
the beginning of the whole message's tokens, and what a model generates begins with its reasoning. The marker A belongs
to the answer, for the model has to write it.

Segments are tokenised one by one, so that the same text has the same tokens wherever it stands, and a parser can look
for them. A sentencepiece tokenizer begins every text with a word's start: where that is a piece of its own (`▁` before
a bracket), it is left out.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
import enum
import itertools
from typing import Literal

from jaxtyping import Int, Int8
import numpy as np
from tqdm import tqdm

from diffgr_jax.data.vocab import SPECIAL_TOKENS, WORD_MARK, Vocabulary
from diffgr_jax.docid.codes import code_tokens
from diffgr_jax.rerank.retrievers import QUIET_SECONDS
from diffgr_jax.rerank.wording import Content, joined

Role = Literal["system", "user", "reasoning", "answer", "end"]
_PART = 1024  # messages that are encoded together
_ROLES: tuple[Role, ...] = ("system", "user", "reasoning", "answer", "end")


class Part(enum.IntEnum):
  """What a token is there for. The loss weighs the last three apart; the first carries none."""

  PROMPT = 0
  REASONING = 1
  ANSWER = 2
  EOS = 3


_PARTS: dict[Role, Part] = {
  "system": Part.PROMPT, "user": Part.PROMPT, "reasoning": Part.REASONING, "answer": Part.ANSWER, "end": Part.EOS,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
  """A text, or an item by its position in the shop's items; of the role `end`, the text ""."""

  role: Role
  content: Content


Message = tuple[Segment, ...]


@dataclass(frozen=True)
class ChatTemplate:
  """What stands around the roles, and how a ranking is written.

  A marker is the name of a special token of the vocabulary (`[SEP]`), a token of the tokenizer in <> (`<think>`), or
  text.

  Attributes:
    start: before everything.
    system_open: before the system's text; with `system_close` left out where there is none.
    system_close: after it.
    user_open: before the user's text.
    reasoning_open: after the user's text; what a model generates begins behind it.
    reasoning_close: after the reasoning.
    answer_open: before the answer; never inside a reasoning.
    end: the end of the message, always the vocabulary's [EOS].
    list_open: before the first ID of a ranking.
    list_separator: between two entries.
    list_close: after the last one.
    labels: a letter for each candidate, before its ID wherever it is named; "": none. The ID of a letter stands behind
      it in the prompt, and one letter follows another in the alphabet: a small model learns both early.
  """

  start: tuple[str, ...]
  system_open: tuple[str, ...]
  system_close: tuple[str, ...]
  user_open: tuple[str, ...]
  reasoning_open: tuple[str, ...]
  reasoning_close: tuple[str, ...]
  answer_open: tuple[str, ...]
  list_open: str
  list_separator: str
  list_close: str
  end: tuple[str, ...] = ("[EOS]",)
  labels: str = ""

  def label(self, place: int) -> str:
    """What stands before the ID of the candidate at a place of the list; "" without labels.

    Raises:
      ValueError: there are more candidates than letters.
    """
    if not self.labels:
      return ""
    if place >= len(self.labels):
      raise ValueError(f"a chat template with {len(self.labels)} labels has none for candidate {place + 1} of a list")
    return f" {self.labels[place]}"


CHATML = ChatTemplate(
  start=(),
  system_open=("<|im_start|>", "system\n"),
  system_close=("<|im_end|>", "\n"),
  user_open=("<|im_start|>", "user\n"),
  reasoning_open=("<|im_end|>", "\n", "<|im_start|>", "assistant\n", "<think>", "\n"),
  reasoning_close=("\n",),
  answer_open=("</think>", "\n\n"),
  list_open='{"ranking": ["',
  list_separator='", "',
  list_close='"]}',
)

COMPACT_CHAT = ChatTemplate(
  start=("[BOS]",),
  system_open=(),
  system_close=("[SEP]",),
  user_open=(),
  reasoning_open=("[SEP]",),
  reasoning_close=(),
  answer_open=("[SEP]",),
  list_open="[",
  list_separator="",
  list_close="]",
  labels="abcdefghijklmnopqrstuvwxyz",
)


@dataclass(frozen=True, eq=False)
class Encoded:
  """A message as tokens, not padded, and the `Part` of each."""

  tokens: Int[np.ndarray, "T"]
  parts: Int8[np.ndarray, "T"]


def segments(role: Role, contents: Sequence[Content]) -> Message:
  return tuple(Segment(role, content) for content in joined(contents))


def encode_message(
  message: Message, vocab: Vocabulary, codes: Int[np.ndarray, "N L"], template: ChatTemplate
) -> Encoded:
  """`encode_messages` of one message."""
  return encode_messages([message], vocab, codes, template)[0]


def encode_in_parts(
  messages: Iterable[Message],
  total: int,
  what: str,
  vocab: Vocabulary,
  codes: Int[np.ndarray, "N L"],
  template: ChatTemplate,
) -> Iterator[Encoded]:
  """`encode_messages` of many, as they are made, under a progress bar that says `what` they are."""
  left = iter(messages)
  with tqdm(total=total, desc=what, unit="message", delay=QUIET_SECONDS, leave=False) as bar:
    while part := list(itertools.islice(left, _PART)):
      yield from encode_messages(part, vocab, codes, template)
      bar.update(len(part))


def encode_messages(
  messages: Sequence[Message], vocab: Vocabulary, codes: Int[np.ndarray, "N L"], template: ChatTemplate
) -> list[Encoded]:
  """Messages as tokens.

  Args:
    messages: each with at least a system's or a user's segment, its roles in their order. A message may stop after the
      user (a prompt) or after any later role.
    vocab: has a DocID token for every level and code.
    codes: of the shop's items, in order.
    template: the markers; the tokenizer has to have those in <> as single tokens.

  Returns:
    The tokens of each message.

  Raises:
    ValueError: roles out of order, an item that has no codes, a vocabulary without the tokens.
  """
  items = item_tokens(codes, vocab)
  laid_out = [list(_with_markers(message, template)) for message in messages]
  texts = sorted({content for stream in laid_out for _, content in stream if isinstance(content, str)})
  rows: dict[Content | _Marker, Sequence[int]] = dict(zip(texts, text_tokens(texts, vocab), strict=True))
  for content in {content for stream in laid_out for _, content in stream if not isinstance(content, str)}:
    rows[content] = marker_tokens(content.text, vocab) if isinstance(content, _Marker) else _item_row(items, content)
  return [_encoded([(part, rows[content]) for part, content in stream]) for stream in laid_out]


def item_tokens(codes: Int[np.ndarray, "N L"], vocab: Vocabulary) -> Int[np.ndarray, "N L"]:
  """The DocID tokens of every item.

  Raises:
    ValueError: the vocabulary has other levels, or fewer codes.
  """
  levels, highest = codes.shape[1], int(codes.max(initial=0))
  if levels != vocab.docid_levels or highest >= vocab.docid_codes or codes.min(initial=0) < 0:
    have = f"{vocab.docid_levels} levels of {vocab.docid_codes} codes"
    raise ValueError(f"items have {levels} levels of codes up to {highest}, but the vocabulary has {have}")
  return code_tokens(codes, vocab)


def text_tokens(texts: Sequence[str], vocab: Vocabulary) -> list[list[int]]:
  """The tokens of each text, without a word's start that would stand alone."""
  found = vocab.encode_many(texts)
  return [
    rows[1:] if rows and not text[0].isspace() and vocab.piece(rows[0]) == WORD_MARK else rows
    for text, rows in zip(texts, found, strict=True)
  ]


def tokens_text(tokens: Sequence[int], vocab: Vocabulary) -> str:
  """What tokens say, so that `encode_messages` gives them again: behind an ID, a space where the tokens have one alone.

  `Vocabulary.decode` puts one there always, and read as a text that would be a token more, a word's start that stands
  alone, wherever a sign follows an ID:   with <d0_1> <d1_13> .
  """
  before_ids = " " if vocab.encode("x ") == vocab.encode("x") else ""  # to be read by people, where it costs no token
  is_id = lambda token: bool(vocab.docid_levels) and token >= vocab.docid_token(0, 0)
  words: list[str] = []
  for of_ids, chunk in itertools.groupby(tokens, is_id):
    rows = list(chunk)
    text = vocab.decode(rows)
    first = vocab.piece(rows[0])
    begins = first == WORD_MARK or (bool(words) and first.startswith(WORD_MARK))
    space = before_ids if of_ids else " " if begins and not text[:1].isspace() else ""
    words += [space, text]
  return "".join(words)


def count_tokens(contents: Sequence[Content], vocab: Vocabulary) -> int:
  """How many tokens contents take in a message."""
  texts = [content for content in joined(contents) if isinstance(content, str)]
  items = sum(not isinstance(content, str) for content in contents)
  return items * vocab.docid_levels + sum(map(len, text_tokens(texts, vocab)))


def marker_tokens(marker: str, vocab: Vocabulary) -> list[int]:
  """The tokens of one marker.

  Raises:
    ValueError: it is written in <>, and is no single token of the tokenizer.
  """
  if marker in SPECIAL_TOKENS:
    return [SPECIAL_TOKENS.index(marker)]
  rows = text_tokens([marker], vocab)[0]
  if marker.startswith("<") and len(rows) != 1:
    raise ValueError(
      f"the tokenizer has no token {marker!r}: take a chat model's tokenizer, or the compact template (COMPACT_CHAT)"
    )
  return rows


def markers_tokens(markers: Sequence[str], vocab: Vocabulary) -> tuple[int, ...]:
  """The tokens of markers in a row."""
  return tuple(itertools.chain.from_iterable(marker_tokens(marker, vocab) for marker in markers))


def message_text(message: Message, ids: Sequence[str], template: ChatTemplate) -> str:
  """A message as people, or a model behind an interface of texts, read it.

  Args:
    message: as for `encode_messages`.
    ids: how each of the shop's items is written, such as `<a_1><b_2><c_3>`.
    template: the markers.
  """
  stream = _with_markers(message, template)
  return "".join(
    content.text if isinstance(content, _Marker) else content if isinstance(content, str) else ids[content]
    for _, content in stream
  )


@dataclass(frozen=True, slots=True)
class _Marker:
  text: str


def _with_markers(message: Message, template: ChatTemplate) -> Iterator[tuple[Part, Content | _Marker]]:
  """The contents of a message and the template's markers, in the order of their tokens."""
  contents = _by_role(message)
  last = max((_ROLES.index(role) for role in contents), default=0)

  def markers(part: Part, texts: Sequence[str]) -> Iterator[tuple[Part, Content | _Marker]]:
    return ((part, _Marker(text)) for text in texts)

  def own(role: Role) -> Iterator[tuple[Part, Content | _Marker]]:
    return ((_PARTS[role], content) for content in contents.get(role, ()))

  yield from markers(Part.PROMPT, template.start)
  if "system" in contents:
    yield from itertools.chain(
      markers(Part.PROMPT, template.system_open), own("system"), markers(Part.PROMPT, template.system_close)
    )
  yield from itertools.chain(
    markers(Part.PROMPT, template.user_open), own("user"), markers(Part.PROMPT, template.reasoning_open)
  )
  yield from own("reasoning")
  if last >= _ROLES.index("answer"):
    yield from itertools.chain(
      markers(Part.REASONING, template.reasoning_close), markers(Part.ANSWER, template.answer_open), own("answer")
    )
  if "end" in contents:
    yield from markers(Part.EOS, template.end)


def _by_role(message: Message) -> dict[Role, list[Content]]:
  contents: dict[Role, list[Content]] = {}
  for segment in message:
    if contents and _ROLES.index(segment.role) < _ROLES.index(next(reversed(contents))):
      order = ", ".join(_ROLES)
      raise ValueError(f"{segment.role} stands after {next(reversed(contents))}; a message's roles come as {order}")
    contents.setdefault(segment.role, []).append(segment.content)
  return contents


def _item_row(items: Int[np.ndarray, "N L"], item: int) -> Sequence[int]:
  if not 0 <= item < len(items):
    raise ValueError(f"no codes for item {item}: there are codes for {len(items)} items")
  return items[item].tolist()


def _encoded(pieces: Sequence[tuple[Part, Sequence[int]]]) -> Encoded:
  tokens = np.fromiter(itertools.chain.from_iterable(rows for _, rows in pieces), np.int32)
  parts = np.repeat([part for part, _ in pieces], [len(rows) for _, rows in pieces])
  return Encoded(tokens, parts.astype(np.int8))
