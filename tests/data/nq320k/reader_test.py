"""Small files of exactly the public format: what they give, what is said of a bad line, and a build that breaks off."""

import gzip
import json

import pytest

from diffgr_jax.data import staging
from diffgr_jax.data.collection import Selection, load_collection
from diffgr_jax.data.nq320k.reader import NqReader, title_key
from diffgr_jax.data.records import BadRow, Document, Query
from diffgr_jax.data.sources import Source

ANSWER = {
  "annotation_id": 1, "yes_no_answer": "NONE", "short_answers": [],
  "long_answer": {"start_token": 7, "candidate_index": 0, "end_token": 20},
}  # fmt: skip


def train(number, question, title, body, **changes):
  page = f"{title} - Wikipedia <H1> {title} </H1> Jump to : navigation , search {body}"
  row = {
    "document_text": page, "long_answer_candidates": [{"start_token": 7, "top_level": True, "end_token": 20}],
    "question_text": question, "annotations": [ANSWER], "example_id": number,
    "document_url": f"https://en.wikipedia.org//w/index.php?title={title.replace(' ', '_')}&amp;oldid=81",
  }  # fmt: skip
  return {key: value for key, value in (row | changes).items() if value is not None}


def dev(number, question, title, tokens, **changes):
  row = {
    "annotations": [ANSWER, ANSWER], "document_html": "<html> ... </html>", "document_title": title,
    "document_tokens": [{"token": t, "start_byte": 0, "end_byte": 1, "html_token": "<" in t} for t in tokens.split()],
    "document_url": "https://en.wikipedia.org//w/index.php?title=x", "example_id": number,
    "long_answer_candidates": [], "question_text": question, "question_tokens": question.split(),
  }  # fmt: skip
  return {key: value for key, value in (row | changes).items() if value is not None}


TRAIN = [
  train(11, "what is a cat", "Cat ( animal )", "<Table> <Tr> <Td> lives </Td> </Table> <P> A cat , she said . </P>"),
  train(12, "who made it", "The Sea", "<P> The sea is salt . </P>"),
  train(13, "how do cats see", "Cat ( animal )", "<P> another version of the page </P>"),
]
DEV = [
  dev(21, "where do cats live", "Cat (animal)", "<H1> Cat (animal) </H1> <P> third version </P>"),
  dev(22, "what is ice", "Café", "<H1> Café </H1> Jump to : navigation , search <P> Frozen water . </P>"),
]
# What the definition gives, by hand.
DOCUMENTS = (
  Document("nq0", "Cat (animal)", "lives A cat , she said ."),
  Document("nq1", "The Sea", "The sea is salt ."),
  Document("nq2", "Café", "Frozen water ."),
)
QUERIES = {
  "train": (
    Query("11", "what is a cat", ("nq0",)), Query("12", "who made it", ("nq1",)),
    Query("13", "how do cats see", ("nq0",)),
  ),
  "validation": (Query("21", "where do cats live", ("nq0",)), Query("22", "what is ice", ("nq2",))),
}  # fmt: skip


def write(path, rows):
  lines = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
  path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
  return path


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "nq"
  folder.mkdir()
  write(folder / "v1.0-simplified_simplified-nq-train.jsonl.gz", TRAIN)
  write(folder / "v1.0-simplified_nq-dev-all.jsonl.gz", DEV)
  return folder


def test_pages_by_title_and_every_question(folder, tmp_path, capsys):
  collection = load_collection("nq320k", path=folder, data_dir=tmp_path / "data")
  assert tuple(collection.documents) == DOCUMENTS
  assert collection.queries == QUERIES
  assert capsys.readouterr().out == f"nq320k {folder}: 3 documents\n"
  assert load_collection("nq320k", path=folder, data_dir=tmp_path / "data") == collection
  assert capsys.readouterr().out == ""
  assert not list((tmp_path / "data" / "nq320k").glob("parts-*"))
  record = json.loads((tmp_path / "data" / "nq320k" / "sources.json").read_text())
  assert len(record) == 2
  short = load_collection("nq320k", path=folder, data_dir=tmp_path / "data", selection=Selection(words=2))
  assert [document.text for document in short.documents] == ["lives A", "The sea", "Frozen water"]
  assert short.fingerprint != collection.fingerprint


def test_a_page_without_words_is_kept_and_counted(tmp_path):
  reader = NqReader([Source("train", write(tmp_path / "a.jsonl", [train(5, "q", "T", "<P> </P>")]))], 0)
  parts = staging.write_parts(reader, tmp_path / "parts", "error")
  assert list(staging.read_parts(parts, "document")) == [Document("nq0", "T", "")]
  assert reader.skipped == {"document without text, kept": 1}


def test_titles_are_compared_without_case_accents_and_spaces():
  assert title_key("Cat ( film )") == title_key("cat (Film)")
  assert title_key("Café") == title_key("CAFE")
  assert title_key("Cat 2") != title_key("Cat 3")


BAD = [
  (b'{"example_id": 5, ', "broken JSON", "broken JSON at column"),
  (b"[1, 2]", "not an object", "not a list"),
  (b'{"example_id": 5, "question_text": "caf\xe9"}', "not UTF-8", "byte 0xe9 at column"),
  (train(None, "q", "T", "words"), "no id", "a row needs 'example_id'"),
  (train(1.5, "q", "T", "words"), "no id", "a row needs 'example_id'"),
  (train(5, None, "T", "words"), "no question", "has no 'question_text'"),
  (train(5, ["q"], "T", "words"), "not a string", "'question_text' is a list"),
  (train(5, "q", "T", "words", document_text=None), "no text", "no page: an example has 'document_text'"),
  (train(5, "q", "T", "words", document_text=7), "not a string", "'document_text' is a int"),
  (train(5, "q", "T", "words", annotations=None), "no annotations", "'annotations' should be a list"),
  (train(5, "q", "T", "words", annotations=[{"long_answer": 3}]), "no annotations", "with a 'long_answer' object"),
  (train(5, "q", "T", "words", document_text="words", document_url="x"), "no title", "no title: neither"),
  (train(5, "q", "T", "words", document_url=3, document_text="words"), "not a string", "'document_url' is a int"),
  (train(11, "q", "T", "words"), "duplicate id", "duplicate example_id '11'"),
  (dev(5, "q", "T", "x", document_tokens=["x"]), "not a list", "'document_tokens' should be a list of objects"),
  (dev(5, "q", 3, "x"), "not a string", "'document_title' is a int"),
]


@pytest.mark.parametrize("row, kind, message", BAD, ids=lambda value: str(value)[:24])
def test_a_bad_line(tmp_path, row, kind, message):
  file = write(tmp_path / "nq-train.jsonl", [TRAIN[0], row, TRAIN[1]])
  sources = [Source("train", file)]
  with pytest.raises(BadRow) as caught:
    staging.write_parts(NqReader(sources, 0), tmp_path / "strict", "error")
  assert str(caught.value).startswith(f"{file}:2: ")
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  reader = NqReader(sources, 0)
  parts = staging.write_parts(reader, tmp_path / "lax", "skip")
  assert [document.title for document in staging.read_parts(parts, "document")] == ["Cat (animal)", "The Sea"]
  assert +reader.skipped == {kind: 1}


def test_a_truncated_file_stops_or_is_counted(folder, tmp_path):
  file = folder / "v1.0-simplified_simplified-nq-train.jsonl.gz"
  file.write_bytes(file.read_bytes()[:-12])
  with pytest.raises(BadRow, match=rf"{file.name}:\d: the gzip file is cut off"):
    load_collection("nq320k", path=folder, data_dir=tmp_path / "data")
  collection = load_collection("nq320k", path=folder, data_dir=tmp_path / "data", on_bad_row="skip")
  assert collection.skipped == {"broken gzip": 1}
  assert collection.queries["validation"]


def test_a_build_that_breaks_off_goes_on(tmp_path, monkeypatch):
  rows = [train(i, f"question {i}", f"Page {i // 2}", f"<P> words of {i} </P>") for i in range(25)]
  rows[7], rows[20] = b"{", b"{}"
  sources = [
    Source("train", write(tmp_path / "a.jsonl", rows[:18])),
    Source("train", write(tmp_path / "b.jsonl", rows[18:])),
  ]
  whole = NqReader(sources, 0)
  expected = [part.read_text() for part in staging.write_parts(whole, tmp_path / "whole", "skip", lines_a_part=4)]
  assert len(expected) == 7
  parsed = []
  for stop in (9, 6, 40):  # the machine goes down while this line is read; then once more; then it stays up
    reader, before = NqReader(sources, 0), len(parsed)
    parse = reader.parse

    def failing(source, line, place, parse=parse, last=before + stop):
      parsed.append(place)
      if len(parsed) == last:
        raise KeyboardInterrupt
      return parse(source, line, place)

    monkeypatch.setattr(reader, "parse", failing)
    try:
      parts = staging.write_parts(reader, tmp_path / "broken", "skip", lines_a_part=4)
    except KeyboardInterrupt:
      assert stop != 40
  assert [part.read_text() for part in parts] == expected
  assert reader.skipped == whole.skipped == {"broken JSON": 1, "no id": 1}
  assert len(parsed) == 9 + 6 + 13  # 25 lines, and those of the two begun parts once more
  staging.write_parts(NqReader(sources, 0), tmp_path / "broken", "skip", lines_a_part=4)
  assert [part.read_text() for part in parts] == expected


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"has no simplified-nq-train\.jsonl\.gz or .* which nq320k needs"):
    load_collection("nq320k", path=tmp_path, data_dir=tmp_path / "data")
