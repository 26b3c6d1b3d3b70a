"""The evaluation of a run as one record: what it holds, what it may be asked with, and what it says of its training."""

import collections
import dataclasses
import json

import jax
import numpy as np
import pytest

from diffgr_jax.data.records import Document
from diffgr_jax.docid.linguistic import build_linguistic_index
from diffgr_jax.evaluation import report
from diffgr_jax.evaluation.answers import methods_of
from diffgr_jax.evaluation.baselines import bm25
from diffgr_jax.evaluation.generative import evaluate_method, judge
from diffgr_jax.evaluation.retrieval import means, place_in_ranking, retrieval_metrics


def with_config(run, **changes):
  config = run.config.copy_and_resolve_references()
  with config.unlocked():
    config.update(changes)
  return dataclasses.replace(run, config=config)


@pytest.fixture(scope="module")
def measured(untrained, tmp_path_factory):
  run, params, _ = untrained
  out = tmp_path_factory.mktemp("report") / "deep" / "results.json"
  return report.evaluate_run(run, params, step=6, out=out), out


def test_the_record_is_the_file_and_names_what_was_run(measured, untrained):
  record, out = measured
  run, params, collection = untrained
  assert record == json.loads(out.read_text())
  assert record["status"] == "measured"
  assert record["seeds"]["training"] == run.config.seed
  assert {"python", "jax", "numpy"} <= set(record["versions"])
  assert record["machine"]["cpus"] >= 1
  settings = record["settings"]
  assert settings["dataset"] == "folder"
  assert settings["documents"] == len(collection.documents) == 24
  assert settings["collection"] == collection.fingerprint
  assert (settings["step"], settings["examples"]) == (6, 6 * run.config.batch_size)
  assert settings["parameters"] == sum(np.size(leaf) for leaf in jax.tree.leaves(params))


def test_a_limit_asks_the_first_questions_of_a_split(measured, untrained, tmp_path):
  run, params, collection = untrained
  limited = with_config(run, eval_limit=4, decodings=("one_pass",), nelbo_queries=0)
  record = report.evaluate_run(limited, params, step=6, out=tmp_path / "results.json")
  assert record["settings"]["eval_limit"] == 4
  assert {row["queries"] for row in record["metrics"]["valid"].values()} == {4}
  judged = judge([collection.queries["valid"][i] for i in range(4)], run.index)
  own, _ = evaluate_method(run, params, methods_of(run)[0], judged, run.index)
  assert record["metrics"]["valid"]["one-pass"]["MRR@100"] == own["MRR@100"]


def test_every_method_stands_beside_the_baselines_with_its_interval(measured, untrained):
  record, (run, params, collection) = measured[0], untrained
  rows = record["metrics"]["valid"]
  names = [method.name for method in methods_of(run)]
  assert list(rows) == ["BM25", "LSA", *names]
  for name, row in rows.items():
    assert row["queries"] == 10
    if name == "BM25":
      assert "Hit@1 - BM25 low" not in row
    else:
      difference = row["Hit@1"] - rows["BM25"]["Hit@1"]
      assert row["Hit@1 - BM25 low"] <= difference + 1e-9
      assert row["Hit@1 - BM25 high"] >= difference - 1e-9
    assert {"queries/s", "forwards"} <= set(row)
  assert rows["BM25"]["forwards"] == 0.0
  assert rows["one-pass"]["forwards"] == 1.0
  for metric in ("MRR@10", "nDCG@10"):
    assert rows["one-pass"][f"{metric} - BM25 low"] <= rows["one-pass"][f"{metric} - BM25 high"]
  for name in ("BM25", "LSA", "one-pass", "one-pass, prior-corrected"):
    assert {"Hit@1", "Hit@10", "Hit@100", "MRR@10", "MRR@100", "queries/s"} <= set(rows[name])
  assert [name for name in rows if "NELBO" in rows[name]] == ["one-pass"]
  assert rows["one-pass"]["NELBO"] > 0
  assert [name for name in rows if "invalid" in rows[name]] == names[-1:]
  queries = collection.queries["valid"]
  titles, texts = zip(*((document.title, document.text) for document in collection.documents), strict=True)
  ranking = bm25(titles, texts, [query.query for query in queries])
  judged = judge(queries, run.index)
  expected = means(retrieval_metrics(place_in_ranking(ranking.indices, ranking.scores, judged.relevant, judged.grades)))
  assert {name: rows["BM25"][name] for name in expected} == pytest.approx(expected)
  own, _ = evaluate_method(run, params, methods_of(run)[0], judged, run.index)
  assert rows["one-pass"]["MRR@100"] == own["MRR@100"]


def test_a_dense_encoder_stands_alone_and_with_bm25_and_is_compared_with(untrained, tmp_path, monkeypatch):
  run, params, _ = untrained
  monkeypatch.setattr(report, "pretrained_folder", lambda name: name)
  monkeypatch.setattr(report, "dense", lambda *given, folder: bm25(*given, b=0.0))
  limited = with_config(run, dense="stand-in", decodings=("one_pass",), nelbo_queries=0)
  rows = report.evaluate_run(limited, params, step=6, out=tmp_path / "results.json")["metrics"]["valid"]
  assert list(rows)[:4] == ["BM25", "LSA", "stand-in, dense", "stand-in and BM25"]
  for rival, label in (("BM25", "BM25"), ("dense", "stand-in, dense")):
    assert {name for name, row in rows.items() if f"Hit@1 - {rival} low" not in row} == {label}
    for name in set(rows) - {label}:
      difference = rows[name]["Hit@1"] - rows[label]["Hit@1"]
      ends = [rows[name][f"Hit@1 - {rival} {end}"] for end in ("low", "high")]
      assert ends[0] - 1e-9 <= difference <= ends[1] + 1e-9
  shown = report.differences(rows["one-pass"])
  assert list(shown)[:2] == ["Hit@1 - BM25 (95%)", "Hit@1 - dense (95%)"]


def test_decodings_are_compared_with_one_pass_of_the_same_weights(untrained, tmp_path):
  run, params, _ = untrained
  limited = with_config(run, decodings=("one_pass", "topk"), prior_weight=1.0, topk_weigh=("tokens",), nelbo_queries=0)
  rows = report.evaluate_run(limited, params, step=6, out=tmp_path / "results.json")["metrics"]["valid"]
  _, _, plain, corrected, top_k = rows
  for rival, compared in ((plain, {corrected, top_k}), (corrected, {plain, top_k})):
    assert {name for name, row in rows.items() if f"Hit@1 - {rival} low" in row} == compared
    for name in compared:
      for metric in ("Hit@1", "MRR@10"):
        difference = rows[name][metric] - rows[rival][metric]
        low, high = (rows[name][f"{metric} - {rival} {end}"] for end in ("low", "high"))
        assert low - 1e-9 <= difference <= high + 1e-9
  shown = report.differences(rows[top_k])
  assert list(shown) == ["Hit@1 - BM25 (95%)", "Hit@1 - one-pass (95%)", "Hit@1 - one-pass, prior-corrected (95%)"]


def test_questions_are_grouped_by_the_training_questions_of_their_document(measured, untrained):
  groups, (_, _, collection) = measured[0]["exposure"]["valid"], untrained
  asked = collections.Counter(doc_id for query in collection.queries["train"] for doc_id in query.doc_ids)
  counts = [asked[query.doc_ids[0]] for query in collection.queries["valid"]]
  assert set(counts) == {1}  # of the small corpus
  assert list(groups) == ["seen", "1"]
  for methods in groups.values():
    assert list(methods) == list(measured[0]["metrics"]["valid"])
    for name, row in methods.items():
      assert row["Hit@1"] == pytest.approx(measured[0]["metrics"]["valid"][name]["Hit@1"])
      assert row["queries"] == 10


def test_the_report_prints_every_method_of_every_split(measured, capsys):
  report.print_report(*measured)
  shown = capsys.readouterr().out
  assert "folder: 24 documents" in shown
  assert "valid (10 queries)" in shown
  for name in measured[0]["metrics"]["valid"]:
    assert any(line.startswith(f"{name}  ") for line in shown.splitlines()), name
  assert f"results: {measured[1]}" in shown


# --- other files, other splits: the measuring itself is replaced by a look at what would be measured ---


@pytest.fixture
def asked(monkeypatch):
  """Collects what each split would be measured on."""
  seen = {}

  def look(run, params, judged, index, name, baselines):
    seen[name] = (judged, index, baselines)
    return {"BM25": {"Hit@1": 0.0, "queries": len(judged.texts)}}, {"BM25": {"Hit@1": np.zeros(len(judged.texts))}}

  monkeypatch.setattr(report, "_evaluate_split", look)
  return seen


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def test_files_replace_queries_and_corpus(untrained, asked, tmp_path):
  run, params, _ = untrained
  documents = [{"doc_id": "a", "title": "river lamp", "text": "old"}, {"doc_id": "b", "title": "lamp", "text": "new"}]
  corpus = write_lines(tmp_path / "corpus.jsonl", documents)
  queries = write_lines(tmp_path / "asked.jsonl", [{"query_id": "q", "query": "the lamp", "doc_ids": ["b"]}])
  out = tmp_path / "out.json"
  record = report.evaluate_run(run, params, step=1, out=out, queries_file=queries, corpus_file=corpus)
  judged, index, baselines = asked["asked"]
  assert baselines["BM25"].indices[0, :2].tolist() == [1, 0]  # the shorter of the two documents about a lamp
  assert (judged.texts, judged.relevant) == (["the lamp"], [[1]])
  expected = build_linguistic_index([Document(**row) for row in documents], run.vocab, run.index.canvas_length)
  np.testing.assert_array_equal(index.codes[:, : expected.canvas_length], expected.codes)
  assert record["settings"]["documents"] == 2
  assert record["settings"]["collection"] is None  # nothing of the run's own data was read

  own = write_lines(tmp_path / "own.jsonl", [{"query_id": "q", "query": "the lamp", "doc_ids": ["D2"]}])
  report.evaluate_run(run, params, step=1, out=out, queries_file=own)
  assert set(asked) == {"asked", "own"}
  assert asked["own"][0].relevant == [[2]]
  with pytest.raises(ValueError, match=r"document '?b'?\b"):
    report.evaluate_run(run, params, step=1, out=out, queries_file=queries)


def test_baselines_indexed_once_are_those_of_each_split(untrained, asked, tmp_path):
  run, params, collection = untrained
  report.evaluate_run(with_config(run, eval_splits=("train", "valid")), params, step=1, out=tmp_path / "o.json")
  titles, texts = zip(*((document.title, document.text) for document in collection.documents), strict=True)
  for split in ("train", "valid"):
    alone = bm25(titles, texts, [query.query for query in collection.queries[split]])
    np.testing.assert_array_equal(asked[split][2]["BM25"].indices, alone.indices)


def test_splits_are_the_config_s_or_all_but_the_training_queries(untrained, asked, tmp_path):
  run, params, _ = untrained
  report.evaluate_run(with_config(run, eval_splits=("train",)), params, step=1, out=tmp_path / "o.json")
  assert list(asked) == ["train"]
  asked.clear()
  report.evaluate_run(with_config(run, eval_splits=()), params, step=1, out=tmp_path / "o.json")
  assert list(asked) == ["valid"]
  with pytest.raises(ValueError, match="eval_splits names 'test'; the data has train, valid"):
    report.evaluate_run(with_config(run, eval_splits=("valid", "test")), params, step=1, out=tmp_path / "o.json")
