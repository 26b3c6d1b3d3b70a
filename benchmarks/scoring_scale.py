"""What scoring a corpus costs by its size: one pass, and the search of constrained top-k, on made-up codes.

    python -m benchmarks.scoring_scale --out=results/scoring_scale.json --picture=docs/scoring_scale.png

The codes are even draws of K; documents and levels grow. The model is left out: logits stand ready, so that what is
timed is what a corpus ADDS to a forward pass, and the forward pass of a model of about 100M parameters at the same
batch is timed beside it. `scoring` sums every document's log-probabilities, `picking` takes the 100 best of them,
`search` is all of a constrained top-k decoding but its forward passes. Milliseconds are medians of a batch; MiB is what
the compiled program holds beside its arguments (the codes themselves are 4 bytes a level), as XLA reports it.
"""

from collections.abc import Callable
import functools
import json
from pathlib import Path
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax import cli
from diffgr_jax.decoding.policies import Confidence
from diffgr_jax.decoding.scoring import score_documents, top_documents
from diffgr_jax.decoding.topk import TopKOptions, decode_topk
from diffgr_jax.evaluation.retrieval import format_table, results_record, typed_command
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.transformer import count_params, init_params
from diffgr_jax.viz.quality import draw_cost

_DOCUMENTS = flags.DEFINE_multi_integer("documents", [10_000, 100_000, 320_000, 1_000_000, 3_000_000], "corpus sizes")
_LEVELS = flags.DEFINE_multi_integer("levels", [4, 8, 16, 32], "codes of a document")
_CODES = flags.DEFINE_integer("codes", 256, "of a level", lower_bound=2)
_BATCH = flags.DEFINE_integer("batch", 32, "questions scored together", lower_bound=1)
_SEARCH_BATCH = flags.DEFINE_integer("search_batch", 1, "questions of a constrained top-k decoding; 0: none", 0)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "timed calls", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "of the codes and logits")
_OUT = flags.DEFINE_string("out", None, "the record to write")
_PICTURE = flags.DEFINE_string("picture", None, "the PNG to draw")

_BEST = 100  # documents that are ranked
_STEPS, _BEAM = 4, 8  # of the search
# The forward pass beside it: BERT-base's sizes with a gated MLP, 24 tokens of a question before the canvas.
_MODEL = TransformerConfig(
  vocab_size=32_768, d_model=768, n_layers=12, n_heads=12, n_kv_heads=12, head_dim=64, d_ff=2048
)
_PROMPT = 24


def main(_) -> None:
  rng = np.random.default_rng(_SEED.value)
  figures: dict[str, dict[str, dict[str, float]]] = {}
  for levels in _LEVELS.value:
    own = figures.setdefault(f"{levels} levels", {})
    forward = _forward_seconds(levels)
    own["forward pass"] = {"ms": 1e3 * forward}
    for documents in _DOCUMENTS.value:
      cost = _costs(rng, documents, levels)
      own[f"{documents:,} documents"] = cost | {
        "share of the forward pass": (cost["scoring ms"] + cost["picking ms"]) / (1e3 * forward)
      }
      print(f"{levels} levels, {documents:,} documents: {cost['scoring ms']:.1f} ms", flush=True)
  record = results_record(
    command=typed_command(),
    status="measured",
    seeds={"codes, logits": _SEED.value},
    settings={
      "codes": _CODES.value,
      "batch": _BATCH.value,
      "search": f"{_STEPS} steps, beam {_BEAM}, batch {_SEARCH_BATCH.value}",
      "best": _BEST,
      "forward pass": f"{count_params(_MODEL):,} parameters, {_PROMPT} tokens and the canvas, batch {_BATCH.value}",
      "device": jax.devices()[0].device_kind,
    },
    metrics=figures,
  )
  for levels, rows in figures.items():
    print(f"\n{levels}")
    print(format_table([{"": name, **row} for name, row in rows.items()]))
  if _OUT.value:
    Path(_OUT.value).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
  if _PICTURE.value:
    print(draw_cost(figures, _PICTURE.value, batch=_BATCH.value))


def _costs(rng: np.random.Generator, documents: int, levels: int) -> dict[str, float]:
  size = _CODES.value
  codes = jnp.asarray(rng.integers(0, size, (documents, levels), dtype=np.int32))
  scored = jnp.ones(codes.shape, bool)
  # Column K is MASK's; no document holds it.
  table = jnp.asarray(rng.normal(size=(_BATCH.value, levels, size + 1)).astype(np.float32) * 3)
  log_probs = jax.nn.log_softmax(table)
  score = _compiled(score_documents, log_probs, codes, scored)
  scores = score(log_probs, codes, scored)
  pick = _compiled(functools.partial(top_documents, k=min(_BEST, documents)), scores)
  cost = {
    "scoring ms": 1e3 * _seconds(score, log_probs, codes, scored),
    "scoring MiB": _scratch(score),
    "picking ms": 1e3 * _seconds(pick, scores),
  }
  del scores
  if rows := _SEARCH_BATCH.value:
    search = functools.partial(
      decode_topk,
      denoise=_looked_up,
      options=TopKOptions(Confidence(), mask_id=size, steps=_STEPS, beam=_BEAM),
      k=min(_BEST, documents),
    )
    prompt, banned = jnp.arange(rows)[:, None], jnp.zeros(size + 1, bool)
    cost["search ms"] = 1e3 * _seconds(search, table, prompt, jnp.arange(rows), codes, scored, banned)
  return cost


def _looked_up(params: jax.Array, prompt: jax.Array, canvas: jax.Array) -> jax.Array:
  """A model that costs nothing: the logits of a question, whatever is committed."""
  del canvas
  return params[prompt[:, 0]]


def _forward_seconds(levels: int) -> float:
  denoise = jax.jit(CanvasDenoiser(_MODEL, pad_id=0))
  params = init_params(_MODEL, jax.random.key(_SEED.value))
  prompt = jnp.ones((_BATCH.value, _PROMPT), jnp.int32)
  return _seconds(denoise, params, prompt, jnp.ones((_BATCH.value, levels), jnp.int32))


def _compiled(function: Callable, *arguments: jax.Array) -> jax.stages.Compiled:
  return jax.jit(function).lower(*arguments).compile()


def _scratch(program: jax.stages.Compiled) -> float:
  """MiB that a program holds beside its arguments, results included; 0 where XLA does not say."""
  memory = program.memory_analysis()
  return (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20 if memory else 0.0


def _seconds(call: Callable, *arguments: jax.Array) -> float:
  """Median of the rounds, after one that may compile."""
  times = []
  for _ in range(_ROUNDS.value + 1):
    began = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    times.append(time.perf_counter() - began)
  return statistics.median(times[1:])


if __name__ == "__main__":
  cli.run(main)
