"""Does our model compute what a reference computed? Compares a folder of recorded inputs and outputs, case by case.

    FOLDER/config.json, model.safetensors   the weights, in Hugging Face's layout
          /cases.json                       which inputs and parameters give which expected arrays
          /inputs.npz, expected.npz         the arrays

Weights are cast to float32 and matmuls run at the highest precision, whatever the machine. A recorded attention mask is
never fed in: our own pattern must reproduce it exactly. Decodes (parity_decode.py) must agree token for token. What is
not compared is reported as "not run", never as passed.
"""

from collections.abc import Iterator, Mapping
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from diffgr_jax.evaluation.fixture import (
  MISS,
  NOT_RUN,
  Check,
  Fixture,
  case_inputs,
  close,
  equal_tokens,
  read_fixture,
)
from diffgr_jax.evaluation.parity_decode import check_decode
from diffgr_jax.models.attention import Layout, attention_mask
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.encoder import mean_pool, unit_length
from diffgr_jax.models.transformer import Params, bind


def check_folder(folder: str | Path) -> Iterator[Check]:
  """All comparisons of one folder, as they are made.

  Raises:
    ValueError: the weights do not load, or a case is of an unknown kind.
  """
  fixture = read_fixture(Path(folder))
  kinds = {"logits": _check_logits, "encoder": _check_encoder, "two_stream": _check_two_stream, "decode": check_decode}
  with jax.default_matmul_precision("highest"):
    for case in fixture.cases:
      if case["kind"] not in kinds:
        raise ValueError(
          f"{folder}/cases.json: case {case['name']} has kind {case['kind']!r}; known: {', '.join(kinds)}"
        )
      yield from kinds[case["kind"]](fixture, case)


# --- forward passes ---


@functools.partial(jax.jit, static_argnames=("config", "pattern", "block_size"))
def _forward(
  params: Params,
  tokens: Int[Array, "B T"],
  layout: Layout,
  token_types: Int[Array, "B T"],
  config: TransformerConfig,
  pattern: str,
  block_size: int,
) -> tuple[Float[Array, "M B T D"], Float[Array, "B T V"] | None]:
  model = bind(config, params)
  hidden = model.hidden_states(tokens, layout, pattern=pattern, block_size=block_size, token_types=token_types)
  return hidden, None if config.head == "none" else model.logits(hidden[-1])


def _layout(tokens: np.ndarray, valid: np.ndarray | None, position: np.ndarray | None, stream=None) -> Layout:
  valid = np.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
  if position is None:
    position = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  stream = np.zeros(tokens.shape, np.int32) if stream is None else stream
  return Layout(jnp.asarray(position, jnp.int32), jnp.asarray(valid, jnp.int32), jnp.asarray(stream, jnp.int32))


def _run(fixture: Fixture, case: Mapping[str, Any]):
  """Tokens, validity, our hidden states and logits, and the check of a recorded mask, of a logits or encoder case."""
  known = {"input_ids", "attention_mask", "position_ids", "attention_mask_2d", "token_type_ids"}
  inputs = case_inputs(fixture, case, known)
  tokens = inputs["input_ids"]
  layout = _layout(tokens, inputs.get("attention_mask"), inputs.get("position_ids"))
  block_size = case.get("params", {}).get("block_size", 1)
  pattern = "block_causal" if "attention_mask_2d" in inputs else fixture.spec.config.pattern
  masks = _check_mask(fixture, case, inputs.get("attention_mask_2d"), pattern, layout, block_size)
  types = inputs.get("token_type_ids", np.zeros_like(tokens))
  hidden, logits = _forward(fixture.params, tokens, layout, types, fixture.spec.config, pattern, block_size)
  valid = np.asarray(layout.segment, bool) if case.get("valid") == "attention_mask==1" else np.ones(tokens.shape, bool)
  return tokens, valid, np.asarray(hidden), None if logits is None else np.asarray(logits), masks


def _check_mask(fixture, case, recorded, pattern: str, layout: Layout, block_size: int) -> list[Check]:
  if recorded is None:
    return []
  ours = np.asarray(attention_mask(pattern, layout, layout, block_size))
  recorded = np.broadcast_to(recorded, ours.shape)
  return [equal_tokens(fixture, f"{case['name']}.mask", ours, recorded, f"{pattern}, blocks of {block_size}")]


def _check_logits(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  tokens, valid, hidden, logits, masks = _run(fixture, case)
  yield from masks
  name, rows = case["name"], f"{int(valid.sum())} of {valid.size} rows"
  if logits is None:
    yield Check(fixture.name, name, MISS, np.inf, "the model has no output head")
    return
  yield close(fixture, name, logits[valid], fixture.expected[case["expected"]][valid], rows)
  if "hidden" in case:
    yield close(fixture, f"{name}.hidden", hidden[:, 0], fixture.expected[case["hidden"]])
  if "last_hidden_state" in case:
    recorded = fixture.expected[case["last_hidden_state"]]
    yield close(fixture, f"{name}.last_hidden_state", hidden[-1][valid], recorded[valid], rows)
  if name == "logits" and "token_logprobs" in fixture.expected:
    ours = _log_probability(logits[:, :-1], tokens[:, 1:])
    yield close(fixture, f"{name}.token_logprobs", ours, fixture.expected["token_logprobs"])


def _log_probability(logits: Float[np.ndarray, "B T V"], tokens: Int[np.ndarray, "B T"]) -> Float[np.ndarray, "B T"]:
  return np.asarray(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0])


def _check_encoder(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  _, valid, hidden, _, _ = _run(fixture, case)
  pooled = mean_pool(jnp.asarray(hidden[-1]), jnp.asarray(valid))
  ours = {
    "last_hidden_state": hidden[-1] * valid[..., None],
    "mean_pooled": np.asarray(pooled),
    "sentence_embedding": np.asarray(unit_length(pooled)),
  }
  for output, array in case["expected"].items():
    name, recorded = f"{case['name']}.{output}", fixture.expected[array]
    if output not in ours:
      yield Check(fixture.name, name, NOT_RUN, note="not a part of our model; its weights are kept aside")
    elif output == "last_hidden_state":
      yield close(fixture, name, hidden[-1][valid], recorded[valid], f"{int(valid.sum())} of {valid.size} rows")
    else:
      yield close(fixture, name, ours[output], recorded)
  if "hidden" in case:
    shown = valid[0]
    yield close(fixture, f"{case['name']}.hidden", hidden[:, 0, shown], fixture.expected[case["hidden"]][:, shown])


def _check_two_stream(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  inputs = case_inputs(fixture, case, {"x_t", "x_0", "position_ids", "attention_mask_2d"})
  noised, clean, block_size = inputs["x_t"], inputs["x_0"], case["params"]["block_size"]
  tokens, length = np.concatenate([noised, clean], axis=1), clean.shape[1]
  stream = np.broadcast_to(np.arange(2 * length) < length, tokens.shape)
  layout = _layout(tokens, None, inputs["position_ids"], stream)
  yield from _check_mask(fixture, case, inputs["attention_mask_2d"], "two_stream", layout, block_size)
  types, config = np.zeros_like(tokens), fixture.spec.config
  logits = np.asarray(_forward(fixture.params, tokens, layout, types, config, "two_stream", block_size)[1])
  for output, array in case["expected"].items():
    if output == "nll_at_masked":
      masked = noised == fixture.inputs["mask_token_id"]
      ours = np.where(masked, -_log_probability(logits[:, :length], clean), 0.0)
    else:
      ours = {"x_t": logits[:, :length], "x_0": logits[:, length:]}[output]
    yield close(fixture, f"{case['name']}.{output}", ours, fixture.expected[array])
