"""Linguistic DocIDs: a document is called by the tokens of its title, or by the leading tokens of its text.

    "Kafka"        _kafka  EOS    PAD  PAD  PAD      the first document of that title
    "Kafka"        _kafka  _(     2    )    EOS      the second: its ordinal, in corpus order, is appended

Two documents meet in one identifier when their titles are equal, or become so once normalised or cut to the canvas. The
first keeps it; the others are told apart by ` (2)`, ` (3)` ..., the title cut as far as the ordinal needs. An ordinal
whose identifier is already some document's own title (`Kafka (2)`) is passed over.

How many leading tokens: the fewest that tell apart `LEADING_SHARE` of the documents whose texts differ at all. A
document without text is called by its title. What leading tokens leave alike gets ordinals in the same way.
"""

from collections.abc import Sequence

import numpy as np

from diffgr_jax.data.records import Document
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.docid.index import DocIdIndex

Tokens = tuple[int, ...]
SOURCES = ("title", "leading")
LEADING_SHARE = 0.99
_LEADING_LETTERS = 1000  # of a text that are looked at


def build_linguistic_index(
  documents: Sequence[Document], vocab: Vocabulary, max_length: int | None = None, *, source: str = "title"
) -> DocIdIndex:
  """Builds the index of a corpus; its rows are all distinct.

  Args:
    documents: the corpus, in order.
    vocab: what encodes the titles or texts.
    max_length: the longest canvas allowed, EOS included; longer names are cut. None: what the longest name needs.
    source: title, or leading (tokens of the text).

  Raises:
    ValueError: no documents, an unknown source, or a `max_length` that leaves no room for a token or the ordinals.
  """
  if not documents:
    raise ValueError("cannot build a DocID index of no documents")
  if max_length is not None and max_length < 2:
    raise ValueError(f"max_length {max_length} leaves no room for a token and EOS; it must be at least 2")
  if source not in SOURCES:
    raise ValueError(f"the source of linguistic DocIDs is one of {', '.join(SOURCES)}, not {source!r}")
  most = None if max_length is None else max_length - 1
  wanted = _titles(documents, vocab) if source == "title" else _leading(documents, vocab)
  room = max(map(len, wanted)) if most is None else min(max(map(len, wanted)), most)
  names, told_apart = _distinct_names([name[:room] for name in wanted], vocab, room, most)
  length = max(room, *map(len, names)) + 1
  codes = np.full((len(names), length), vocab.pad_id, np.int32)
  for row, name in zip(codes, names, strict=True):
    row[: len(name)] = name
    row[len(name)] = vocab.eos_id
  return DocIdIndex(
    codes=codes,
    doc_ids=tuple(document.doc_id for document in documents),
    titles=tuple(document.title for document in documents),
    eos_id=vocab.eos_id,
    pad_id=vocab.pad_id,
    told_apart=told_apart,
  )


def _titles(documents: Sequence[Document], vocab: Vocabulary) -> list[Tokens]:
  return [tuple(tokens) for tokens in vocab.encode_many([document.title for document in documents])]


def _leading(documents: Sequence[Document], vocab: Vocabulary) -> list[Tokens]:
  """The first tokens of every text, as many as the corpus needs."""
  begins = [(document.text.strip() or document.title)[:_LEADING_LETTERS] for document in documents]
  texts = [tuple(tokens) for tokens in vocab.encode_many(begins)]
  differing = len(set(texts))
  length = 1
  while len({text[:length] for text in texts}) < LEADING_SHARE * differing:
    length += 1
  return [text[:length] for text in texts]


def _distinct_names(names: list[Tokens], vocab: Vocabulary, room: int, most: int | None) -> tuple[list[Tokens], int]:
  """Returns names with no two alike, and how many got an ordinal.

  Args:
    names: the tokens wanted, at most `room` each.
    vocab: encodes ordinals.
    room: the length that titles and ordinals share; an ordinal longer than that by itself takes up to `most`.
    most: the longest name allowed; None: any.
  """
  owner: dict[Tokens, int] = {}
  for row, name in enumerate(names):
    owner.setdefault(name, row)  # every title that stands alone keeps its name, whatever comes before it
  taken = set(owner)
  next_ordinal: dict[Tokens, int] = {}
  distinct = list(names)
  for row, name in enumerate(names):
    if owner[name] == row:
      continue
    number, candidate = next_ordinal.get(name, 2), name
    while candidate in taken:
      ordinal = tuple(vocab.encode(f"({number})"))
      if most is not None and len(ordinal) > most:
        raise ValueError(
          f"max_length {most + 1} is too short to tell apart the documents called {vocab.decode(name)!r}; "
          f"it must be at least {len(ordinal) + 1}"
        )
      candidate = name[: max(0, room - len(ordinal))] + ordinal
      number += 1
    next_ordinal[name] = number
    taken.add(candidate)
    distinct[row] = candidate
  return distinct, sum(owner[name] != row for row, name in enumerate(names))
