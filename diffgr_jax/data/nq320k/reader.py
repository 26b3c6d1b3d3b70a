"""Reads Natural Questions (simplified, v1.0) as NQ320K: every page once, by its title, and every question.

    {"example_id", "question_text", "document_url", "annotations",
     "document_text": "Cat - Wikipedia <H1> Cat </H1> Jump to : navigation , search <P> The cat ... </P>"}       train
     "document_title": "Cat", "document_tokens": [{"token": "<P>", "html_token": true}, ...], "document_html"}    dev

The title is `document_title`, else what stands in the first <H1>, else the title of the URL. Pages with one title are
one document, the first that comes, train before dev; titles are compared without case, accents and spacing, for the two
files write them differently (`Cat ( film )`, `Cat (film)`). NCI (arXiv 2206.02743), after DSI (arXiv 2202.06991), does
so with a tokenizer's normalisation, and arrives at 109,739 documents, 307,373 training and 7,830 dev questions. A
question keeps its page whether or not an annotator found a long answer there, as theirs do.

The text is that of the page without tags and without what stands before the end of its heading; of it, the first
`words` words, which is what models read.
"""

from collections import Counter
from collections.abc import Sequence
import html
import re
from typing import Any
import unicodedata
import urllib.parse

from diffgr_jax.data.records import BadRow, Document, Query
from diffgr_jax.data.rows import NO_TEXT, identifier, parse_object, string_field, whole_characters
from diffgr_jax.data.sources import Source
from diffgr_jax.data.staging import Record

# role, which is the split -> names of its file; the first ones are those of the download
FILES = {
  "train": ("simplified-nq-train.jsonl.gz", "*nq-train*.jsonl", "*nq-train*.jsonl.gz"),
  "validation": ("nq-dev-all.jsonl.gz", "*nq-dev*.jsonl", "*nq-dev*.jsonl.gz"),
}
URL = "https://storage.googleapis.com/natural_questions/v1.0-simplified"
_TAG = re.compile(r"<[^<>]*>")
_HEADING = re.compile(r"<H1[^<>]*>(.*?)</H1>", re.IGNORECASE | re.DOTALL)
_OPENING, _CLOSING = re.compile(r"(\() "), re.compile(r" ([),.:;!?])")  # signs stand apart in tokenised pages
_JUMP = re.compile(r"^\s*Jump to ?: ?navigation ?, ?search\s*", re.IGNORECASE)


class NqReader:
  """The documents and questions of the sources, roles `train` and `validation`, in this order."""

  def __init__(self, sources: Sequence[Source], words: int):
    """Takes the sources and how many words of a text are kept (0: all)."""
    self.streamed = sources
    self.skipped: Counter[str] = Counter()
    self.words = words
    self.doc_ids: dict[str, str] = {}  # by the title's key
    self.query_ids: set[str] = set()

  def parse(self, source: Source, line: bytes, place: str) -> Sequence[Record]:
    row = parse_object(line, place)
    query_id = identifier(row, ("example_id",), place)
    question = string_field(row, "question_text", place)
    if not question:
      raise BadRow(place, "no question", f"example {query_id} has no 'question_text', the words that were asked")
    _check_annotations(row, place)
    page = _page(row, place)
    title = string_field(row, "document_title", place) or _title(page, row, place)
    if query_id in self.query_ids:
      raise BadRow(place, "duplicate id", f"duplicate example_id {query_id!r}; ids must be unique")
    key, records = title_key(title), []
    if key not in self.doc_ids:
      text = _text(page, self.words)
      if not text:
        self.skipped[NO_TEXT] += 1
      records.append(Document(f"nq{len(self.doc_ids)}", title, text))
      self.doc_ids[key] = records[0].doc_id
    self.query_ids.add(query_id)
    return [*records, (source.role, Query(query_id, question, (self.doc_ids[key],)))]

  def resume(self, record: Record) -> None:
    if isinstance(record, Document):
      self.doc_ids[title_key(record.title)] = record.doc_id
    else:
      self.query_ids.add(record[1].query_id)

  def finish(self) -> Sequence[Record]:
    return ()


def title_key(title: str) -> str:
  """What titles are compared by: letters and signs without case, accents and spaces."""
  letters = unicodedata.normalize("NFKD", title.casefold())
  return "".join(c for c in letters if not c.isspace() and not unicodedata.combining(c))


# --- one example ---


def _page(row: dict[str, Any], place: str) -> str:
  """The page as text with tags."""
  if text := string_field(row, "document_text", place):
    return text
  tokens = row.get("document_tokens")
  if tokens is not None:
    words = [token.get("token") for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    if not isinstance(tokens, list) or len(words) != len(tokens) or not all(isinstance(word, str) for word in words):
      raise BadRow(place, "not a list", "'document_tokens' should be a list of objects with a string 'token'")
    return whole_characters(" ".join(map(str, words)), place)
  if page := string_field(row, "document_html", place):
    return html.unescape(page)
  raise BadRow(place, "no text", "no page: an example has 'document_text', 'document_tokens' or 'document_html'")


def _title(page: str, row: dict[str, Any], place: str) -> str:
  heading = _HEADING.search(page)
  if heading and (title := " ".join(_TAG.sub(" ", heading[1]).split())):
    return _CLOSING.sub(r"\1", _OPENING.sub(r"\1", title))
  url = string_field(row, "document_url", place).replace("&amp;", "&")
  if title := urllib.parse.parse_qs(urllib.parse.urlsplit(url).query).get("title", [""])[0].replace("_", " ").strip():
    return title
  raise BadRow(place, "no title", "no title: neither 'document_title', nor an <H1>, nor title= in 'document_url'")


def _text(page: str, words: int) -> str:
  heading = _HEADING.search(page)
  body = _TAG.sub(" ", page[heading.end() :] if heading else page)
  body = _JUMP.sub("", body)
  return " ".join(body.split(maxsplit=words)[:words] if words else body.split())


def _check_annotations(row: dict[str, Any], place: str) -> None:
  """Long answers are not read, but a row whose annotations are none is not of this data set."""
  annotations = row.get("annotations")
  items = annotations if isinstance(annotations, list) else [None]
  if not all(isinstance(item, dict) and isinstance(item.get("long_answer"), dict) for item in items):
    raise BadRow(place, "no annotations", "'annotations' should be a list of objects with a 'long_answer' object")
