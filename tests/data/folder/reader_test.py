"""The folder reader: what a good file gives, and what each kind of bad row is told."""

import json

import pytest

from diffgr_jax.data.folder import reader
from diffgr_jax.data.records import BadRow, Document, Query

GOOD = {"doc_id": "a", "title": "Kafka", "text": "A writer of Prague."}
ASK = {"query_id": "q", "query": "who wrote the trial", "doc_ids": ["a"]}


def write(path, *rows):
  """Writes rows, dicts as JSON, strings and bytes as they are."""
  lines = [
    row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
  ]
  path.write_bytes(b"\n".join(lines) + b"\n")
  return path


BAD_DOCUMENTS = [
  ({"title": "T", "text": "words"}, "no id", "no id; a row needs 'doc_id' or '_id'"),
  ({"doc_id": " ", "text": "words"}, "no id", "no id"),
  ({"doc_id": True, "text": "words"}, "no id", "no id"),
  (GOOD, "duplicate id", "duplicate doc_id 'a'"),
  ('{"doc_id": "b", "text": ', "broken JSON", "broken JSON at column"),
  ("[" * 100_000, "broken JSON", "JSON"),
  ('["b", "words"]', "not an object", "not a list"),
  ("null", "not an object", "not a NoneType"),
  ({"doc_id": "b", "title": "T"}, "no text", "document 'b' has no key 'text'"),
  ({"doc_id": "b", "title": "T", "text": None}, "no text", "document 'b' has no key 'text'"),
  ({"doc_id": "b", "text": ["words"]}, "not a string", "'text' is a list"),
  ({"doc_id": "b", "title": 3, "text": "words"}, "not a string", "'title' is a int"),
  (b'{"doc_id": "b", "text": "caf\xe9"}', "not UTF-8", "byte 0xe9 at column 29"),
  (r'{"doc_id": "b", "text": "half \ud800"}', "not UTF-8", "no character"),
]


@pytest.mark.parametrize("row, kind, message", BAD_DOCUMENTS, ids=lambda value: str(value)[:30])
def test_bad_document(tmp_path, row, kind, message):
  last = {"doc_id": "z", "text": "The last words."}
  file = write(tmp_path / "corpus.jsonl", GOOD, row, last)
  with pytest.raises(BadRow) as caught:
    list(reader.read_corpus(file)[0])
  assert str(caught.value).startswith(f"{file}:2: ")
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  documents, skipped = reader.read_corpus(file, "skip")
  assert [document.doc_id for document in documents] == ["a", "z"]
  assert skipped == {kind: 1}


def test_a_document_without_text_is_kept_and_counted(tmp_path):
  empty = [{"doc_id": "b", "title": "T", "text": " \n"}, {"doc_id": "c", "title": "", "text": ""}]
  file = write(tmp_path / "corpus.jsonl", GOOD, *empty)
  for mode in ("error", "skip"):
    documents, counted = reader.read_corpus(file, mode)
    assert list(documents)[1:] == [Document("b", "T", ""), Document("c", "c", "")]
    assert counted == {"document without text, kept": 2}


BAD_QUERIES = [
  ({"query": "words", "doc_ids": ["a"]}, "no id", "'query_id' or '_id'"),
  (ASK, "duplicate id", "duplicate query_id 'q'"),
  ("{", "broken JSON", "broken JSON"),
  ("7", "not an object", "not a int"),
  ({"query_id": "r", "query": "  ", "doc_ids": ["a"]}, "empty text", "query 'r' has no words"),
  ({"query_id": "r", "query": "words"}, "no doc_ids", "needs 'doc_ids'"),
  ({"query_id": "r", "query": "words", "doc_ids": "a"}, "no doc_ids", "needs 'doc_ids'"),
  ({"query_id": "r", "query": "words", "doc_ids": [None]}, "no doc_ids", "needs 'doc_ids'"),
  ({"query_id": "r", "query": "words", "doc_ids": ["a", "nowhere"]}, "unknown document", "no document 'nowhere'"),
  (b'{"query_id": "r", "query": "\xff", "doc_ids": ["a"]}', "not UTF-8", "byte 0xff"),
]


@pytest.mark.parametrize("row, kind, message", BAD_QUERIES, ids=lambda value: str(value)[:30])
def test_bad_query(tmp_path, row, kind, message):
  file = write(tmp_path / "queries.jsonl", ASK, row)
  with pytest.raises(BadRow) as caught:
    list(reader.read_queries(file, doc_ids={"a"})[0])
  assert str(caught.value).startswith(f"{file}:2: ")
  assert message in str(caught.value)
  queries, skipped = reader.read_queries(file, "skip", {"a"})
  assert [query.query_id for query in queries] == ["q"]
  assert skipped == {kind: 1}


@pytest.mark.parametrize(
  "line, kind",
  [
    ("q\ta", "broken judgement"),
    ("q a 1", "broken judgement"),
    ("q\t\t1", "broken judgement"),
    ("q\ta\tgood", "broken judgement"),
    ("q\ta\t0.5", "broken judgement"),
    ("q\t0\ta\t1", "broken judgement"),  # TREC's four columns
    ("query-id\tcorpus-id\tscore", "broken judgement"),  # a header belongs on line 1
    ("q\tnowhere\t2", "unknown document"),
    (b"q\t\xff\t2", "not UTF-8"),
  ],
)
def test_bad_judgement(tmp_path, line, kind):
  file = write(tmp_path / "qrels.tsv", "q\ta\t1", line)
  with pytest.raises(BadRow) as caught:
    reader.read_judgements(file, doc_ids={"a"})
  assert str(caught.value).startswith(f"{file}:2: ")
  assert reader.read_judgements(file, "skip", {"a"}) == ({"q": {"a": 1}}, {kind: 1})


def test_documents_as_they_come(tmp_path):
  rows = [
    b'\xef\xbb\xbf{"_id": 7, "text": "one two three four five six seven eight nine", "url": "ignored"}',
    "",
    GOOD,
  ]
  documents, skipped = reader.read_corpus(write(tmp_path / "corpus.jsonl", *rows))
  untitled, titled = documents
  assert untitled.doc_id == "7"
  assert untitled.title == "one two three four five six seven eight"  # its first words
  assert titled == Document("a", "Kafka", "A writer of Prague.")
  assert not skipped


def test_a_file_is_streamed(tmp_path):
  file = write(tmp_path / "corpus.jsonl", GOOD, "broken")
  documents, _ = reader.read_corpus(file)
  assert next(documents).doc_id == "a"  # the bad row behind it has not been read
  with pytest.raises(BadRow):
    next(documents)


def test_queries_with_their_answers(tmp_path):
  rows = [{"_id": "q", "text": "who", "doc_ids": ["b", 1, "b"]}, {"query_id": "r", "query": "what", "doc_ids": []}]
  queries, skipped = reader.read_queries(write(tmp_path / "queries.jsonl", *rows))
  assert list(queries) == [Query("q", "who", ("b", "1"))]
  assert skipped == {reader.NO_ANSWER: 1}


@pytest.mark.parametrize("header", [(), ("query-id\tcorpus-id\tscore",)], ids=["no header", "header"])
def test_judgements_count_from_one_and_keep_their_grades(tmp_path, header):
  file = write(tmp_path / "qrels.tsv", *header, "q\ta\t3", "q\tb\t0", "q\tc\t1", "r\tnowhere\t-1", "s\ta\t2")
  judgements, skipped = reader.read_judgements(file, doc_ids={"a", "b", "c"})
  assert judgements == {"q": {"a": 3, "c": 1}, "s": {"a": 2}}
  assert not skipped
  file = write(tmp_path / "queries.jsonl", {"_id": "q", "text": "who"}, {"_id": "r", "text": "what"})
  splits, skipped = reader.read_judged_queries(file, {"dev": judgements, "test": {"r": {"b": 1}}})
  assert splits == {"dev": [Query("q", "who", ("a", "c"), (3, 1))], "test": [Query("r", "what", ("b",), (1,))]}
  assert skipped == {reader.UNKNOWN_QUERY: 1}  # s
  splits, skipped = reader.read_judged_queries(file, {"dev": judgements})
  assert skipped == {reader.UNKNOWN_QUERY: 1, reader.NO_ANSWER: 1}  # s, and r


def test_query_files_of_each_shape(tmp_path):
  def splits_of(*names):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    (folder / "qrels").mkdir(parents=True)
    for name in names:
      (folder / name).touch()
    return {
      split: tuple(file and str(file.relative_to(folder)) for file in pair)
      for split, pair in reader.query_files(folder).items()
    }

  assert splits_of("corpus.jsonl", "notes.txt") == {}
  assert splits_of("queries.jsonl") == {"test": ("queries.jsonl", None)}
  assert splits_of("queries.jsonl", "qrels.tsv") == {"test": ("queries.jsonl", "qrels.tsv")}
  assert splits_of("queries.jsonl", "qrels/dev.tsv", "qrels/test.tsv") == {
    "dev": ("queries.jsonl", "qrels/dev.tsv"),
    "test": ("queries.jsonl", "qrels/test.tsv"),
  }
  assert splits_of("queries.train.jsonl", "queries.dev-small.jsonl", "queries.all.jsonl") == {
    "dev_small": ("queries.dev-small.jsonl", None),
    "split_all": ("queries.all.jsonl", None),
    "train": ("queries.train.jsonl", None),
  }
  with pytest.raises(ValueError, match="gives the split 'test' twice"):
    splits_of("queries.jsonl", "qrels.tsv", "queries.test.jsonl")


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"is no folder; a corpus is a folder with corpus\.jsonl"):
    reader.corpus_file(tmp_path / "nowhere")
  with pytest.raises(FileNotFoundError, match=r"has no corpus\.jsonl; a corpus is a folder with"):
    reader.corpus_file(tmp_path)
  with pytest.raises(FileNotFoundError, match="no such file"):
    reader.read_queries(tmp_path / "queries.jsonl")
