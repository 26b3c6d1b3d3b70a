"""Small files of exactly the public format: documents and passages, the subset, and what is said of a bad line."""

import gzip

import pytest

from diffgr_jax.data.collection import Selection, load_collection
from diffgr_jax.data.records import BadRow, Document, Query

PAGES = [
  "D1\thttps://a.org\tThe Sea\tThe sea is salt . It is deep .",
  "D2\thttps://b.org\t\tNo title here but words",
  "D3\thttps://c.org\tIce\tFrozen water",
  "D4\thttps://d.org\tEmpty\t",
  "D5\thttps://e.org\tSnow\tFrozen rain",
]
FILES = {
  "msmarco-docs.tsv": PAGES,
  "msmarco-doctrain-queries.tsv": ["1\twhy is the sea salt", "2\twhat is ice", "3\tnever judged", "4\tand snow"],
  "msmarco-doctrain-qrels.tsv": ["1 0 D1 1", "2 0 D3 1", "2 0 D5 0", "9 0 D1 1"],
  "msmarco-docdev-queries.tsv": ["5\tfrozen what", "6\tnot judged"],
  "msmarco-docdev-qrels.tsv": ["5 0 D5 2", "5 0 D3 1"],
}
DOCUMENTS = (
  Document("D1", "The Sea", "The sea is salt . It is deep ."),
  Document("D2", "No title here but words", "No title here but words"),
  Document("D3", "Ice", "Frozen water"),
  Document("D4", "Empty", ""),
  Document("D5", "Snow", "Frozen rain"),
)


def write(folder, files, compressed=("msmarco-docs.tsv",)):
  for name, rows in files.items():
    content = b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in rows)
    if name in compressed:
      (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    else:
      (folder / name).write_bytes(content)


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "marco"
  folder.mkdir()
  write(folder, FILES)
  return folder


def load(folder, tmp_path, on_bad_row="error", **selection):
  return load_collection(
    "msmarco", path=folder, data_dir=tmp_path / "data", on_bad_row=on_bad_row, selection=Selection(**selection)
  )


def test_documents_and_their_questions(folder, tmp_path, capsys):
  collection = load(folder, tmp_path)
  assert tuple(collection.documents) == DOCUMENTS
  assert collection.queries == {
    "train": (Query("1", "why is the sea salt", ("D1",)), Query("2", "what is ice", ("D3",))),
    "validation": (Query("5", "frozen what", ("D5", "D3"), (2, 1)),),
  }
  assert collection.skipped == {"judgement of an unknown query": 1, "document without text, kept": 1}
  assert capsys.readouterr().out == (
    f"msmarco {folder}: 5 documents (1 of them without text), 1 skipped (judgement of an unknown query)\n"
  )
  assert load(folder, tmp_path) == collection
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
  "limit, kept, train, outside",
  [
    (1, ["D5"], [], 4),  # dev's judged documents come first
    (2, ["D3", "D5"], ["2"], 2),
    (3, ["D1", "D3", "D5"], ["1", "2"], 0),
    (4, ["D1", "D2", "D3", "D5"], ["1", "2"], 0),  # then the collection's order
    (9, ["D1", "D2", "D3", "D4", "D5"], ["1", "2"], 0),
  ],
)
def test_a_subset_takes_judged_documents_first(folder, tmp_path, limit, kept, train, outside):
  collection = load(folder, tmp_path, limit=limit, words=2)
  assert [document.doc_id for document in collection.documents] == kept
  assert [query.query_id for query in collection.queries.get("train", ())] == train
  assert collection.skipped.get("judgement of a document outside the subset", 0) == outside
  known = {document.doc_id for document in collection.documents}
  assert all(known.issuperset(query.doc_ids) for queries in collection.queries.values() for query in queries)
  assert max(len(document.text.split()) for document in collection.documents) == 2


def test_passages_have_no_title(tmp_path):
  files = {
    "collection.tsv": ["0\tThe presence of communication amid scientific minds was equally important", "1\tIce floats"],
    "queries.train.tsv": ["7\twhat was important"],
    "qrels.train.tsv": ["7\t0\t0\t1"],
    "queries.dev.tsv": ["8\tdoes ice float"],
    "qrels.dev.small.tsv": ["8\t0\t1\t1"],
  }
  write(tmp_path, files, compressed=())
  collection = load(tmp_path, tmp_path, part="passages")
  assert collection.documents[0].title == "The presence of communication amid scientific minds was"
  assert collection.documents[1] == Document("1", "Ice floats", "Ice floats")
  assert collection.queries["train"] == (Query("7", "what was important", ("0",)),)
  assert collection.queries["validation"] == (Query("8", "does ice float", ("1",)),)


BAD = [
  ("msmarco-docs.tsv", "D9\ttitle\tbody", "broken columns", "has 4 columns"),
  ("msmarco-docs.tsv", "D9\tu\tt\tbody\tmore", "broken columns", "not 5: 'D9 u t body more'"),
  ("msmarco-docs.tsv", "\tu\tt\tb", "broken columns", "the first one an id"),
  ("msmarco-docs.tsv", b"D9\tu\tt\tcaf\xe9", "not UTF-8", "byte 0xe9 at column 11"),
  ("msmarco-docs.tsv", "D1\tu\tt\tb", "duplicate id", "duplicate document 'D1'"),
  ("msmarco-doctrain-queries.tsv", "7", "broken columns", "has 2 columns"),
  ("msmarco-doctrain-queries.tsv", "7\t ", "empty text", "query '7' has no words"),
  ("msmarco-doctrain-queries.tsv", "1\tagain", "duplicate id", "duplicate query '1'"),
  ("msmarco-doctrain-queries.tsv", b"7\t\xff", "not UTF-8", "byte 0xff"),
  ("msmarco-doctrain-qrels.tsv", "1 0 D1", "broken judgement", "not '1 0 D1'"),
  ("msmarco-doctrain-qrels.tsv", "1 0 D1 yes", "broken judgement", "a whole number"),
  ("msmarco-docdev-qrels.tsv", "5 0 D77 1", "unknown document", "no document 'D77' in the collection"),
]


@pytest.mark.parametrize("name, row, kind, message", BAD, ids=lambda value: str(value)[:24])
def test_a_bad_line(tmp_path, name, row, kind, message):
  write(tmp_path, FILES | {name: [FILES[name][0], row, *FILES[name][1:]]})
  with pytest.raises(BadRow) as caught:
    load(tmp_path, tmp_path)
  file = name + ".gz" * (name == "msmarco-docs.tsv")
  assert str(caught.value).startswith(f"{tmp_path / file}:2: ")
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  collection = load(tmp_path, tmp_path, "skip")
  assert tuple(collection.documents) == DOCUMENTS
  assert {query.query_id for query in collection.queries["train"]} == {"1", "2"}
  assert collection.queries["validation"][0].doc_ids == ("D5", "D3")
  known = {"judgement of an unknown query": 1, "document without text, kept": 1}
  assert collection.skipped == known | {kind: 1}


@pytest.mark.parametrize("name", ["msmarco-docs.tsv", "msmarco-doctrain-queries.tsv", "msmarco-doctrain-qrels.tsv"])
def test_a_truncated_file_stops_or_is_counted(tmp_path, name):
  write(tmp_path, FILES, compressed=FILES)
  file = tmp_path / f"{name}.gz"
  file.write_bytes(file.read_bytes()[:-9])
  with pytest.raises(BadRow, match=rf"{file.name}:\d: the gzip file is cut off"):
    load(tmp_path, tmp_path)
  assert load(tmp_path, tmp_path, "skip").skipped["broken gzip"] == 1


def test_missing_files_and_wrong_selections_are_named(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"has no collection\.tsv\.gz or collection\.tsv, which msmarco needs"):
    load(folder, tmp_path, part="passages")
  with pytest.raises(ValueError, match="part is one of documents, passages"):
    Selection(part="pages")
  with pytest.raises(ValueError, match="limit -1"):
    Selection(limit=-1)
