"""Asks a trained model or lets a converted one write; every decoder and policy by flag. Exactly one of

python -m diffgr_jax.decode --workdir=DIR --query="join path components"     a DocID run: ranked documents (one-pass
                                                                             scores), and how a DocID is denoised; of an
                                                                             autoregressive run its beams
python -m diffgr_jax.decode --checkpoint=DIR --prompt="Once upon a time"     a checkpoint of `convert --from_hf`, with
                                                                             the tokenizer that came with it

Without --query or --prompt, every line of standard input is one. --trace_png draws each step. What a flag means, and
which decoder reads it: docs/decoding.md.
"""

from collections.abc import Iterator
from pathlib import Path
import sys
from typing import Any

from absl import flags
from rich.console import Console

from diffgr_jax import cli
from diffgr_jax.decoding.remasking import check_remasking
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.generation.options import (
  THRESHOLDS,
  GenerationOptions,
  check_steps,
  choose_policy,
  choose_schedule,
  make_plan,
  with_flag,
)
from diffgr_jax.generation.text import TextGenerator, find_tokenizer
from diffgr_jax.training.averaging import answering_params
from diffgr_jax.training.options import check_config
from diffgr_jax.training.pretrained import load_pretrained, read_spec
from diffgr_jax.training.run import Run, open_run
from diffgr_jax.viz.steps import draw_trace
from diffgr_jax.viz.worked import Denoising, answer_by_beams, answer_query, show_answer

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained DocID run")
_STEP = flags.DEFINE_integer("step", None, "--workdir: of the checkpoint; default: the newest")
_QUERY = flags.DEFINE_string("query", None, "--workdir: what to ask; default: every line of standard input")
_TOP = flags.DEFINE_integer("top", 10, "--workdir: how many documents to rank", lower_bound=1)
_CONSTRAINED = flags.DEFINE_bool("constrained", True, "--workdir: denoise only to DocIDs that exist")
_SET = flags.DEFINE_multi_string("set", [], "--workdir: field=value: decode_steps, policy, threshold, remask")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "folder of `convert --from_hf`, or a Hugging Face folder")
_PROMPT = flags.DEFINE_string("prompt", None, "--checkpoint: what to continue; default: every line of standard input")
_TRACE_PNG = flags.DEFINE_string("trace_png", None, "draw the steps to this file")
_JSON = flags.DEFINE_bool("json", False, "one JSON object an answer instead of text")

_HOW = {
  flag.name: flag
  for flag in (
    flags.DEFINE_string("decoder", None, "autoregressive | beam | canvas | block; default: what fits the model"),
    flags.DEFINE_string("alignment", None, "same_position | shifted; default: the model's"),
    flags.DEFINE_string("policy", None, "which MASKs are committed; see docs/decoding.md"),
    flags.DEFINE_float("threshold", None, "of the policies threshold, dynamic, factor, entropy_bounded, prefix"),
    flags.DEFINE_string("schedule", None, "even | early_remainder | block_remainder | linear_time"),
    flags.DEFINE_integer("steps", None, "passes over the canvas, or over a block; default: one a position"),
    flags.DEFINE_integer("block_size", None, "canvas: semi-autoregressive blocks; block: default the model's"),
    flags.DEFINE_integer("sub_block", 0, "block: commit inside sub-blocks of this length"),
    flags.DEFINE_string("shifted_first", None, "block: clean | noisy, where a block's first position is read"),
    flags.DEFINE_integer("max_new_tokens", 64, "length of the canvas, or tokens at most"),
    flags.DEFINE_float("temperature", 0.0, "0: the most likely token"),
    flags.DEFINE_integer("top_k", 0, "sample among the k best; 0: all"),
    flags.DEFINE_float("top_p", 1.0, "sample from the best of this mass"),
    flags.DEFINE_multi_string("stop", [], "a string that ends the text; may be repeated"),
    flags.DEFINE_integer("seed", 0, "of sampling and of the random policy"),
    flags.DEFINE_float("guidance", 0.0, "canvas: scale of classifier-free guidance"),
    flags.DEFINE_integer("remask", 0, "tokens taken back to MASK after a step, at most"),
    flags.DEFINE_string("remask_by", "commit", "commit | current: which confidence makes a token doubtful"),
    flags.DEFINE_integer("max_reopen", 1, "times that one position may be taken back"),
    flags.DEFINE_string("cache", "exact", "exact | prefix, dual (canvas) | sub_block (block): these are approximate"),
    flags.DEFINE_integer("refresh", 0, "prefix, dual: steps between full passes; 0: one a block"),
    flags.DEFINE_integer("mask_id", None, "id of MASK, where the checkpoint names none"),
    flags.DEFINE_integer("width", 4, "beam: hypotheses that are kept"),
    flags.DEFINE_string("allowed", None, "beam: file of the answers that may be given, one a line; default: any text"),
    flags.DEFINE_bool("renormalise", False, "beam: probabilities among the allowed continuations only"),
  )
}
_OF_RUNS = ("step", "query", "top", "constrained", "set")
_DENOISING_OF_RUNS = {
  "decoder", "policy", "threshold", "schedule", "steps", "block_size", "temperature", "top_k", "top_p", "seed",
  "guidance", "remask", "remask_by", "max_reopen",
}  # fmt: skip


def main(_) -> None:
  if (_WORKDIR.value is None) == (_CHECKPOINT.value is None):
    raise ValueError("give exactly one of --workdir (a trained DocID run) and --checkpoint (a converted model)")
  if _CHECKPOINT.value is not None:
    _refuse((*_OF_RUNS,), "--workdir")
    _write(Path(_CHECKPOINT.value))
  else:
    _refuse(("prompt", *(name for name in _HOW if name not in _DENOISING_OF_RUNS)), "--checkpoint")
    _ask(Path(str(_WORKDIR.value)))


def _how() -> dict[str, Any]:
  return {name: flag.value for name, flag in _HOW.items()}


def _refuse(names: tuple[str, ...], owner: str) -> None:
  """Names a flag that was given and that only the other kind of model reads."""
  for name in names:
    if flags.FLAGS[name].present:
      raise ValueError(f"--{name} applies to {owner} only")


# --- a converted checkpoint ---


def _write(folder: Path) -> None:
  how = _how()
  how["stop"] = tuple(how["stop"])
  plan = make_plan(GenerationOptions(**how), read_spec(folder))
  tokenizer = find_tokenizer(folder)
  _, params = load_pretrained(folder)
  generate, png = TextGenerator(plan, params, tokenizer), _TRACE_PNG.value
  for text in _lines(_PROMPT.value, "prompt"):
    answer = generate(text, trace=png is not None)
    print(answer.to_json() if _JSON.value else answer.text, flush=True)
    if answer.trace is not None and png is not None:
      path = draw_trace(answer.trace, 0, generate.piece, f"{text} ({plan.decoder})", png)
      print(f"drawn: {path}", file=sys.stderr)


# --- a DocID run ---


def _ask(workdir: Path) -> None:
  run = open_run(workdir)
  if run.autoregressive:
    _search(run)
    return
  run.set_decoding(_SET.value)
  denoising = _set_denoising(run)
  check_config(run.config)
  params, _ = answering_params(run, _STEP.value)
  for text in _lines(_QUERY.value, "query"):
    answer = answer_query(run, params, text, top=_TOP.value, constrained=_CONSTRAINED.value, denoising=denoising)
    if _JSON.value:
      print(answer.to_json(), flush=True)
    else:
      show_answer(answer)
    if _TRACE_PNG.value:
      print(f"drawn: {answer.draw(Path(_TRACE_PNG.value))}", file=sys.stderr)


def _search(run: Run) -> None:
  """Answers by an autoregressive run's beam search; it has no canvas to denoise."""
  for name in (*_HOW, "constrained", "set", "trace_png"):
    if flags.FLAGS[name].present and not (name == "decoder" and flags.FLAGS[name].value == "beam"):
      raise ValueError(f"--{name} is not for an autoregressive run: it answers with its --top beams")
  params, _ = answering_params(run, _STEP.value)
  console = None if _JSON.value else Console()
  for text in _lines(_QUERY.value, "query"):
    if answer := answer_by_beams(run, params, text, top=_TOP.value, console=console):
      print(answer, flush=True)


def _set_denoising(run: Run) -> Denoising:
  """Puts what the flags say into the run's config, where it has a field; returns the rest."""
  how, config, length = _how(), run.config, run.index.canvas_length
  if how["decoder"] not in (None, "canvas"):
    instead = "; a causal --checkpoint searches titles with --allowed=FILE" if how["decoder"] == "beam" else ""
    raise ValueError(f"--decoder of a DocID run is canvas, not {how['decoder']!r}: its model is bidirectional{instead}")
  policy = choose_policy(how["policy"] or config.policy, how["threshold"])
  if how["policy"] is not None:
    config.threshold = THRESHOLDS.get(how["policy"], config.threshold)
  for field, flag in {"decode_steps": "steps", "policy": "policy", "threshold": "threshold"}.items():
    if how[flag] is not None:
      config[field] = how[flag]
  if flags.FLAGS["remask"].present:
    config.remask = how["remask"]
  size = how["block_size"] or 0
  check_steps(config.decode_steps, length, size)
  if _CONSTRAINED.value and size:
    raise ValueError(f"--block_size={size} needs --noconstrained: documents are excluded over the whole canvas")
  if _CONSTRAINED.value and getattr(policy, "whole_row", False):
    raise ValueError(f"--policy={config.policy} needs --noconstrained: it judges a row as a whole")
  names = ("remask_by", "max_reopen", "guidance", "temperature", "top_k", "top_p", "seed")
  denoising = Denoising(choose_schedule(how["schedule"], size or length), size, **{name: how[name] for name in names})
  with_flag("remask", lambda: check_remasking("decode", config.remask, denoising.max_reopen, denoising.remask_by))
  for flag in ("temperature", "top_k", "top_p"):
    with_flag(flag, lambda flag=flag: make_sampling(**{flag: how[flag]}))
  if not denoising.guidance >= 0:
    raise ValueError(f"--guidance is {denoising.guidance}; it must be 0 (none) or more")
  return denoising


def _lines(given: str | None, flag: str) -> Iterator[str]:
  if given is not None:
    lines = iter([given])
  else:
    if sys.stdin.isatty():
      print(f"one {flag} a line; end with Ctrl-D", file=sys.stderr)
    lines = sys.stdin
  for line in lines:
    if line.strip():
      yield line.strip()
    elif given is not None:
      raise ValueError(f"--{flag} is empty: say what to {'look for' if flag == 'query' else 'continue'}")


if __name__ == "__main__":
  cli.run(main)
