"""Recorded decodes of every family, run through our decoders: tokens, passes, and every intermediate canvas.

    qwen2, qwen3     autoregressive
    llada, Dream     the canvas decoder, with LLaDA's blocks and guidance and with Dream's shift and schedule
    sdar             the block decoder with its exact cache
    Fast-dLLM v2     the same, with its sub-blocks and its reading of a block's first position; its approximate cache
                     through `window="sub_block"`

Each decode runs step by step, since most recordings hold the canvases between.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from diffgr_jax.decoding.autoregressive import decode_autoregressive_steps
from diffgr_jax.decoding.block import decode_blocks_steps
from diffgr_jax.decoding.block_state import BlockOptions, BlockState
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas_steps
from diffgr_jax.decoding.denoiser import GuidedDenoiser, banned_tokens
from diffgr_jax.decoding.policies import Confidence, Dynamic, Entropy, Margin, Policy, Sequential, Threshold
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.schedules import BlockRemainder, EarlyRemainder, LinearTime, Schedule
from diffgr_jax.evaluation.fixture import NOT_RUN, Check, Fixture, case_inputs, close, equal_tokens
from diffgr_jax.models.denoiser import CanvasDenoiser


def check_decode(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  """Compares one recorded decode."""
  family = fixture.spec.family
  if family in _DECODERS:
    yield from _DECODERS[family](fixture, case)
  else:
    yield Check(fixture.name, case["name"], NOT_RUN, note=f"no decoder of the family {family} is compared here")


def _never(fixture: Fixture, *ids: int) -> np.ndarray:
  return np.asarray(banned_tokens(fixture.spec.config.vocab_size, fixture.spec.vocab_size, ids))


def _mask_id(fixture: Fixture) -> int:
  return int(fixture.inputs["mask_token_id"])


def _prompt(fixture: Fixture, case: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
  inputs = case_inputs(fixture, case, {"input_ids", "attention_mask"})
  tokens = inputs["input_ids"]
  return tokens, inputs.get("attention_mask", np.ones_like(tokens)).astype(bool)


# --- autoregressive ---


def _check_autoregressive(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  (tokens, valid), params = _prompt(fixture, case), case["params"]
  eos = params["eos_token_id"]
  *steps, (rows, last) = decode_autoregressive_steps(
    fixture.params,
    tokens,
    valid,
    np.zeros(len(tokens), np.int32),
    _never(fixture),
    config=fixture.spec.config,
    max_new_tokens=params["max_new_tokens"],
    pad_id=params["pad_token_id"],
    stops=() if eos is None else ((eos,),),
  )
  output = np.concatenate([tokens, np.asarray(rows.tokens)[:, : int(rows.step)]], axis=1)
  yield equal_tokens(fixture, case["name"], output, fixture.expected[case["expected"]])
  if "step_logits" in case:
    logits = np.stack([np.asarray(logits) for logits in [*(x for _, x in steps), last]], axis=1)
    yield close(fixture, f"{case['name']}.step_logits", logits, fixture.expected[case["step_logits"]])


# --- a canvas, bidirectional ---


def _check_canvas(
  fixture: Fixture, case: Mapping[str, Any], length: int, steps: int, policy: Policy, schedule: Schedule, **how: Any
) -> Iterator[Check]:
  (tokens, valid), mask_id = _prompt(fixture, case), _mask_id(fixture)
  pad_id = min(set(range(fixture.spec.vocab_size)) - {*tokens[valid].tolist(), mask_id})  # no prompt holds it
  prompt = np.where(valid, tokens, pad_id)
  denoise = CanvasDenoiser(fixture.spec.config, pad_id)
  if guidance := how.get("cfg_scale"):
    denoise = GuidedDenoiser(denoise, guidance, mask_id, pad_id)
  states = decode_canvas_steps(
    fixture.params,
    prompt,
    np.full((len(prompt), length), mask_id, np.int32),
    np.zeros(len(prompt), np.int32),
    _never(fixture),
    denoise=denoise,
    options=DecodeOptions(policy, mask_id, schedule=schedule, block_length=how.get("block_length", 0)),
    steps=steps,
  )
  history = np.stack([np.concatenate([tokens, np.asarray(state.canvas)], axis=1) for state, _ in states])
  yield equal_tokens(fixture, case["name"], history[-1], fixture.expected[case["expected"]])
  if "history" in case:
    yield equal_tokens(fixture, f"{case['name']}.history", history, fixture.expected[case["history"]])


def _check_llada(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  params = case["params"]
  how = {name: params[name] for name in ("block_length", "cfg_scale")}
  yield from _check_canvas(fixture, case, params["gen_length"], params["steps"], Confidence(), EarlyRemainder(), **how)


def _check_dream(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  params = case["params"]
  policy = {"maskgit_plus": Confidence(), "topk_margin": Margin(), "entropy": Entropy()}[params["alg"]]
  schedule = LinearTime(params["eps"])
  yield from _check_canvas(fixture, case, params["max_new_tokens"], params["steps"], policy, schedule)


# --- blocks ---


def _run_blocks(
  fixture: Fixture, tokens: np.ndarray, options: BlockOptions, max_new_tokens: int, **how: Any
) -> tuple[list[BlockState], np.ndarray]:
  """All states, and their canvases without the padding. Shapes are rounded up, so that cases share programs."""
  size, up = options.block_size, lambda n, multiple: -(-n // multiple) * multiple
  blocks = -(-(tokens.shape[1] % size + max_new_tokens) // size)
  states = decode_blocks_steps(
    fixture.params,
    tokens,
    np.ones(tokens.shape, bool),
    np.zeros(len(tokens), np.int32),
    _never(fixture),
    config=fixture.spec.config,
    options=options,
    max_new_tokens=max_new_tokens,
    context=up(tokens.shape[1] // size * size, 16),
    blocks=up(blocks, 3 if size == 8 else 5),
    **how,
  )
  states = [state for state, _ in states]
  begin, width = int(states[0].first[0]), tokens.shape[1] // size * size + blocks * size
  return states, np.concatenate([np.asarray(state.canvas)[:, begin : begin + width] for state in states])


def _check_sdar(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  (tokens, _), params, expected = _prompt(fixture, case), case["params"], fixture.expected
  policies = {
    "sequential": Sequential(),
    "low_confidence_static": Confidence(),
    "low_confidence_dynamic": Dynamic(params.get("confidence_threshold", 1.0)),
  }
  one_token_left = "top_k=1" in params["sampling"]  # the policy then sees confidence 1 everywhere
  options = BlockOptions(
    params["block_length"],
    policies[params["remasking_strategy"]],
    _mask_id(fixture),
    schedule=BlockRemainder(params["block_length"]),
    stop_check="block",
    judge="filtered" if one_token_left else "model",
  )
  states, history = _run_blocks(
    fixture,
    tokens,
    options,
    max_new_tokens=expected[case["expected"]].shape[1] - tokens.shape[1],  # whole blocks, nothing is cut
    steps=params["denoising_steps"],
    sampling=make_sampling(top_k=1) if one_token_left else None,
    stops=[(stop,) for stop in params.get("stopping_criteria_idx") or ()],
  )
  yield equal_tokens(fixture, case["name"], history[-1:], expected[case["expected"]])
  yield equal_tokens(fixture, f"{case['name']}.history", history, expected[case["history"]])
  yield equal_tokens(fixture, f"{case['name']}.nfe", np.asarray(states[-1].forwards[0]), expected[case["nfe"]])


def _check_fast_dllm(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  (tokens, _), params, expected = _prompt(fixture, case), case["params"], fixture.expected
  size = params["block_size"]
  options = BlockOptions(
    size,
    Threshold(params["threshold"]),
    _mask_id(fixture),
    sub_block=params["small_block_size"],
    shifted_first="noisy",
    window="sub_block" if params["use_block_cache"] else "exact",
  )
  rounds, context = params["max_new_tokens"] // size, tokens.shape[1] // size * size
  states, history = _run_blocks(
    fixture,
    tokens,
    options,
    max_new_tokens=context
    + rounds * size
    + 1
    - tokens.shape[1],  # whole blocks, and the token that the last one writes
    stops=[(params["stop_token"],)],
  )
  output = history[-1:, : expected[case["expected"]].shape[1]]
  yield equal_tokens(fixture, case["name"], output, expected[case["expected"]])
  yield equal_tokens(fixture, f"{case['name']}.nfe", np.asarray(states[-1].forwards[0]), expected[case["nfe"]])
  if not params["use_block_cache"]:  # with it, only some of the passes are recorded
    passes = [i for i in range(1, len(states)) if states[i].forwards[0] > states[i - 1].forwards[0]]
    begins = np.array([context + size * int(states[i].block) for i in passes])
    blocks = np.stack([history[i - 1, begin : begin + size] for i, begin in zip(passes, begins, strict=True)])
    yield equal_tokens(fixture, f"{case['name']}.history_start", begins, expected[case["history_start"]])
    yield equal_tokens(fixture, f"{case['name']}.history_block", blocks, expected[case["history_block"]])


_DECODERS: dict[str, Callable[[Fixture, Mapping[str, Any]], Iterator[Check]]] = {
  "qwen2": _check_autoregressive,
  "qwen3": _check_autoregressive,
  "llada": _check_llada,
  "dream": _check_dream,
  "sdar": _check_sdar,
  "fast_dllm_v2": _check_fast_dllm,
}
