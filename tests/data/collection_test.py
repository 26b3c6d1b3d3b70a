"""Collections come back from array_record as they went in, are built once, and never bring TensorFlow along."""

import json
import subprocess
import sys

import pytest

from diffgr_jax.data.collection import load_collection
from diffgr_jax.data.records import BadRow, Document, Query

DOCUMENTS = [
  {"doc_id": "b", "title": "Kafka", "text": "A writer of Prague: „Der Process“."},
  {"doc_id": "a", "title": "Kafka", "text": "A stream platform."},
  {"doc_id": "c", "title": "Čapek", "text": "Another writer of Prague."},
]


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "corpus"
  folder.mkdir()
  write_lines(folder / "corpus.jsonl", DOCUMENTS)
  write_lines(folder / "queries.train.jsonl", [{"query_id": "1", "query": "streams", "doc_ids": ["a"]}])
  write_lines(folder / "queries.jsonl", [{"_id": "2", "text": "writers"}, {"_id": "3", "text": "nobody"}])
  (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n2\tb\t2\n2\tc\t1\n2\ta\t0\n9\ta\t1\n")
  return folder


def test_a_folder_comes_back_in_order(folder, tmp_path, capsys):
  collection = load_collection("folder", path=folder, data_dir=tmp_path / "data")
  assert list(collection.documents) == [Document(**row) for row in DOCUMENTS]
  assert collection.queries == {
    "test": (Query("2", "writers", ("b", "c"), (2, 1)),),
    "train": (Query("1", "streams", ("a",)),),
  }
  assert collection.skipped == {"query without a relevant document": 1, "judgement of an unknown query": 1}
  out, err = capsys.readouterr()
  assert out.startswith(f"folder {folder}: 3 documents")
  assert out.count("\n") == 1
  assert not err
  assert load_collection("folder", path=folder, data_dir=tmp_path / "data") == collection
  assert capsys.readouterr() == ("", "")  # nothing is built a second time


def test_a_changed_folder_is_built_anew(folder, tmp_path):
  before = load_collection("folder", path=folder, data_dir=tmp_path)
  write_lines(folder / "corpus.jsonl", [*DOCUMENTS, {"doc_id": "d", "title": "", "text": "new words"}])
  after = load_collection("folder", path=folder, data_dir=tmp_path)
  assert after.documents == (*before.documents, Document("d", "new words", "new words"))
  assert after.fingerprint != before.fingerprint


def test_a_bad_row_stops_or_is_skipped_and_counted(folder, tmp_path):
  (folder / "corpus.jsonl").open("a").write("{broken\n")
  with pytest.raises(BadRow, match=r"corpus\.jsonl:4: broken JSON"):
    load_collection("folder", path=folder, data_dir=tmp_path)
  collection = load_collection("folder", path=folder, data_dir=tmp_path, on_bad_row="skip")
  assert len(collection.documents) == 3
  assert collection.skipped["broken JSON"] == 1
  with pytest.raises(BadRow):  # what was built while skipping does not stand in for the strict build
    load_collection("folder", path=folder, data_dir=tmp_path)


def test_a_judgement_of_a_skipped_document_is_skipped_too(folder, tmp_path):
  write_lines(folder / "corpus.jsonl", [*DOCUMENTS[:2], {**DOCUMENTS[2], "text": None}])
  collection = load_collection("folder", path=folder, data_dir=tmp_path, on_bad_row="skip")
  assert collection.queries["test"] == (Query("2", "writers", ("b",), (2,)),)
  assert collection.skipped["no text"] == collection.skipped["unknown document"] == 1


def test_a_document_without_text_is_kept_but_not_a_corpus_without(folder, tmp_path, capsys):
  write_lines(folder / "corpus.jsonl", [*DOCUMENTS[:2], {**DOCUMENTS[2], "text": ""}])
  collection = load_collection("folder", path=folder, data_dir=tmp_path)
  assert collection.documents[2] == Document("c", "Čapek", "")
  assert len(collection.queries["test"][0].doc_ids) == 2
  assert capsys.readouterr().out.startswith(f"folder {folder}: 3 documents (1 of them without text), 1 skipped")
  write_lines(folder / "corpus.jsonl", [{**document, "text": ""} for document in DOCUMENTS])
  with pytest.raises(ValueError, match="none of its 3 documents has words under 'text'"):
    load_collection("folder", path=folder, data_dir=tmp_path)


def test_a_corpus_needs_no_queries(folder, tmp_path):
  for name in ("queries.train.jsonl", "queries.jsonl", "qrels.tsv"):
    (folder / name).unlink()
  collection = load_collection("folder", path=folder, data_dir=tmp_path)
  assert len(collection.documents) == 3
  assert not collection.queries


def test_a_corpus_needs_documents(folder, tmp_path):
  (folder / "corpus.jsonl").write_text("\n")
  with pytest.raises(ValueError, match=r"corpus\.jsonl has no documents"):
    load_collection("folder", path=folder, data_dir=tmp_path)


@pytest.mark.parametrize(
  "arguments, error",
  [
    ({"name": "wikipedia"}, "there are pydocs, folder, nq320k, msmarco"),
    ({"name": "pydocs", "path": "somewhere"}, "pydocs takes no path"),
    ({"name": "folder"}, "needs a path"),
    ({"name": "pydocs", "on_bad_row": "ignore"}, "not 'ignore'"),
  ],
)
def test_a_wrong_argument_is_named(tmp_path, arguments, error):
  with pytest.raises(ValueError, match=error):
    load_collection(**{"data_dir": tmp_path, **arguments})


def test_pydocs_is_built_once_without_tensorflow(tmp_path):
  script = f"""
import sys
from diffgr_jax.data.collection import load_collection
first = load_collection("pydocs", data_dir={str(tmp_path)!r})
print("again")
assert load_collection("pydocs", data_dir={str(tmp_path)!r}) == first
doc_ids = {{document.doc_id for document in first.documents}}
assert len(doc_ids) == len(first.documents)
assert set(first.queries) == {{"train", "valid", "test"}}
assert all(doc_ids.issuperset(query.doc_ids) for split in first.queries.values() for query in split)
assert "tensorflow" not in sys.modules
print(len(first.documents), first.fingerprint[:12])
"""
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  built, again, found = done.stdout.splitlines()
  count, fingerprint = found.split()
  assert built.startswith(f"pydocs: {count} documents")
  assert built.endswith(f"sha256 {fingerprint}")
  assert again == "again"


def test_queries_that_nothing_answers_are_counted(folder, tmp_path):
  (folder / "queries.train.jsonl").unlink()
  (folder / "qrels.tsv").write_text("2\tb\t0\n")
  collection = load_collection("folder", path=folder, data_dir=tmp_path)
  assert not collection.queries
  assert collection.skipped == {"query without a relevant document": 2}
