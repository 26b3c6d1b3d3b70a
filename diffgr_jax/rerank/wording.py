"""The words for items and what speaks for them: a prompt and the reasoning on it say the same thing in the same words.

    a count          0   1    2    3-4  5-9   10-19  20-
                     -   one  two  few  some  many   most
    popularity       0   1-7   8-15   16-31  32-63    64-
                     -   rare  known  liked  popular  famous
    similarity     <=0   -.2      -.35     -.5      -.65   above
                     -   distant  related  similar  close  twin

What says nothing (-) is left out, so that none is written as no word at all. A popularity and a similarity need no
label in front: their words name them. Each word is one piece of a vocabulary that was trained on prompts.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from diffgr_jax.rerank.records import Evidence, Item

# In the order in which they are written.
_FIELDS = (
  "followed", "followed_last", "directly", "directly_last", "preceded", "supporters", "popularity", "same_brand",
  "same_category", "similarity",
)  # fmt: skip
Content = str | int  # text as it is to stand, or an item as its position in the shop's items
_T = TypeVar("_T")

_NOT_WRITTEN = str.maketrans("<>", "  ")  # every marker of a chat and every ID is written in them


@dataclass(frozen=True)
class Buckets:
  """Words for ranges of a number: `words[i]` from `bounds[i-1]` on and below `bounds[i]`."""

  bounds: tuple[int | float, ...]
  words: tuple[str, ...]

  def __post_init__(self):
    if len(self.words) != len(self.bounds) + 1 or sorted(self.bounds) != list(self.bounds):
      raise ValueError(f"{len(self.bounds)} rising bounds part {len(self.bounds) + 1} words; got {self}")

  def number(self, value: int | float) -> int:
    """Which range a value lies in, from 0."""
    return bisect_right(self.bounds, value)

  def word(self, value: int | float) -> str:
    return self.words[self.number(value)]


COUNTS = Buckets((1, 2, 3, 5, 10, 20), ("", "one", "two", "few", "some", "many", "most"))
POPULARITIES = Buckets((1, 8, 16, 32, 64), ("", "rare", "known", "liked", "popular", "famous"))
SIMILARITIES = Buckets((1e-9, 0.2, 0.35, 0.5, 0.65), ("", "distant", "related", "similar", "close", "twin"))


@dataclass(frozen=True)
class Labels:
  """What stands before a field's words. Where it ends in no space, the words follow at once."""

  title: str
  brand: str
  category: str
  followed: str
  followed_last: str
  directly: str
  directly_last: str
  preceded: str
  supporters: str
  popularity: str
  same_brand: str
  same_category: str
  similarity: str


def plain_text(text: str) -> str:
  """A source's text as it may stand in a prompt: one line, no control characters, nothing that could be a marker."""
  printable = "".join(sign if sign.isprintable() else " " for sign in text.translate(_NOT_WRITTEN))
  return " ".join(printable.split())


def plain_part(text: str) -> str:
  """`plain_text` of a part of a text: a space at its ends stays, for items stand beside it."""
  plain = plain_text(text)
  return " " * text[:1].isspace() + plain + " " * (text[-1:].isspace() and bool(plain))


def first_words(text: str, count: int) -> str:
  """The first words of a text, without a sign at their end that joins what was cut off."""
  return " ".join(plain_text(text).split()[:count]).rstrip(" &,-")


def item_category(item: Item) -> str:
  """The most special category, or ""."""
  return item.categories[-1] if item.categories else ""


def short_title(item: Item, count: int) -> str:
  """The first words of a title, without the brand at its beginning: that is written apart."""
  title, brand = plain_text(item.title), plain_text(item.brand)
  if brand and title.casefold().startswith(brand.casefold() + " "):
    title = title[len(brand) :].lstrip(" -:,.") or title
  return first_words(title, count)


def item_fields(item: Item, labels: Labels, *, title_words: int, name_words: int) -> list[str]:
  """What is known of an item, each field with its label; empty fields are left out."""
  fields = (
    (labels.title, short_title(item, title_words)),
    (labels.brand, first_words(item.brand, name_words)),
    (labels.category, first_words(item_category(item), name_words)),
  )
  return [label + text for label, text in fields if text]


def evidence_words(evidence: Evidence) -> dict[str, str]:
  """The word of each number of the evidence that says something, by the field's name."""
  words = {
    "followed": COUNTS.word(evidence.followed),
    "followed_last": COUNTS.word(evidence.followed_last),
    "directly": COUNTS.word(evidence.directly),
    "directly_last": COUNTS.word(evidence.directly_last),
    "preceded": COUNTS.word(evidence.preceded),
    "popularity": POPULARITIES.word(evidence.popularity),
    "same_brand": COUNTS.word(evidence.same_brand),
    "same_category": COUNTS.word(evidence.same_category),
    "similarity": SIMILARITIES.word(evidence.similarity),
  }
  return {field: word for field, word in words.items() if word}


def describe_evidence(
  evidence: Evidence, labels: Labels, separator: str, supporters: Sequence[Content]
) -> tuple[Content, ...]:
  """The evidence as words.

  Args:
    evidence: of one candidate.
    labels: of the fields.
    separator: between two fields.
    supporters: how those supporters that are to be named are written: as themselves, or in words.

  Returns:
    Contents to be joined; () where nothing is known.
  """
  words = evidence_words(evidence)
  parts: list[tuple[Content, ...]] = []
  for field in _FIELDS:
    if field == "supporters" and supporters:
      named: list[Content] = list(supporters)
      parts.append((labels.supporters, *interleave(named, " ")))
    elif field in words:
      parts.append((getattr(labels, field) + words[field],))
  return tuple(content for part in interleave(parts, (separator,)) for content in part)


def interleave(values: Sequence[_T], between: _T) -> list[_T]:
  """The values with one more between each two of them."""
  return [value for pair in zip(values, [between] * len(values), strict=True) for value in pair][:-1]


def joined(contents: Iterable[Content]) -> tuple[Content, ...]:
  """The same contents with neighbouring texts made one, and without empty ones."""
  result: list[Content] = []
  for content in contents:
    if isinstance(content, str) and result and isinstance(result[-1], str):
      result[-1] += content
    elif content != "":
      result.append(content)
  return tuple(result)
