"""Text in, text out: a converted checkpoint and any decoder.

A stop string is matched on the decoded text, not on tokens: `###` may be one token or three, or the end of one and the
beginning of the next, and no list of token sequences is complete. After every step of the twin, the text that no later
step can change (all before the first MASK) is decoded and searched; when it holds a stop string, decoding ends. What
would have been written behind changes nothing before, so cutting there is exact. EOS is a token, and is matched as one
on the device. Without stop strings or a trace the compiled loop runs, and nothing is decoded between.

Prompts are padded to buckets of 32 tokens, so that lines of other lengths share a compiled program.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.decoding.autoregressive import decode_autoregressive, decode_autoregressive_steps, pad_prompts
from diffgr_jax.decoding.beam import AnyText, decode_beams, decode_beams_steps, read_beams
from diffgr_jax.decoding.block import decode_blocks, decode_blocks_steps
from diffgr_jax.decoding.canvas import decode_canvas, decode_canvas_steps, forwards_per_row
from diffgr_jax.decoding.canvas_cache import decode_canvas_cached, decode_canvas_cached_steps
from diffgr_jax.decoding.denoiser import GuidedDenoiser, banned_tokens
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.trace import Trace, record_autoregressive, record_beams, record_blocks, record_canvas
from diffgr_jax.docid.index import DocIdIndex
from diffgr_jax.docid.trie import PrefixTrie, build_trie
from diffgr_jax.generation.options import Plan
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.transformer import Params
from diffgr_jax.training.pretrained import HF_FOLDER, is_checkpoint

_BUCKET = 32


@dataclass(frozen=True)
class Hypothesis:
  """One answer of a beam search."""

  text: str
  score: float  # sum of log-probabilities, EOS included


@dataclass(frozen=True)
class Generated:
  """What came out for one prompt."""

  prompt: str
  text: str  # without EOS or the stop string
  tokens: tuple[int, ...]  # all that were decoded, EOS included, without a cut at a stop string
  finish: str  # eos | stop | length
  forwards: int  # passes
  trace: Trace | None  # of a beam search: how the best hypothesis came about
  beams: tuple[Hypothesis, ...] = ()  # of a beam search, best first

  def to_json(self) -> str:
    values = {name: getattr(self, name) for name in ("prompt", "text", "tokens", "finish", "forwards")}
    if self.trace is not None:
      values["step_map"] = self.trace.step_map[0].tolist()
    if self.beams:
      values["beams"] = [{"text": beam.text, "score": round(beam.score, 4)} for beam in self.beams]
    return json.dumps(values, ensure_ascii=False)


def find_tokenizer(folder: str | Path) -> HfTokenizer:
  """The tokenizer that came with a checkpoint (in its hf/ folder) or stands in a Hugging Face folder.

  Raises:
    FileNotFoundError: there is none.
  """
  folder = Path(folder)
  return HfTokenizer(folder / HF_FOLDER if is_checkpoint(folder) else folder)


@dataclass(frozen=True)
class TextGenerator:
  """A model, its tokenizer and how it is decoded."""

  plan: Plan
  params: Params
  tokenizer: HfTokenizer

  def __call__(self, prompt: str, *, trace: bool = False) -> Generated:
    """Generates what follows a prompt, which is taken as it is: no chat template is applied.

    Args:
      prompt: the text; special tokens that the tokenizer's own settings add are added.
      trace: whether to record every step.

    Raises:
      ValueError: an empty prompt, or one with tokens that the model does not know.
    """
    ids = self._encode(prompt)
    if self.plan.decoder == "beam":
      return self._beam(prompt, ids, trace)
    run = {"autoregressive": self._autoregressive, "canvas": self._canvas, "block": self._blocks}[self.plan.decoder]
    tokens, forwards, recorded = run(ids, trace)
    tokens, finish = self._until_eos(tokens)
    text = self._decode(tokens)
    if (cut := self._first_stop(text)) is not None:
      text, finish = text[:cut], "stop"
    return Generated(prompt, text, tuple(tokens), finish, forwards, recorded)

  def piece(self, token: int) -> str:
    """How one token is shown in a picture."""
    return self.tokenizer.piece(token)

  # --- text ---

  def _encode(self, prompt: str) -> list[int]:
    spec, ids = self.plan.spec, self.tokenizer.processor.encode(prompt).ids
    if not ids:
      raise ValueError("the prompt holds no token: say what the model is to continue")
    if max(ids) >= spec.vocab_size:
      raise ValueError(f"the tokenizer gives token {max(ids)}, but the model has {spec.vocab_size}: they do not fit")
    limit = spec.config.max_positions
    if spec.config.position_encoding == "learned" and len(ids) + self._length > limit:
      raise ValueError(
        f"an answer of {self._length} tokens and a prompt of {len(ids)} exceed the model's {limit} positions"
      )
    return ids

  @functools.cached_property
  def _allowed(self) -> PrefixTrie | AnyText:
    """What a beam search may answer."""
    spec, options = self.plan.spec, self.plan.options
    if options.allowed is None:
      return AnyText(options.max_new_tokens, spec.eos_id)
    assert spec.eos_id is not None
    lines = [line for line in Path(options.allowed).read_text(encoding="utf-8").split("\n") if line.strip()]
    if not lines:
      raise ValueError(f"--allowed={options.allowed} holds no line; it names one allowed answer a line")
    rows = [[*ids, spec.eos_id] for ids in self.tokenizer.encode(lines)]
    if (largest := max(max(row) for row in rows)) >= spec.vocab_size:
      raise ValueError(f"--allowed: the tokenizer gives token {largest}, but the model has {spec.vocab_size}")
    codes = np.full((len(rows), max(map(len, rows))), -1, np.int32)
    for code, row in zip(codes, rows, strict=True):
      code[: len(row)] = row
    return build_trie(DocIdIndex(codes, tuple(lines), tuple(lines), spec.eos_id, pad_id=-1))

  @property
  def _length(self) -> int:
    """The most tokens that an answer may have."""
    if self.plan.decoder == "beam":
      return self._allowed.length if isinstance(self._allowed, AnyText) else self._allowed.depth
    return self.plan.options.max_new_tokens

  def _decode(self, tokens: Sequence[int]) -> str:
    return self.tokenizer.processor.decode(list(tokens), skip_special_tokens=True)

  def _until_eos(self, tokens: Iterable[int]) -> tuple[list[int], str]:
    tokens, eos = list(tokens), self.plan.spec.eos_id
    if eos in tokens:
      return tokens[: tokens.index(eos) + 1], "eos"
    return tokens, "length"

  def _first_stop(self, text: str) -> int | None:
    found = [at for stop in self.plan.options.stop if (at := text.find(stop)) >= 0]
    return min(found, default=None)

  def _stops_here(self, settled: Iterable[int]) -> bool:
    return self._first_stop(self._decode(self._until_eos(settled)[0])) is not None

  # --- decoders ---

  @property
  def _banned(self) -> np.ndarray:
    spec = self.plan.spec
    never = [] if spec.mask_id is None else [spec.mask_id]
    return np.asarray(banned_tokens(spec.config.vocab_size, spec.vocab_size, never))

  @property
  def _sampling(self) -> dict[str, Any]:
    return {name: getattr(self.plan.options, name) for name in ("temperature", "top_k", "top_p")}

  @property
  def _eos(self) -> list[tuple[int]]:
    return [] if self.plan.spec.eos_id is None else [(self.plan.spec.eos_id,)]

  def _inputs(self, ids: list[int], pad_id: int, width: int) -> tuple:
    tokens, valid = pad_prompts([ids], pad_id, width=width)
    return self.params, tokens, valid, np.array([self.plan.options.seed], np.int32), self._banned

  def _watched(self, steps: Iterator[tuple], settled) -> list[tuple]:
    """The steps of a twin, up to the one after which the settled text holds a stop string."""
    taken, options = [], self.plan.options
    for step in steps:
      taken.append(step)
      if options.stop and not options.remask and self._stops_here(settled(step[0])):
        break
    return taken

  def _beam(self, prompt: str, ids: list[int], trace: bool) -> Generated:
    spec, options = self.plan.spec, self.plan.options
    params, tokens, valid, _, banned = self._inputs(ids, 0, _up(len(ids)))
    inputs = (params, tokens, valid, banned, self._allowed)
    how: dict[str, Any] = dict(config=spec.config, width=options.width, renormalise=options.renormalise)
    recorded, beams = None, None
    if trace:
      steps = list(decode_beams_steps(*inputs, **how))
      beams, recorded = read_beams(steps[-1][0], self._allowed), record_beams(steps, banned).hypothesis(0, 0)
    beams = beams or decode_beams(*inputs, **how)
    scores = np.asarray(beams.score)[0]
    rows = [row[row >= 0].tolist() for row in np.asarray(beams.tokens)[0][np.isfinite(scores)]]
    found = [self._until_eos(row) for row in rows]
    texts = [self._decode(tokens) for tokens, _ in found]
    hypotheses = tuple(Hypothesis(text, float(score)) for text, score in zip(texts, scores, strict=False))
    forwards = max(map(len, rows))
    return Generated(prompt, texts[0], tuple(found[0][0]), found[0][1], forwards, recorded, hypotheses)

  def _autoregressive(self, ids: list[int], trace: bool) -> tuple[list[int], int, Trace | None]:
    spec, options = self.plan.spec, self.plan.options
    inputs = self._inputs(ids, 0, _up(len(ids)))
    how: dict[str, Any] = dict(config=spec.config, max_new_tokens=options.max_new_tokens, pad_id=0, stops=self._eos)
    how["sampling"] = make_sampling(**self._sampling)
    settled = lambda rows: np.asarray(rows.tokens)[0, : int(rows.length[0])].tolist()
    if not (trace or options.stop):
      rows = decode_autoregressive(*inputs, **how)
      return settled(rows), int(rows.step), None
    steps = self._watched(decode_autoregressive_steps(*inputs, **how), settled)
    rows = steps[-1][0]
    return settled(rows), int(rows.step), record_autoregressive(steps, inputs[-1]) if trace else None

  def _canvas(self, ids: list[int], trace: bool) -> tuple[list[int], int, Trace | None]:
    spec, options, decode = self.plan.spec, self.plan.options, self.plan.canvas
    assert decode is not None
    assert options.steps is not None
    rows_in_use = range(spec.config.vocab_size - 1, -1, -1)
    pad_id = next(row for row in rows_in_use if row != decode.mask_id and row not in ids)  # the prompt's padding
    params, prompt, _, seeds, banned = self._inputs(ids, pad_id, _up(len(ids)))
    canvas = np.full((1, options.max_new_tokens), decode.mask_id, np.int32)
    denoiser = CanvasDenoiser(spec.config, pad_id)
    how: dict[str, Any] = dict(options=decode, steps=options.steps, **self._sampling)
    if self.plan.cache is not None:
      how |= dict(denoiser=denoiser, cache=self.plan.cache)
      run, run_steps = decode_canvas_cached, decode_canvas_cached_steps
    else:
      guided = GuidedDenoiser(denoiser, options.guidance, decode.mask_id, pad_id)
      how["denoise"] = guided if options.guidance else denoiser
      run, run_steps = decode_canvas, decode_canvas_steps
    inputs = (params, prompt, canvas, seeds, banned)
    settled = lambda state: _before_mask(np.asarray(state.canvas)[0], decode.mask_id)
    if not (trace or options.stop):
      state = run(*inputs, **how)
      return settled(state), int(forwards_per_row(state)[0]), None
    steps = self._watched(run_steps(*inputs, **how), settled)
    state = steps[-1][0]
    return settled(state), int(state.step), record_canvas(steps, decode.mask_id) if trace else None

  def _blocks(self, ids: list[int], trace: bool) -> tuple[list[int], int, Trace | None]:
    spec, options, decode = self.plan.spec, self.plan.options, self.plan.blocks
    assert decode is not None
    size, asked = decode.block_size, options.max_new_tokens
    inputs = self._inputs(ids, 0, len(ids))
    whole = len(ids) // size * size
    how: dict[str, Any] = dict(
      config=spec.config,
      options=decode,
      max_new_tokens=asked,
      steps=options.steps,
      sampling=make_sampling(**self._sampling),
      stops=self._eos,
      context=-(-whole // max(_BUCKET // size * size, size)) * max(_BUCKET // size * size, size),
      blocks=-(-(size - 1 + asked) // size),
    )

    def settled(state) -> list[int]:
      begin = int(state.start[0])
      return _before_mask(np.asarray(state.canvas)[0, begin : begin + asked], decode.mask_id)

    if not (trace or options.stop):
      state = decode_blocks(*inputs, **how)
      return settled(state), int(state.forwards[0]), None
    steps = self._watched(decode_blocks_steps(*inputs, **how), settled)
    state = steps[-1][0]
    return settled(state), int(state.forwards[0]), record_blocks(steps, decode, asked) if trace else None


def _up(length: int) -> int:
  return -(-length // _BUCKET) * _BUCKET


def _before_mask(tokens: np.ndarray, mask_id: int) -> list[int]:
  """The tokens before the first MASK."""
  open_ = np.flatnonzero(tokens == mask_id)
  return (tokens[: open_[0]] if len(open_) else tokens).tolist()
