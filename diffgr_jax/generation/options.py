"""How text is generated: a value for each flag of `python -m diffgr_jax.decode`, checked before weights are read.

    causal        -> autoregressive        Qwen2, Qwen3; or beam, over any text or the lines of a file
    bidirectional -> canvas                LLaDA, Dream, A2D; cache exact, prefix or dual
    block_causal  -> block                 SDAR, Fast-dLLM v2; cache exact or sub_block

A value that is not the default and that the decoder does not read is refused, so that nothing is ignored in silence.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.canvas import DecodeOptions
from diffgr_jax.decoding.canvas_cache import CanvasCache
from diffgr_jax.decoding.policies import POLICIES, Policy, make_policy
from diffgr_jax.decoding.remasking import check_remasking
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.schedules import SCHEDULES, Schedule, make_schedule
from diffgr_jax.models.hf import ModelSpec

# The decoders of an attention pattern, the default first.
DECODERS = {"causal": ("autoregressive", "beam"), "bidirectional": ("canvas",), "block_causal": ("block",)}
CACHES = {
  "autoregressive": ("exact",),
  "beam": ("exact",),
  "canvas": ("exact", "prefix", "dual"),
  "block": ("exact", "sub_block"),
}
# The threshold that a policy has when none is given.
THRESHOLDS = {"threshold": 0.9, "dynamic": 0.9, "factor": 1.0, "entropy_bounded": 0.1, "prefix": 0.9}

_ALL = {"decoder", "alignment", "max_new_tokens", "temperature", "top_k", "top_p", "stop", "seed", "mask_id", "cache"}
_DENOISING = {"policy", "threshold", "schedule", "steps", "block_size", "remask", "remask_by", "max_reopen"}
_READ = {
  "autoregressive": _ALL,
  "beam": {"decoder", "max_new_tokens", "mask_id", "cache", "width", "allowed", "renormalise"},
  "canvas": _ALL | _DENOISING | {"guidance", "refresh"},
  "block": _ALL | _DENOISING | {"sub_block", "shifted_first"},
}


@dataclass(frozen=True)
class GenerationOptions:
  """What the flags say; None: the decoder's or the model's default."""

  decoder: str | None = None  # autoregressive | beam | canvas | block
  alignment: str | None = None  # same_position | shifted
  policy: str | None = None  # confidence
  threshold: float | None = None  # of the policies that have one
  schedule: str | None = None  # even
  steps: int | None = None  # passes: of the whole canvas, or of a block; as many as positions
  block_size: int | None = None  # canvas: 0, no blocks; block: the model's
  sub_block: int = 0
  shifted_first: str | None = None  # clean | noisy (Fast-dLLM v2's own)
  max_new_tokens: int = 64
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  stop: tuple[str, ...] = ()  # strings that end the text
  seed: int = 0
  guidance: float = 0.0
  remask: int = 0
  remask_by: str = "commit"
  max_reopen: int = 1
  cache: str = "exact"  # exact | prefix | dual | sub_block
  refresh: int = 0  # steps between full passes of a prefix or dual cache
  mask_id: int | None = None  # where the checkpoint names none
  width: int = 4  # hypotheses of a beam search
  allowed: str | None = None  # file of the answers that a beam search may give, one a line; any text
  renormalise: bool = False  # beam, with `allowed`: probabilities among the continuations that exist


@dataclass(frozen=True)
class Plan:
  """What the options mean for one model."""

  decoder: str
  options: GenerationOptions  # with `steps` and `block_size` set
  spec: ModelSpec  # with the alignment and MASK to use
  blocks: BlockOptions | None = None
  canvas: DecodeOptions | None = None
  cache: CanvasCache | None = None


def make_plan(options: GenerationOptions, spec: ModelSpec) -> Plan:
  """Checks the options against a model.

  Raises:
    ValueError: a value or a combination that cannot be; names the flag, and what it may be.
  """
  config = spec.config
  decoder = _choose_decoder(options, spec)
  _refuse_unread(options, decoder)
  if options.alignment is not None:
    with_flag("alignment", lambda: dataclasses.replace(config, alignment=options.alignment))
    spec = dataclasses.replace(spec, config=dataclasses.replace(config, alignment=options.alignment))
  if options.mask_id is not None:
    if not 0 <= options.mask_id < spec.vocab_size:
      raise ValueError(
        f"--mask_id is {options.mask_id}; it must be a token of this vocabulary, 0..{spec.vocab_size - 1}"
      )
    spec = dataclasses.replace(spec, mask_id=options.mask_id)
  if options.max_new_tokens < 1:
    raise ValueError(f"--max_new_tokens is {options.max_new_tokens}; it must be 1 or more")
  if options.cache not in CACHES[decoder]:
    raise ValueError(f"--cache of the {decoder} decoder is one of {', '.join(CACHES[decoder])}, not {options.cache!r}")
  if "" in options.stop:
    raise ValueError("--stop is empty; it must be a string of 1 character or more")
  for flag in ("temperature", "top_k", "top_p"):
    with_flag(flag, lambda flag=flag: make_sampling(**{flag: getattr(options, flag)}))
  if decoder == "beam":
    _check_beam(options, spec)
  if config.pattern == "causal":
    return Plan(decoder, options, spec)
  if spec.mask_id is None:
    raise ValueError("--mask_id is needed: the checkpoint's config.json names no mask_token_id")
  return (_plan_canvas if decoder == "canvas" else _plan_blocks)(options, spec)


def choose_policy(name: str | None, threshold: float | None) -> Policy:
  """The policy of --policy and --threshold.

  Raises:
    ValueError: naming the flag.
  """
  name = name or "confidence"
  if name not in POLICIES:
    raise ValueError(f"--policy is one of {', '.join(POLICIES)}, not {name!r}")
  if threshold is not None and name not in THRESHOLDS:
    raise ValueError(f"--threshold does not apply to --policy={name}; it applies to {', '.join(THRESHOLDS)}")
  tau = THRESHOLDS.get(name, 0.0) if threshold is None else threshold
  return with_flag("threshold", lambda: make_policy(name, tau))


def choose_schedule(name: str | None, length: int) -> Schedule:
  """The schedule of --schedule."""
  if name is not None and name not in SCHEDULES:
    raise ValueError(f"--schedule is one of {', '.join(SCHEDULES)}, not {name!r}")
  return make_schedule(name or "even", length)


def check_steps(steps: int, length: int, block_size: int) -> None:
  """Refuses steps that the blocks of a canvas do not divide."""
  if steps < 1:
    raise ValueError(f"--steps is {steps}; it must be 1 or more")
  if block_size < 0:
    raise ValueError(f"--block_size is {block_size}; it must be 0 (no blocks) or more")
  blocks = -(-length // (block_size or length))
  if steps % blocks:
    raise ValueError(f"--steps is {steps}; it must be a multiple of the {blocks} blocks (--block_size={block_size})")


def with_flag(flag: str, make) -> Any:
  """Calls `make`; a ValueError of its own gets the flag's name."""
  try:
    return make()
  except ValueError as error:
    raise ValueError(f"--{flag}: {error}") from None


# --- parts ---


def _choose_decoder(options: GenerationOptions, spec: ModelSpec) -> str:
  config = spec.config
  if config.head == "none":
    raise ValueError(f"--checkpoint: this {spec.family} model has no output head, so nothing can be decoded from it")
  fitting = DECODERS[config.pattern]
  if options.decoder is not None and options.decoder not in _READ:
    raise ValueError(f"--decoder is one of {', '.join(_READ)}, not {options.decoder!r}")
  if options.decoder not in (None, *fitting):
    raise ValueError(
      f"--decoder={options.decoder} does not fit this {spec.family} model, whose attention is {config.pattern}; "
      f"it may be {' or '.join(fitting)}"
    )
  return options.decoder or fitting[0]


def _refuse_unread(options: GenerationOptions, decoder: str) -> None:
  for field in dataclasses.fields(options):
    if field.name not in _READ[decoder] and getattr(options, field.name) != field.default:
      readers = [name for name, read in _READ.items() if field.name in read]
      raise ValueError(f"--{field.name} does not apply to the {decoder} decoder; it applies to {', '.join(readers)}")


def _check_beam(options: GenerationOptions, spec: ModelSpec) -> None:
  if options.width < 1:
    raise ValueError(f"--width is {options.width}; a beam search keeps 1 hypothesis or more")
  if options.allowed is None:
    if options.renormalise:
      raise ValueError("--renormalise needs --allowed: without it every token of the vocabulary may come next")
    return
  if spec.eos_id is None:
    raise ValueError(f"--allowed needs a model with an EOS to end a line with; this {spec.family} model names none")
  if options.max_new_tokens != GenerationOptions.max_new_tokens:
    raise ValueError("--max_new_tokens does not apply with --allowed, whose lines say how long an answer is")
  if not Path(options.allowed).is_file():
    raise FileNotFoundError(f"--allowed={options.allowed}: there is no such file (one allowed answer a line)")


def _plan_canvas(options: GenerationOptions, spec: ModelSpec) -> Plan:
  length, size = options.max_new_tokens, options.block_size or 0
  steps = length if options.steps is None else options.steps
  if options.steps is None and size > 0:
    steps = -(-length // size) * size  # as many for each block as it has positions
  check_steps(steps, length, size)
  cache = None
  if options.cache != "exact":
    if not size or length % size:
      raise ValueError(
        f"--block_size is {size}; with --cache={options.cache} it must divide the canvas, --max_new_tokens={length}"
      )
    if options.guidance:
      raise ValueError(f"--guidance needs --cache=exact: the {options.cache} cache keeps the keys of one prompt")
    cache = with_flag("refresh", lambda: CanvasCache(options.cache, options.refresh))
  elif options.refresh:
    raise ValueError("--refresh is about --cache=prefix and --cache=dual; the exact decoder keeps nothing")
  if not options.guidance >= 0:
    raise ValueError(f"--guidance is {options.guidance}; it must be 0 (none) or more")
  canvas = DecodeOptions(
    choose_policy(options.policy, options.threshold),
    int(spec.mask_id or 0),
    schedule=choose_schedule(options.schedule, size or length),
    block_length=size,
    **_remasking(options),
  )
  return Plan("canvas", dataclasses.replace(options, steps=steps, block_size=size), spec, canvas=canvas, cache=cache)


def _plan_blocks(options: GenerationOptions, spec: ModelSpec) -> Plan:
  size = spec.block_size if options.block_size is None else options.block_size
  if size < 1:
    raise ValueError(f"--block_size is {size}; it must be 1 or more")
  if options.sub_block < 0 or (options.sub_block and size % options.sub_block):
    raise ValueError(f"--sub_block is {options.sub_block}; it must divide --block_size={size}")
  if options.cache == "sub_block" and not options.sub_block:
    raise ValueError("--cache=sub_block needs --sub_block, the length of its windows")
  if options.shifted_first not in (None, "clean", "noisy"):
    raise ValueError(f"--shifted_first is one of clean, noisy, not {options.shifted_first!r}")
  shifted = spec.config.alignment == "shifted"
  if options.shifted_first is not None and not shifted:
    raise ValueError("--shifted_first is about shifted models; this one's alignment is same_position")
  first = options.shifted_first or ("noisy" if spec.family == "fast_dllm_v2" and shifted else "clean")
  if options.cache == "sub_block" and shifted and first == "clean":
    raise ValueError("--cache=sub_block of a shifted model needs --shifted_first=noisy (or use --cache=exact)")
  if options.remask and (options.cache != "exact" or first == "noisy"):
    raise ValueError("--remask of the block decoder needs --cache=exact and --shifted_first=clean")
  steps = size if options.steps is None else options.steps
  if steps < 1:
    raise ValueError(f"--steps is {steps}; it must be 1 or more (passes that a block may take)")
  blocks = BlockOptions(
    size,
    choose_policy(options.policy, options.threshold),
    int(spec.mask_id or 0),
    schedule=choose_schedule(options.schedule, size),
    sub_block=options.sub_block,
    shifted_first=first,
    window=options.cache,
    **_remasking(options),
  )
  return Plan("block", dataclasses.replace(options, steps=steps, block_size=size), spec, blocks=blocks)


def _remasking(options: GenerationOptions) -> dict[str, Any]:
  with_flag("remask", lambda: check_remasking("decode", options.remask, options.max_reopen, options.remask_by))
  return {name: getattr(options, name) for name in ("remask", "max_reopen", "remask_by")}
