"""Settings of every test - eight virtual CPU devices, no silent rank promotion, shapes checked - and a small corpus."""

import gc
import json
import os
from pathlib import Path

from jaxtyping import install_import_hook
import pytest

from tests.plain_compilation import PLAIN_COMPILATION

os.environ["XLA_FLAGS"] = " ".join(
  (os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", PLAIN_COMPILATION)
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs are compiled once for all modules, workers and commands that the tests start, and for the next time.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# Before the first import of diffgr_jax: annotations such as Float[Array, "B L V"] are then checked at every call.
install_import_hook("diffgr_jax", "beartype.beartype")

import jax  # noqa: E402 (reads the environment)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def _drop_compiled_programs():
  """Every compiled program takes memory maps, of which Linux gives a process 65,530: drop them after each module."""
  yield
  jax.clear_caches()
  gc.collect()


WORDS = [
  "river",
  "stone",
  "lamp",
  "garden",
  "copper",
  "cloud",
  "winter",
  "bridge",
  "silver",
  "forest",
  "candle",
  "harbor",
  "violin",
  "meadow",
  "thunder",
  "basket",
]


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
  """A small corpus of the folder format: 24 documents, a train and a valid query each for some of them."""
  folder = tmp_path_factory.mktemp("corpus")
  documents, train, valid = [], [], []
  for i in range(24):
    first, second, third = WORDS[i % 16], WORDS[(i * 5 + 1) % 16], WORDS[(i * 7 + 3) % 16]
    text = f"The {first} lies by the {second}. Nobody saw the {third} near {first} number {i}. It was late that day."
    documents.append({"doc_id": f"D{i}", "title": f"{first} {second} {i}", "text": text})
    train.append({"query_id": f"T{i}", "query": f"where is the {first} of {second} {i}", "doc_ids": [f"D{i}"]})
    valid.append({"query_id": f"V{i}", "query": f"{second} and {first} {i}", "doc_ids": [f"D{i}"]})
  for name, rows in (("corpus", documents), ("queries.train", train), ("queries.valid", valid[:10])):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return folder


@pytest.fixture
def tiny_config(corpus_folder):
  """The quickstart's config at a size that trains in a second, on the small corpus."""
  return _tiny_config(corpus_folder)


@pytest.fixture(scope="session")
def untrained(corpus_folder, tmp_path_factory):
  """A run of the small corpus, its fresh weights and its data: whatever holds of any model can be tested on it."""
  from diffgr_jax.models.transformer import init_params
  from diffgr_jax.training.run import prepare_run

  run, collection = prepare_run(_tiny_config(corpus_folder), tmp_path_factory.mktemp("untrained"))
  params = jax.jit(init_params, static_argnums=0)(run.model, jax.random.key(7))
  return run, params, collection


def _tiny_config(corpus_folder):
  from configs.docid.base import get_config

  config = get_config(f"size=tiny,steps=6,dataset=folder,path={corpus_folder}")
  with config.unlocked():
    config.update(
      d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=16, vocab_size=360, prompt_length=12, batch_size=8,
      warmup_steps=1, checkpoint_every=3, start="random", canvas_length=0, eval_every=0, log_every=1,
      eval_splits=("valid",), eval_batch_size=4,
    )  # fmt: skip
  return config


@pytest.fixture(scope="session")
def rerank_runs(tmp_path_factory):
  """A folder with a re-ranking teacher (`sft`) and its naive conversion (`convert`), barely trained; and its state."""
  from diffgr_jax.training import loop
  from tests.training.tiny_rerank import tiny

  folder = tmp_path_factory.mktemp("rerank")
  _, state = loop.train_and_evaluate(tiny("sft"), folder / "sft")
  loop.train_and_evaluate(tiny("convert", folder / "sft"), folder / "convert")
  return folder, state
