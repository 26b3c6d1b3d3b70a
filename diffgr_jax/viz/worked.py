"""One query answered in full: the ranking of one-pass scoring, and how a DocID is denoised beside it.

An autoregressive run has no canvas: it answers with the documents of its beam search.
"""

from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.decoding.beam import decode_beams
from diffgr_jax.decoding.canvas import DecodeOptions
from diffgr_jax.decoding.constraint import matching_documents
from diffgr_jax.decoding.denoiser import GuidedDenoiser
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.schedules import EVEN, Schedule
from diffgr_jax.decoding.scoring import one_pass_retrieve
from diffgr_jax.decoding.trace import Trace, trace_decode
from diffgr_jax.docid.trie import build_trie
from diffgr_jax.training.run import Run
from diffgr_jax.viz.steps import draw_trace, render_ranking, render_trace


@dataclass(frozen=True)
class Answer:
  """What a model says to one query."""

  run: Run
  query: str
  ranked: np.ndarray  # indices of documents, best first
  scores: np.ndarray  # their one-pass scores, in nats
  trace: Trace
  denoised: int | None  # index of the document that denoising named; None: the DocID does not exist

  def to_json(self) -> str:
    index = self.run.index
    return json.dumps(
      {
        "query": self.query,
        "ranking": [
          {"doc_id": index.doc_ids[i], "title": index.titles[i], "score": round(float(score), 4)}
          for i, score in zip(self.ranked, self.scores, strict=True)
        ],
        "denoised": None if self.denoised is None else index.doc_ids[self.denoised],
        "tokens": [self.run.piece(int(token)) for token in self.trace.canvas[-1, 0]],
        "step_map": self.trace.step_map[0].tolist(),
      }
    )

  def draw(self, path: Path) -> Path:
    """Draws the denoising as a PNG."""
    return draw_trace(self.trace, 0, self.run.piece, f'"{self.query}"', path)


@dataclass(frozen=True)
class Denoising:
  """How a DocID is denoised, beside what the run's config says (decode_steps, policy, threshold, remask)."""

  schedule: Schedule = EVEN
  block_size: int = 0
  remask_by: str = "commit"
  max_reopen: int = 1
  guidance: float = 0.0
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0


def answer_query(
  run: Run,
  params: Any,
  query: str,
  *,
  top: int = 10,
  constrained: bool = True,
  denoising: Denoising = Denoising(),  # noqa: B008 (frozen)
) -> Answer:
  """Ranks all documents in one pass, and denoises one DocID in the config's number of steps, keeping every step."""
  prompt = jnp.asarray(encode_prompts([query], run.vocab, run.config.prompt_length))
  index = run.device_index()
  codes, scored = index["codes"], index["scored"]
  ranked, scores = one_pass_retrieve(
    params,
    prompt,
    codes,
    scored,
    run.banned,
    run.config.prior_weight * index["log_frequency"],
    denoise=run.denoiser,
    mask_id=run.mask_id,
    k=min(top, len(run.index.doc_ids)),
  )
  denoise = run.denoiser
  if denoising.guidance:
    denoise = GuidedDenoiser(denoise, denoising.guidance, run.vocab.mask_id, run.vocab.pad_id)
  trace = trace_decode(
    params,
    prompt,
    jnp.full((1, run.index.canvas_length), run.mask_id, jnp.int32),
    jnp.full((1,), denoising.seed, jnp.int32),
    run.banned,
    denoise=denoise,
    options=DecodeOptions(
      policy=make_policy(run.config.policy, run.config.threshold),
      mask_id=run.mask_id,
      remask=run.config.remask,
      max_reopen=denoising.max_reopen,
      remask_by=denoising.remask_by,
      schedule=denoising.schedule,
      block_length=denoising.block_size,
    ),
    steps=run.config.decode_steps,
    temperature=denoising.temperature,
    top_k=denoising.top_k,
    top_p=denoising.top_p,
    codes=codes if constrained else None,
    rows=index["rows"] if constrained else None,
  )
  matches = np.flatnonzero(np.asarray(matching_documents(jnp.asarray(trace.canvas[-1]), codes, scored))[0])
  return Answer(
    run, query, np.asarray(ranked)[0], np.asarray(scores)[0], trace, int(matches[0]) if len(matches) else None
  )


def answer_by_beams(run: Run, params: Any, query: str, *, top: int = 10, console: Console | None = None) -> str:
  """Ranks documents by an autoregressive run's beam search of width `top`, in the trie of those that exist.

  Args:
    run: of the paradigm autoregressive.
    params: its weights.
    query: the question.
    top: documents.
    console: where the ranking is printed; None: it is returned as JSON instead.

  Returns:
    The JSON, or "" where it was printed.
  """
  prompt = jnp.asarray(encode_prompts([query], run.vocab, run.config.prompt_length))
  trie, width = build_trie(run.index), min(top, len(run.index.doc_ids))
  valid = prompt != run.vocab.pad_id
  how: dict[str, Any] = dict(config=run.model, width=width, renormalise=run.renormalises, codes=run.codes)
  beams = decode_beams(params, prompt, valid, run.banned, trie, **how)
  found = [int(document) for document in np.asarray(beams.document)[0] if document >= 0]
  scores = np.asarray(beams.score)[0, : len(found)].tolist()
  ids, titles = ([names[at] for at in found] for names in (run.index.doc_ids, run.index.titles))
  if console is None:
    rows = zip(ids, titles, scores, strict=True)
    ranking = [{"doc_id": i, "title": title, "score": round(score, 4)} for i, title, score in rows]
    return json.dumps({"query": query, "ranking": ranking})
  console.print(f'\n"{query}"', style="bold", markup=False, highlight=False)
  console.print(render_ranking(scores, ids, titles))
  return ""


def show_answer(answer: Answer, *, relevant: tuple[str, ...] = (), console: Console | None = None) -> None:
  """Prints the ranking and the denoising steps."""
  console = console or Console()
  index = answer.run.index
  console.print(f'\n"{answer.query}"', style="bold", markup=False, highlight=False)
  console.print(
    render_ranking(
      answer.scores.tolist(),
      [index.doc_ids[i] for i in answer.ranked],
      [index.titles[i] for i in answer.ranked],
      relevant=relevant,
    )
  )
  found = "no document" if answer.denoised is None else index.titles[answer.denoised]
  console.print(
    render_trace(
      answer.trace,
      0,
      answer.run.piece,
      title=f"denoised to: {found}",
      width=min(console.width, 120),
      colour=console.is_terminal,
    )
  )


def show_worked_queries(run: Run, params: Any, queries: list[tuple[str, tuple[str, ...]]], png: Path) -> Path | None:
  """Answers a few queries, each with the ids of its known documents, and draws the first one's denoising."""
  drawn = None
  for text, relevant in queries:
    answer = answer_query(run, params, text, top=5)
    show_answer(answer, relevant=relevant)
    drawn = drawn or answer.draw(png)
  return drawn
