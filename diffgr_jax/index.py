"""Learned DocIDs: `python -m diffgr_jax.index build|inspect|import`.

build    --out=FILE.npz with --corpus=pydocs|folder|nq320k|msmarco [--path=DIR] and --vectors=lsa|minilm|FILE.npy, or
         with a .npy alone (its documents are called 0, 1, 2 ...); --method, --levels, --codes, --collisions, --control
         and --seed say how. --word_levels=32 adds levels that name words, in pieces of the encoder's tokenizer.
         --quantizer=FILE.npz gives codes by the quantiser of an index that exists, and its words.
         The items of a shop are a corpus too: --corpus=amazon_beauty|interactions --path=DIR, or --corpus=made_up with
         its options as the path (users=2000,seed=1).
inspect  --index=FILE.npz: utilisation, perplexity, collisions, reconstruction error.
import   --published=FILE --out=FILE.npz: a published index, {"item": ["<a_1>", "<b_2>", ...], ...}. With --corpus and
         --path its items are places in that corpus, from 0, and get their documents' names.
         --collisions=random|extra_level tells apart what the index gives the same codes.

All three draw with --picture=FILE.png, write the published form with --export=FILE.json, and print what they say as
JSON with --json. The trainer takes the file: `--config.docid=codes --config.docid_index=FILE.npz`.
"""

import dataclasses
import json
from pathlib import Path
import tempfile
from typing import Any

from absl import flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.data.collection import NAMES, PUBLIC, Selection, load_collection
from diffgr_jax.data.interactions.shop import NAMES as SHOPS
from diffgr_jax.data.interactions.shop import item_documents, load_shop
from diffgr_jax.data.msmarco.reader import PARTS
from diffgr_jax.data.records import Document
from diffgr_jax.docid.build import METHODS, RANDOM, BuildOptions, build_index, reusable_quantizer, with_words
from diffgr_jax.docid.code_report import level_uses
from diffgr_jax.docid.codes import CodeIndex, export_json, import_json, named_by_place, told_apart
from diffgr_jax.docid.collisions import RULES
from diffgr_jax.docid.controls import CONTROLS
from diffgr_jax.docid.rqvae import ESTIMATORS, RqvaeOptions
from diffgr_jax.docid.vectors import read_vectors
from diffgr_jax.docid.words import WordCoder, fit_word_coder
from diffgr_jax.evaluation.retrieval import format_table
from diffgr_jax.training.document_vectors import LSA, document_pieces, document_vectors, with_titles

ACTIONS = ("build", "inspect", "import")
_CORPUS = flags.DEFINE_enum(
  "corpus", None, (*NAMES, *SHOPS), "build: what is indexed; without it the rows of --vectors=FILE.npy are"
)
_PATH = flags.DEFINE_string("path", "", "build, import: the folder of the corpus (docs/data.md)")
_CATEGORY = flags.DEFINE_string("category", "Beauty", "build, amazon_beauty: as it stands in the files' names")
_BAD_ROW = flags.DEFINE_enum("on_bad_row", "error", ("error", "skip"), "build: as config.on_bad_row of the run")
_WORDS = flags.DEFINE_integer("words", 512, "build, nq320k, msmarco: as config.dataset_words", lower_bound=0)
_LIMIT = flags.DEFINE_integer("limit", 0, "build, msmarco: as config.dataset_limit", lower_bound=0)
_PART = flags.DEFINE_enum("part", PARTS[0], PARTS, "build, msmarco: as config.dataset_part")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "build, import: where built data sets are kept; default: nowhere")
_VECTORS = flags.DEFINE_string(
  "vectors", None, "build: lsa (default), minilm, a Hugging Face folder or a .npy; inspect: a .npy"
)
_TITLES = flags.DEFINE_float(
  "title_weight", 0.0, "build, vectors of a sentence encoder: share of the title's own vector that is added", 0.0
)
_WIDTH = flags.DEFINE_integer("width", 256, "build: of lsa's vectors, at most", lower_bound=1)
_METHOD = flags.DEFINE_enum("method", METHODS[0], METHODS, "build: how codes are made")
_LEVELS = flags.DEFINE_integer("levels", 4, "build: codes of a document", lower_bound=1)
_WORD_LEVELS = flags.DEFINE_integer("word_levels", 0, "build: levels that name words of the texts", lower_bound=0)
_CODES = flags.DEFINE_integer("codes", 256, "build: codes of a level", lower_bound=1)
_COLLISIONS = flags.DEFINE_enum(
  "collisions", None, RULES, "build, import: how equal codes are told apart; default: optimal, and none of an import"
)
_CONTROL = flags.DEFINE_enum("control", "none", CONTROLS, "build: spoil the codes on purpose")
_SEED = flags.DEFINE_integer("seed", 0, "build: of every draw")
_ITERATIONS = flags.DEFINE_integer("iterations", 20, "build: k-means steps a level, at most", lower_bound=1)
_ROTATE = flags.DEFINE_bool("rotate", True, "build, product: a random rotation before the cut")
_LATENT = flags.DEFINE_integer("latent", RqvaeOptions.latent, "build, rqvae: width of what is quantised")
_STEPS = flags.DEFINE_integer("steps", RqvaeOptions.steps, "build, rqvae: training steps")
_BATCH = flags.DEFINE_integer("batch", RqvaeOptions.batch, "build, rqvae: documents of a step")
_RATE = flags.DEFINE_float("learning_rate", RqvaeOptions.learning_rate, "build, rqvae: at the start; decays to 0")
_ESTIMATOR = flags.DEFINE_enum("estimator", ESTIMATORS[0], ESTIMATORS, "build, rqvae: gradient past the codes")
_QUANTIZER = flags.DEFINE_string("quantizer", None, "build: an index whose quantiser gives the codes")
_INDEX = flags.DEFINE_string("index", None, "inspect: the file")
_PUBLISHED = flags.DEFINE_string("published", None, "import: the published index, a JSON file")
_OUT = flags.DEFINE_string("out", None, "build, import: the file to write")
_PICTURE = flags.DEFINE_string("picture", None, "draw the index to this file")
_EXPORT = flags.DEFINE_string("export", None, "write the published form to this file")
_JSON = flags.DEFINE_bool("json", False, "print the report as JSON")
# What each action needs, and what it takes beside that.
_NEEDS = {"build": {"out"}, "inspect": {"index"}, "import": {"published", "out"}}
_TAKES = {
  "build": {
    "corpus", "path", "data_dir", "vectors", "title_weight", "width", "method", "levels", "codes", "collisions",
    "control", "seed", "iterations", "rotate", "latent", "steps", "batch", "learning_rate", "estimator", "quantizer",
    "on_bad_row", "words", "limit", "part", "category", "word_levels",
  },
  "inspect": {"vectors"},
  "import": {"corpus", "path", "data_dir", "on_bad_row", "words", "limit", "part", "category", "collisions", "seed"},
}  # fmt: skip


_SHOWN_LEVELS = 8  # of the report; --json has all


def main(argv) -> None:
  action = argv[1]
  _check_flags(action)
  with cli.piped(_JSON.value):
    index, vectors = _made(action)
  if _OUT.value:
    index.save(_OUT.value)
  written = {name: file for name, file in (("exported", _EXPORT.value), ("index", _OUT.value)) if file}
  if _EXPORT.value:
    export_json(index, _EXPORT.value)
  if _PICTURE.value:
    from diffgr_jax.viz.clusters import draw_index  # matplotlib only where something is drawn

    written["picture"] = str(draw_index(index, _PICTURE.value, vectors))
  if _JSON.value:
    print(json.dumps(report(index) | {"written": written}))
    return
  print(describe(index))
  for name, file in written.items():
    print(f"{name}: {file}")


def _made(action: str) -> tuple[CodeIndex, np.ndarray | None]:
  if action == "build":
    return build()
  if action == "inspect":
    index = CodeIndex.load(_INDEX.value or "")
    return index, _own_vectors(index)
  index = import_json(_PUBLISHED.value or "")
  if _CORPUS.value is not None:
    index = named_by_place(index, _documents(_CORPUS.value), _PUBLISHED.value or "")
  return told_apart(index, _COLLISIONS.value or "none", _SEED.value), None


def build() -> tuple[CodeIndex, np.ndarray | None]:
  """Builds what the flags say; returns the index and the vectors it was built from."""
  random = _METHOD.value == RANDOM and not _QUANTIZER.value
  options = BuildOptions(
    method=_METHOD.value,
    levels=_LEVELS.value,
    codes=_CODES.value,
    collisions=_COLLISIONS.value or ("none" if random else "optimal"),
    control=_CONTROL.value,
    seed=_SEED.value,
    iterations=_ITERATIONS.value,
    rotate=_ROTATE.value,
    rqvae=RqvaeOptions(
      latent=_LATENT.value,
      steps=_STEPS.value,
      batch=_BATCH.value,
      learning_rate=_RATE.value,
      estimator=_ESTIMATOR.value,
    ),
  )
  source = _VECTORS.value or LSA
  quantizer = coder = None
  if _QUANTIZER.value:
    other = CodeIndex.load(_QUANTIZER.value)
    quantizer, coder = reusable_quantizer(other, _QUANTIZER.value), other.words
    if source == LSA:
      raise ValueError(
        "--quantizer needs --vectors of the space it was fitted in; lsa's space is another for each corpus"
      )
  worded, documents = bool(_WORD_LEVELS.value or coder), []
  if _WORD_LEVELS.value and _QUANTIZER.value:
    raise ValueError("--quantizer decides about levels that name words: no --word_levels beside it")
  if worded and source == LSA:
    raise ValueError("--word_levels needs --vectors of a sentence encoder, whose tokenizer names the pieces, not lsa")
  if _CORPUS.value is None:
    if _TITLES.value or worded:
      raise ValueError(f"{'--title_weight' if _TITLES.value else '--word_levels'} needs --corpus, whose texts it reads")
    if not source.endswith(".npy"):
      names = ", ".join((*NAMES, *SHOPS))
      raise ValueError(f"--corpus is one of {names}; only --vectors=FILE.npy goes without")
    vectors = read_vectors(source)
    names = [str(row) for row in range(len(vectors))]
    titles = [""] * len(names)
  else:
    documents = _documents(_CORPUS.value)
    vectors = None if random else document_vectors(source, documents, width=_WIDTH.value, seed=_SEED.value)
    if _TITLES.value and vectors is not None:
      vectors = with_titles(vectors, source, documents, _TITLES.value)
    names, titles = [document.doc_id for document in documents], [document.title for document in documents]
  index = build_index(names, titles, vectors, options, quantizer=quantizer)
  if worded:
    index = _with_words(index, coder, source, documents)
  index.settings["vectors"] = "none" if random else Path(source).name
  if _TITLES.value:
    index.settings["title_weight"] = _TITLES.value
  return index, vectors


def _with_words(index: CodeIndex, coder: WordCoder | None, source: str, documents: list[Document]) -> CodeIndex:
  titles, texts, pieces = document_pieces(source, documents)
  coder = coder or fit_word_coder(texts, pieces, _WORD_LEVELS.value, _CODES.value)
  if pieces != len(coder.idf):
    raise ValueError(
      f"{_QUANTIZER.value} names words in {len(coder.idf)} pieces; the tokenizer of {source} has {pieces}"
    )
  return with_words(index, coder, titles, texts)


def report(index: CodeIndex) -> dict[str, Any]:
  """How an index uses its codes, and what was said of it when it was made."""
  levels = [dataclasses.asdict(use) for use in level_uses(index.codes, index.level_sizes)]
  return {"documents": len(index.doc_ids), "levels": levels, "settings": index.settings}


def describe(index: CodeIndex) -> str:
  """The report of an index: how its levels use their codes (of many the first and the last), collisions, errors."""
  build, measured = index.settings.get("build", {}), index.settings.get("measured", {})
  errors = measured.get("relative_error", []) if "level_order" not in build else []
  rows = []
  for level, use in enumerate(level_uses(index.codes, index.level_sizes)):
    row = {
      "level": str(level + 1),
      "codes": use.size,
      "used": f"{use.utilisation:.1%}",
      "perplexity": f"{use.perplexity:.1f}",
      "largest share": f"{use.largest_share:.2%}",
      "in collision so far": use.in_collision,
    }
    rows.append(row | ({"error left": f"{errors[level]:.4f}"} if level < len(errors) else {}))
  lines = [f"{len(index.doc_ids)} documents, {index.levels} levels"]
  if build:
    lines.append(", ".join(f"{key} {value}" for key, value in build.items() if key != "rqvae"))
  lines += [f"{key}: {value}" for key, value in index.settings.items() if key not in ("build", "measured")]
  if len(rows) > _SHOWN_LEVELS:
    rows = [*rows[: _SHOWN_LEVELS - 1], {"level": "..."}, rows[-1]]
  lines.append(format_table(rows, markdown=False))
  if "in_collision_before" in measured:
    lines.append(
      f"documents in collision: {measured['in_collision_before']} before, {measured['in_collision']} after"
      f" ({build['collisions']}); error left {errors[-1]:.4f} before, "
      f"{measured['relative_error_after_collisions']:.4f} after; {measured['seconds']} s"
      if errors
      else f"documents in collision: {measured['in_collision_before']} before, {measured['in_collision']} after"
    )
  return "\n".join(lines)


def _check_flags(action: str) -> None:
  """Every flag that was given must mean something to the action, and those it needs must be there."""
  own = {name for needed in _NEEDS.values() for name in needed} | {name for taken in _TAKES.values() for name in taken}
  allowed = _NEEDS[action] | _TAKES[action]
  given = {name for name in own if flags.FLAGS[name].present}
  if missing := sorted(_NEEDS[action] - given):
    raise ValueError(f"index {action} needs --{missing[0]}")
  if wrong := sorted(given - allowed):
    raise ValueError(
      f"index {action} takes no --{wrong[0]}; it takes {', '.join('--' + name for name in sorted(allowed))}"
    )
  for name in ("out", "picture", "export"):
    value = flags.FLAGS[name].value
    if value and Path(value).is_dir():
      raise ValueError(f"--{name}={value} is a folder; name a file")
  if _OUT.value and not _OUT.value.endswith(".npz"):
    raise ValueError(f"--out={_OUT.value}: an index is a file that ends in .npz")


def _documents(corpus: str) -> list[Document]:
  """The documents of the corpus; without --data_dir the data set is built in a folder that does not stay."""
  if corpus in PUBLIC and not _DATA_DIR.value:
    raise ValueError(f"--data_dir says where the built {corpus} is kept, for runs to read it (config.data_dir)")
  with tempfile.TemporaryDirectory() as scratch:
    data_dir = _DATA_DIR.value or scratch
    if corpus in SHOPS:
      how = dict(data_dir=data_dir, on_bad_row=_BAD_ROW.value, category=_CATEGORY.value)
      return item_documents(load_shop(corpus, path=_PATH.value, **how))
    selection, bad = Selection(_WORDS.value, _LIMIT.value, _PART.value), _BAD_ROW.value
    collection = load_collection(corpus, path=_PATH.value, data_dir=data_dir, on_bad_row=bad, selection=selection)
    return list(collection.documents)


def _own_vectors(index: CodeIndex) -> np.ndarray | None:
  if _VECTORS.value is None:
    return None
  vectors = read_vectors(_VECTORS.value)
  if len(vectors) != len(index.doc_ids):
    raise ValueError(f"{_VECTORS.value} has {len(vectors)} rows, but the index {len(index.doc_ids)} documents")
  return vectors


if __name__ == "__main__":
  cli.run(main, actions=ACTIONS)
