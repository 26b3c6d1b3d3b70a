"""The commands end to end, as a user types them: train, go on, evaluate, ask; and errors that are one line."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import tokenizers

from tests.plain_compilation import PLAIN_COMPILATION

SMALL = [
  "--config.d_model=16", "--config.n_layers=1", "--config.n_heads=2", "--config.n_kv_heads=2", "--config.d_ff=16",
  "--config.vocab_size=360", "--config.batch_size=8", "--config.eval_batch_size=4", "--config.eval_splits=('valid',)",
  "--config.warmup_steps=1", "--config.log_every=1", "--config.eval_every=2",
]  # fmt: skip


def run(module, *flags, stdin=""):
  environment = os.environ | {"XLA_FLAGS": PLAIN_COMPILATION, "COLUMNS": "100"}
  return subprocess.run(
    [sys.executable, "-m", f"diffgr_jax.{module}", *flags], input=stdin, capture_output=True, text=True, env=environment
  )


@pytest.fixture(scope="module")
def trained(corpus_folder, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  config = f"--config=configs/docid/base.py:steps=4,size=tiny,dataset=folder,path={corpus_folder}"
  done = run("main", config, f"--workdir={workdir}", *SMALL)
  assert done.returncode == 0, done.stderr
  return workdir, done, config


def test_training_ends_with_a_table_worked_queries_and_a_picture(trained):
  workdir, done, _ = trained
  for expected in ("valid (10 queries)", "BM25", "one-pass", "constrained", "denoised to", "picture:"):
    assert expected in done.stdout
  assert "4/4 steps" in done.stderr
  assert "examples/s" in done.stderr
  assert (workdir / "denoising.png").read_bytes()[:4] == b"\x89PNG"
  record = json.loads((workdir / "results.json").read_text())
  assert record["status"] == "measured"
  assert record["command"].startswith("python -m diffgr_jax.main --config=configs/docid/base.py:steps=4")
  assert set(record["metrics"]["valid"]["one-pass"]) >= {"Hit@1", "Hit@10", "Hit@100", "MRR@10", "queries/s", "NELBO"}
  assert record["metrics"]["valid"]["confidence, 4 steps, free"]["invalid"] <= 1.0
  logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [line["step"] for line in logged if "loss" in line] == [1, 2, 3, 4]
  assert any("valid Hit@1" in line for line in logged)
  assert list((workdir / "tensorboard").iterdir())


def test_started_again_it_trains_no_further_and_reports_the_same(trained):
  workdir, first, config = trained
  again = run("main", config, f"--workdir={workdir}", *SMALL)
  assert again.returncode == 0, again.stderr
  line = lambda done: next(x for x in done.stdout.splitlines() if x.startswith("one-pass")).split()[:6]
  assert line(again) == line(first)


def test_evaluate_takes_any_checkpoint_queries_and_corpus(trained, corpus_folder, tmp_path):
  workdir = trained[0]
  corpus, queries, out = tmp_path / "corpus.jsonl", tmp_path / "asked.jsonl", tmp_path / "out.json"
  corpus.write_text(
    '{"doc_id": "a", "title": "river stone", "text": "old"}\n{"doc_id": "b", "title": "lamp", "text": "new"}\n'
  )
  queries.write_text('{"query_id": "q", "query": "where is the lamp", "doc_ids": ["b"]}\n')
  done = run("evaluate", f"--workdir={workdir}", f"--queries={queries}", f"--corpus={corpus}", f"--out={out}", "--json")
  assert done.returncode == 0, done.stderr
  record = json.loads(done.stdout)
  assert record == json.loads(out.read_text())
  assert record["settings"]["documents"] == 2
  assert record["metrics"]["asked"]["BM25"]["Hit@1"] == 1.0
  changed = run("evaluate", f"--workdir={workdir}", "--set=policy=threshold", "--set=decode_steps=2", f"--out={out}")
  assert changed.returncode == 0, changed.stderr
  assert "threshold, 2 steps, constrained" in changed.stdout


def test_decode_ranks_ten_and_shows_the_steps(trained, tmp_path):
  workdir, png = trained[0], tmp_path / "trace.png"
  done = run("decode", f"--workdir={workdir}", "--query=where is the river", f"--trace_png={png}")
  assert done.returncode == 0, done.stderr
  ranks = [line.split()[0] for line in done.stdout.splitlines() if line.split() and line.split()[0].isdigit()]
  assert "10" in ranks
  assert "denoised to:" in done.stdout
  assert png.read_bytes()[:4] == b"\x89PNG"


def test_decode_takes_policies_by_flag_and_names_what_does_not_fit(trained):
  where = (f"--workdir={trained[0]}", "--query=where is the river", "--json", "--top=1")
  flags = ("--policy=factor", "--steps=4", "--remask=1", "--remask_by=current", "--temperature=0.7", "--top_k=5")
  done = run("decode", *where, *flags, "--seed=3")
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout)["denoised"].startswith("D")
  beam = run("decode", *where, "--decoder=beam")
  assert beam.returncode == 1
  assert (
    "--decoder of a DocID run is canvas, not 'beam': its model is bidirectional; a causal --checkpoint" in beam.stderr
  )
  refused = run("decode", *where, "--block_size=2")
  assert refused.returncode == 1
  assert "--noconstrained" in refused.stderr or "--steps" in refused.stderr


def test_decode_lets_a_converted_checkpoint_write(tmp_path):
  folder, png = tmp_path / "model", tmp_path / "trace.png"
  shutil.copytree("tests/golden/sdar", tmp_path / "hf")
  model = tokenizers.models.WordLevel({f"w{i}": i for i in range(119)}, unk_token="w0")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.save(str(tmp_path / "hf" / "tokenizer.json"))
  converted = run("convert", f"--from_hf={tmp_path / 'hf'}", f"--out={folder}")
  assert converted.returncode == 0, converted.stderr
  done = run(
    "decode", f"--checkpoint={folder}", "--json", "--max_new_tokens=6", f"--trace_png={png}", stdin="w5 w9 w3\n\nw7\n"
  )
  assert done.returncode == 0, done.stderr
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert [answer["prompt"] for answer in answers] == ["w5 w9 w3", "w7"]
  assert all(1 <= len(answer["tokens"]) <= 6 for answer in answers)
  assert png.read_bytes()[:4] == b"\x89PNG"


def test_decode_reads_queries_line_by_line(trained):
  done = run("decode", f"--workdir={trained[0]}", "--json", "--top=2", stdin="silver bridge\n\ncopper cloud\n")
  assert done.returncode == 0, done.stderr
  answers = [json.loads(line) for line in done.stdout.splitlines()]
  assert [answer["query"] for answer in answers] == ["silver bridge", "copper cloud"]
  for answer in answers:
    assert len(answer["ranking"]) == 2
    assert answer["denoised"].startswith("D")  # constrained: always a document that exists


@pytest.mark.parametrize(
  "module, flags, message",
  [
    ("main", ["--config=configs/docid/base.py:size=huge"], "size is one of tiny, small, base"),
    ("main", ["--config=configs/docid/base.py", "--config.policy=best"], "config.policy is one of random"),
    ("main", ["--config=configs/docid/base.py", "--config.mesh.tensor=3"], "the mesh .*tensor=3 needs 3 devices"),
    ("main", ["--config=configs/docid/base.py:dataset=folder,path=/no/such"], "/no/such"),
    ("main", ["--config=configs/docid/base.py", "--num_processes=2"], "needs --coordinator_address"),
    ("main", ["--config=configs/docid/base.py", "--profile_steps=12:10"], "--profile_steps is FIRST:LAST"),
    ("main", ["--config=configs/docid/base.py", "--config.keep_every=7"], "config.keep_every .7. must be a multiple"),
    ("decode", ["--workdir=/no/such", "--query=x"], "/no/such holds no run"),
    ("decode", ["--workdir=/no/such", "extra"], "unexpected argument 'extra'"),
    ("decode", ["--query=x"], "exactly one of --workdir .* and --checkpoint"),
    ("decode", ["--checkpoint=tests/golden/llada", "--query=x"], "--query applies to --workdir only"),
    ("decode", ["--checkpoint=tests/golden/dream", "--cache=sub_block"], "--cache of the canvas decoder is one of"),
    ("evaluate", ["--workdir=/no/such"], "holds no run"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_a_code(module, flags, message, tmp_path):
  where = [] if module != "main" else [f"--workdir={tmp_path}"]
  done = run(module, *flags, *where)
  assert done.returncode == 1
  assert "Traceback" not in done.stderr
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1
  assert re.search(message, errors[0]), errors


@pytest.mark.parametrize(
  "name, line, message",
  [
    ("corpus.jsonl", '{"title": "x", "text": "y"}', "corpus.jsonl:25: "),
    ("corpus.jsonl", '{"doc_id": "D1", "title": "x", "text": "y"}', "corpus.jsonl:25: "),
    ("corpus.jsonl", '{"doc_id": ', "corpus.jsonl:25: "),
    ("corpus.jsonl", '{"doc_id": "n", "title": "x"}', "corpus.jsonl:25: "),  # an empty text would be fine
    ("queries.train.jsonl", '{"query_id": "n", "query": "x", "doc_ids": ["gone"]}', "queries.train.jsonl:25: "),
  ],
)
def test_a_bad_row_is_named_by_file_and_line(name, line, message, corpus_folder, tmp_path):
  folder = tmp_path / "corpus"
  folder.mkdir()
  for file in corpus_folder.iterdir():
    extra = line + "\n" if file.name == name else ""
    (folder / file.name).write_text(file.read_text() + extra)
  done = run("main", f"--config=configs/docid/base.py:dataset=folder,path={folder}", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 1
  assert message in done.stderr
  assert "Traceback" not in done.stderr
