"""The index command as a user types it: build, inspect, import, and training on what it built."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from diffgr_jax.data.interactions.shop import load_shop
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.rerank.semantic_ids import item_codes
from tests.plain_compilation import PLAIN_COMPILATION

SMALL = [
  "--config.d_model=16", "--config.n_layers=1", "--config.n_heads=2", "--config.n_kv_heads=2", "--config.d_ff=16",
  "--config.vocab_size=360", "--config.batch_size=8", "--config.eval_batch_size=4", "--config.eval_splits=('valid',)",
  "--config.warmup_steps=1", "--config.nelbo_queries=0", "--config.show_queries=1",
]  # fmt: skip


ENVIRONMENT = os.environ | {"XLA_FLAGS": PLAIN_COMPILATION, "COLUMNS": "100"}

MISTAKES = [
  ([], "the first argument is one of build, inspect, import, and none is given"),
  (["bild"], "the first argument is one of build, inspect, import, not 'bild'"),
  (["build", "--corpus=pydocs"], "index build needs --out"),
  (["build", "--out=/tmp/x.json"], "ends in .npz"),
  (
    ["build", "--out=/tmp/x.npz"],
    "--corpus is one of pydocs, folder, nq320k, msmarco, amazon_beauty, interactions, made_up; only --vectors=FILE.npy",
  ),
  (["build", "--out=/tmp/x.npz", "--corpus=nq320k", "--path=x"], "--data_dir says where the built nq320k is kept"),
  (
    ["build", "--out=/tmp/x.npz", "--corpus=pydocs", "--word_levels=2"],
    "--word_levels needs --vectors of a sentence encoder",
  ),
  (["inspect", "--index=/no/such.npz"], "no such DocID index of codes"),
  (["inspect", "--index=README.md"], "README.md is no DocID index of codes"),
  (["inspect", "--index=a.npz", "--levels=3"], "index inspect takes no --levels; it takes --index, --vectors"),
  (["import", "--published=README.md", "--out=/tmp/x.npz"], "README.md is no JSON"),
  (["build", "--vectors=README.npy", "--out=/tmp/x.npz"], "No such file"),
]

# One process for all of them: each start of Python with JAX takes seconds.
MAKE_MISTAKES = """
import contextlib, io, json, sys
from absl.testing import flagsaver
from diffgr_jax import cli, index

for arguments in json.loads(sys.argv[1]):
  code, errors = 0, io.StringIO()
  with flagsaver.flagsaver(), contextlib.redirect_stderr(errors):
    sys.argv = ["index", *arguments]
    try:
      cli.run(index.main, actions=index.ACTIONS)
    except SystemExit as stop:
      code = stop.code
  print(json.dumps([code, errors.getvalue()]))
"""


def run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", f"diffgr_jax.{module}", *flags], capture_output=True, text=True, env=ENVIRONMENT
  )


@pytest.fixture(scope="module")
def built(corpus_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("index")
  done = run(
    "index", "build", "--corpus=folder", f"--path={corpus_folder}", "--levels=2", "--codes=8", f"--out={folder}/i.npz",
    f"--picture={folder}/i.png", f"--export={folder}/i.json",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return folder, done


def test_build_reports_draws_and_exports(built):
  folder, done = built
  for expected in ("24 documents, 2 levels", "vectors: lsa", "perplexity", "documents in collision:", "error left"):
    assert expected in done.stdout
  assert (folder / "i.png").read_bytes()[:4] == b"\x89PNG"
  index = CodeIndex.load(folder / "i.npz")
  assert len(np.unique(index.codes, axis=0)) == 24
  assert json.loads((folder / "i.json").read_text())[index.doc_ids[0]][0] == f"<a_{index.codes[0, 0]}>"


def test_inspect_shows_what_build_showed_and_import_reads_the_export(built):
  folder, done = built
  table = lambda text: [line for line in text.splitlines() if line[:1].isdigit()]
  seen = run("index", "inspect", f"--index={folder}/i.npz")
  assert table(seen.stdout) == table(done.stdout)
  said = json.loads(run("index", "inspect", f"--index={folder}/i.npz", "--json").stdout)
  assert (said["documents"], [level["size"] for level in said["levels"]], said["written"]) == (24, [8, 8], {})
  assert said["settings"]["vectors"] == "lsa"
  taken = run("index", "import", f"--published={folder}/i.json", f"--out={folder}/j.npz")
  assert taken.returncode == 0, taken.stderr
  np.testing.assert_array_equal(CodeIndex.load(folder / "j.npz").codes, CodeIndex.load(folder / "i.npz").codes)


def test_items_of_a_shop_are_documents(tmp_path):
  """Built from vectors with a random last level, and imported from an index that names items by their place."""
  rows = [{"item_id": f"T{row}", "title": f"Tea {row}", "brand": "Hill"} for row in range(40)]
  events = [{"user": f"u{row % 5}", "item_id": f"T{row}", "time": row} for row in range(40)]
  for name, lines in (("items", rows), ("interactions", events)):
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  vectors = np.random.default_rng(0).normal(size=(10, 6)).repeat(4, axis=0)  # in fours alike: they collide
  np.save(tmp_path / "v.npy", vectors.astype(np.float16))
  shop = ["--corpus=interactions", f"--path={tmp_path}"]
  how = ["--levels=3", "--codes=8", "--collisions=random", f"--vectors={tmp_path}/v.npy"]
  done = run("index", "build", *shop, *how, f"--out={tmp_path}/i.npz", f"--export={tmp_path}/i.json")
  assert done.returncode == 0, done.stderr
  built = CodeIndex.load(tmp_path / "i.npz")
  assert built.doc_ids == tuple(f"T{row}" for row in range(40))
  assert built.titles[7] == "Tea 7"
  assert len(np.unique(built.codes, axis=0)) == 40
  by_place = dict(zip(map(str, range(40)), json.loads((tmp_path / "i.json").read_text()).values(), strict=True))
  (tmp_path / "p.json").write_text(json.dumps(by_place))
  done = run("index", "import", *shop, f"--published={tmp_path}/p.json", f"--out={tmp_path}/p.npz")
  assert done.returncode == 0, done.stderr
  taken = CodeIndex.load(tmp_path / "p.npz")
  assert (taken.doc_ids, taken.titles) == (built.doc_ids, built.titles)
  np.testing.assert_array_equal(taken.codes, built.codes)


def test_what_a_published_index_gives_the_same_codes_is_told_apart(tmp_path):
  codes = {f"i{row}": ["<a_1>", f"<b_{row % 3}>", f"<c_{row % 2}>"] for row in range(12)}
  codes["z"] = ["<a_0>", "<b_0>", "<c_6>"]
  (tmp_path / "p.json").write_text(json.dumps(codes))
  done = run("index", "import", f"--published={tmp_path}/p.json", "--collisions=random", f"--out={tmp_path}/p.npz")
  assert done.returncode == 0, done.stderr
  assert "documents in collision: 12 before, 0 after" in done.stdout
  taken = CodeIndex.load(tmp_path / "p.npz")
  assert len(np.unique(taken.codes, axis=0)) == 13
  assert taken.codes[:, :2].tolist() == [[int(token[3:-1]) for token in row[:2]] for row in codes.values()]
  assert taken.level_sizes == (2, 3, 7)


def test_the_made_up_shop_is_a_corpus(tmp_path):
  shop = ["--corpus=made_up", "--path=users=3,categories=6,seed=2"]
  done = run(
    "index", "build", *shop, "--method=rqvae", "--steps=20", "--codes=16", "--latent=8", "--collisions=random",
    f"--out={tmp_path}/i.npz",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  built, made = CodeIndex.load(tmp_path / "i.npz"), load_shop("made_up", path=shop[1].removeprefix("--path="))
  assert len(np.unique(item_codes(built, made, "i.npz"), axis=0)) == len(made.items) == 120
  assert built.titles == tuple(item.title for item in made.items)


def test_a_run_trains_on_the_codes_and_is_evaluated_like_titles(built, corpus_folder, tmp_path):
  config = f"--config=configs/docid/base.py:steps=4,size=tiny,dataset=folder,path={corpus_folder}"
  codes = ["--config.docid=codes", f"--config.docid_index={built[0]}/i.npz"]
  done = run("main", config, *codes, f"--workdir={tmp_path}", *SMALL)
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / "results.json").read_text())
  assert record["settings"]["canvas_length"] == 2
  assert {"one-pass", "confidence, 4 steps, constrained", "confidence, 4 steps, free"} <= record["metrics"][
    "valid"
  ].keys()
  assert re.search(r"\[\d+\]", done.stdout)  # codes that a step committed
  assert CodeIndex.load(tmp_path / "index" / "codes.npz").quantizer is not None
  refused = run("evaluate", f"--workdir={tmp_path}", f"--corpus={corpus_folder}/corpus.jsonl", "--set=decode_steps=2")
  assert "error: a run on codes needs an index of codes" in refused.stderr
  given = run(
    "evaluate", f"--workdir={tmp_path}", f"--corpus={corpus_folder}/corpus.jsonl", f"--docid_index={built[0]}/i.npz",
    f"--queries={corpus_folder}/queries.valid.jsonl", f"--out={tmp_path}/again.json", "--json",
  )  # fmt: skip
  assert given.returncode == 0, given.stderr
  again = json.loads(given.stdout)["metrics"]["queries.valid"]["one-pass"]
  assert again["Hit@1"] == record["metrics"]["valid"]["one-pass"]["Hit@1"]


@pytest.fixture(scope="module")
def mistaken():
  arguments = json.dumps([flags for flags, _ in MISTAKES])
  done = subprocess.run(
    [sys.executable, "-c", MAKE_MISTAKES, arguments], capture_output=True, text=True, env=ENVIRONMENT
  )
  assert done.returncode == 0, done.stderr
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("case", range(len(MISTAKES)), ids=[" ".join(flags) or "none" for flags, _ in MISTAKES])
def test_a_mistake_is_one_line_and_a_code(mistaken, case):
  code, errors = mistaken[case]
  assert code == 1
  assert "Traceback" not in errors
  (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
  assert MISTAKES[case][1] in line
