"""How each decoding answers a batch of queries: with documents and scores, at a price in forwards and canvases.

    one-pass        one forward on the all-masked canvas; every document scored by a gather over the code matrix
    top-k           a beam over partly filled canvases; documents that exist, with log-probabilities (topk.py)
    T steps         denoising, greedy or sampled, in blocks or not; constrained it names a document that exists, free
                    it may name none. One document a query
    pseudo beam     several constrained canvases that begin differently, ranked by the one-pass score (pseudo_beam.py)
    match           the documents nearest to one generated code, or to several sampled ones, by the one-pass score
    chain rule      the best documents of one pass, scored again token by token (chain_rule.py)
    beam            an autoregressive model's beam search in the trie of DocIDs that exist; width 1 is greedy
    greedy, free    the same model's likeliest token, one after the other, without the trie: it may name no document

`methods_of` makes them from a config.
"""

from dataclasses import dataclass
from functools import cached_property
import itertools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from diffgr_jax.decoding.beam import AnyText, decode_beams
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas, forwards_per_row
from diffgr_jax.decoding.chain_rule import rescore_by_chain
from diffgr_jax.decoding.constraint import matching_documents
from diffgr_jax.decoding.matching import best_of_n, generate_and_match
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.pseudo_beam import pseudo_beam
from diffgr_jax.decoding.ranked import Ranked
from diffgr_jax.decoding.scoring import one_pass_scores
from diffgr_jax.decoding.topk import TopKOptions, decode_topk
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import PrefixTrie, build_trie
from diffgr_jax.parallel.distributed import fetch
from diffgr_jax.training.run import Run

# Decodings in T steps, which `config.sweep_steps` shows at several T.
STEPPED = ("topk", "constrained", "free", "stochastic", "blocks", "pseudo_beam", "best_of_n", "chain")
ONE_PASS = ("one-pass", "one-pass, prior-corrected")  # what decodings of the same weights are compared with
_DEPTH = 200  # documents of a ranked list: twice the largest cutoff of a metric


@dataclass(frozen=True, eq=False)
class Asked:
  """What every decoding of an evaluation reads."""

  run: Run
  params: Any
  index: DocIdIndex

  @cached_property
  def device(self) -> dict[str, Array]:
    return self.run.device_index(self.index)

  @cached_property
  def trie(self) -> PrefixTrie:
    return build_trie(self.index)

  @property
  def depth(self) -> int:
    """Of a ranked list."""
    return min(_DEPTH, len(self.index.codes))

  def scoring(self, prior_weight: float) -> tuple[Array, ...]:
    """What a score by the index reads: codes, scored, banned, log prior."""
    device = self.device
    return device["codes"], device["scored"], self.run.banned, prior_weight * device["log_frequency"]


@dataclass(frozen=True, eq=False)
class Answer:
  """What a decoding says to a batch of queries."""

  document: Int[np.ndarray, "B K"] | None  # -1: no document; None: all documents, in the order of the index
  score: Float[np.ndarray, "B K"]
  forwards: Int[np.ndarray, "B"]  # passes that had to follow one another
  canvases: Int[np.ndarray, "B"]  # that the model was asked about


@runtime_checkable
class Decoding(Protocol):
  """A way of answering queries."""

  def answer(self, asked: Asked, prompts: Int[np.ndarray, "B P"], seeds: Int[np.ndarray, "B"]) -> Answer:
    """Answers a batch; a row's answer depends on its prompt and its seed alone."""
    ...


@dataclass(frozen=True)
class OnePass:
  prior_weight: float = 0.0  # share of the prior correction (decoding/scoring.py)

  def answer(self, asked, prompts, seeds):
    del seeds
    how = dict(denoise=asked.run.denoiser, mask_id=asked.run.mask_id)
    scores = one_pass_scores(asked.params, jnp.asarray(prompts), *asked.scoring(self.prior_weight), **how)
    once = np.ones(len(prompts), np.int32)
    return Answer(None, fetch(scores), once, once)


@dataclass(frozen=True)
class TopK:
  options: TopKOptions
  prior_weight: float = 0.0

  def answer(self, asked, prompts, seeds):
    how = dict(denoise=asked.run.denoiser, options=self.options, k=asked.depth)
    return _listed(decode_topk(asked.params, prompts, seeds, *asked.scoring(self.prior_weight), **how))


@dataclass(frozen=True)
class Beam:
  width: int
  renormalise: bool  # probabilities over the DocIDs that exist

  def answer(self, asked, prompts, seeds):
    del seeds
    run, trie = asked.run, asked.trie
    beams = decode_beams(
      asked.params,
      prompts,
      prompts != run.vocab.pad_id,
      run.banned,
      trie,
      config=run.model,
      width=self.width,
      renormalise=self.renormalise,
      codes=run.codes,
    )
    forwards = np.full(len(prompts), trie.depth)
    return Answer(fetch(beams.document), fetch(beams.score), forwards, 1 + (forwards - 1) * self.width)


@dataclass(frozen=True)
class Greedy:
  """An autoregressive model's likeliest token, one after the other; what it writes may be no document's DocID."""

  def answer(self, asked, prompts, seeds):
    del seeds
    run, index = asked.run, asked.index
    text = AnyText(index.canvas_length, None if run.codes is not None else index.eos_id)
    valid = prompts != run.vocab.pad_id
    beams = decode_beams(asked.params, prompts, valid, run.banned, text, config=run.model, width=1, codes=run.codes)
    tokens = beams.tokens[:, 0]
    canvas = jnp.where(tokens < 0, index.pad_id, tokens)
    named = fetch(_first_match(canvas, asked.device["codes"], asked.device["scored"]))
    read = fetch((tokens >= 0).sum(axis=-1))
    return Answer(named[:, None], np.zeros((len(prompts), 1), np.float32), read, read)


@dataclass(frozen=True)
class Generate:
  """One DocID a query."""

  options: DecodeOptions
  steps: int
  constrained: bool
  temperature: float = 0.0

  def answer(self, asked, prompts, seeds):
    run, device = asked.run, asked.device
    codes = device["codes"]
    state = decode_canvas(
      asked.params,
      prompts,
      np.full((len(prompts), codes.shape[1]), run.mask_id, np.int32),
      seeds,
      run.banned,
      denoise=run.denoiser,
      options=self.options,
      steps=self.steps,
      temperature=self.temperature,
      codes=codes if self.constrained else None,
      rows=device["rows"] if self.constrained else None,
    )
    named, spent = _first_match(state.canvas, codes, device["scored"]), fetch(forwards_per_row(state))
    return Answer(fetch(named)[:, None], np.zeros((len(prompts), 1), np.float32), spent, spent)


@dataclass(frozen=True)
class PseudoBeam:
  options: DecodeOptions
  steps: int
  width: int
  prior_weight: float = 0.0

  def answer(self, asked, prompts, seeds):
    how = dict(options=self.options, steps=self.steps, width=self.width, rows=asked.device["rows"])
    index = asked.scoring(self.prior_weight)
    return _listed(pseudo_beam(asked.params, prompts, seeds, *index, denoise=asked.run.denoiser, **how))


@dataclass(frozen=True)
class Match:
  pool: int
  prior_weight: float = 0.0

  def answer(self, asked, prompts, seeds):
    del seeds
    run, index = asked.run, asked.index
    found = generate_and_match(
      asked.params,
      jnp.asarray(prompts),
      *asked.scoring(self.prior_weight),
      denoise=run.denoiser,
      mask_id=run.mask_id,
      eos_id=index.eos_id,
      pad_id=index.pad_id,
      pool=min(self.pool, len(index.codes)),
    )
    return _listed(found)


@dataclass(frozen=True)
class BestOfN:
  options: DecodeOptions
  steps: int
  samples: int
  temperature: float
  pool: int
  prior_weight: float = 0.0

  def answer(self, asked, prompts, seeds):
    index = asked.index
    found = best_of_n(
      asked.params,
      prompts,
      seeds,
      *asked.scoring(self.prior_weight),
      denoise=asked.run.denoiser,
      options=self.options,
      steps=self.steps,
      temperature=self.temperature,
      samples=self.samples,
      pool=min(self.pool, len(index.codes)),
      eos_id=index.eos_id,
      pad_id=index.pad_id,
      k=asked.depth,
    )
    return _listed(found)


@dataclass(frozen=True)
class ChainRule:
  candidates: int
  steps: int  # groups of positions
  prior_weight: float = 0.0

  def answer(self, asked, prompts, seeds):
    del seeds
    found = rescore_by_chain(
      asked.params,
      jnp.asarray(prompts),
      *asked.scoring(self.prior_weight),
      denoise=asked.run.denoiser,
      mask_id=asked.run.mask_id,
      candidates=min(self.candidates, asked.depth),
      steps=self.steps,
      k=asked.depth,
    )
    answer = _listed(found)
    # Scores of candidates do not compare with those of the documents behind them: the order is all there is.
    falling = np.broadcast_to(-np.arange(answer.score.shape[1], dtype=np.float32)[None], answer.score.shape)
    return Answer(answer.document, falling, answer.forwards, answer.canvases)


@dataclass(frozen=True)
class Method:
  """One way of answering, and what tables call it."""

  name: str
  decoding: Decoding

  @property
  def ranks(self) -> bool:
    """Whether it ranks many documents; otherwise it names one."""
    return not isinstance(self.decoding, Generate | Greedy)

  @property
  def may_miss(self) -> bool:
    """Whether what it generates may be no document's DocID."""
    free = isinstance(self.decoding, Generate) and not self.decoding.constrained
    return free or isinstance(self.decoding, Greedy)


def methods_of(run: Run) -> tuple[Method, ...]:
  """What a run is evaluated by: the decodings of its config in their order; an autoregressive model has its beams."""
  config = run.config
  if run.autoregressive:
    kinds = {"renormalised": ("", True), "plain": (", plain", False)}
    beams = [
      Method(f"beam {width}{kinds[scores][0]}", Beam(int(width), kinds[scores][1]))
      for scores in config.beam_scores
      for width in config.beam_widths
      if width
    ]
    return (*((Method("greedy, free", Greedy()),) if 0 in config.beam_widths else ()), *beams)
  methods = [method for name in config.decodings for method in _make(name, run)]
  for steps in config.sweep_steps:
    methods += [method for name in config.decodings if name in STEPPED for method in _make(name, run, steps)]
  return tuple({method.name: method for method in methods}.values())  # two T may come to one number of passes


def _make(name: str, run: Run, swept: int = 0) -> list[Method]:
  """`swept`: T instead of the config's numbers of steps; 0: as the config says."""
  config, mask_id, length = run.config, run.mask_id, run.index.canvas_length
  steps, prior, heat = swept or config.decode_steps, config.prior_weight, config.temperature
  options = DecodeOptions(make_policy(config.policy, config.threshold), mask_id, remask=config.remask)
  way = f"{config.policy}, {steps} steps"
  match name:
    case "one_pass":
      return [Method(ONE_PASS[0], OnePass()), *([Method(ONE_PASS[1], OnePass(prior))] if prior else [])]
    case "topk":
      policy = make_policy(config.topk_policy, config.threshold)
      how = dict(steps=swept or config.topk_steps, beam=config.topk_beam, commit=config.topk_commit)
      ways = itertools.product(config.topk_weigh, config.topk_root)
      every = [TopKOptions(policy, mask_id, weigh=by, root=float(root), **how) for by, root in ways]
      return [Method(_top_k_name(one), TopK(one, prior)) for one in every]
    case "constrained" | "free":
      return [Method(f"{way}, {name}", Generate(options, steps, constrained=name == "constrained"))]
    case "argmax":
      return [Method("argmax, free", Generate(DecodeOptions(options.policy, mask_id), 1, constrained=False))]
    case "stochastic":
      return [
        Method(f"sample at {heat:g}, {steps} steps, {where}", Generate(options, steps, where == "constrained", heat))
        for where in ("constrained", "free")
      ]
    case "blocks":
      size = min(config.block_length, length)
      blocks = -(-length // size)
      passes = blocks * -(-steps // blocks)  # every block takes the same number of steps
      within = DecodeOptions(options.policy, mask_id, remask=config.remask, block_length=size)
      return [Method(f"blocks of {size}, {passes} steps, free", Generate(within, passes, constrained=False))]
    case "pseudo_beam":
      width = config.beam_canvases
      return [Method(f"pseudo beam {width}, {steps} steps", PseudoBeam(options, steps, width, prior))]
    case "best_of_n":
      best = BestOfN(options, steps, config.samples, heat, config.pool, prior)
      return [Method(f"best of {config.samples}, {steps} steps", best)]
    case "match":
      return [Method(f"match {config.pool}", Match(config.pool, prior))]
    case "chain":
      groups = min(swept or config.chain_steps or length, length)
      rescored = ChainRule(config.chain_candidates, groups, prior)
      return [Method(f"chain rule, {groups} steps, best {config.chain_candidates}", rescored)]
  raise ValueError(f"config.decodings names {name!r}, which is no decoding")


def _top_k_name(options: TopKOptions) -> str:
  by = {"documents": "", "tokens": " by tokens"}[options.weigh]
  return f"top-k{by}, {options.steps} steps, beam {options.beam}" + (f", root {options.root:g}" if options.root else "")


def _listed(ranked: Ranked) -> Answer:
  return Answer(*(fetch(part) for part in (ranked.document, ranked.score, ranked.forwards, ranked.canvases)))


@jax.jit
def _first_match(canvas: Int[Array, "B L"], codes: Int[Array, "N L"], scored: Array) -> Int[Array, "B"]:
  """The first document that each canvas spells; -1: none."""
  matches = matching_documents(canvas, codes, scored)
  return jnp.where(matches.any(axis=-1), jnp.argmax(matches, axis=-1), -1)
