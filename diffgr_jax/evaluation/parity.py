"""Does our model compute what a reference computed? Compares a folder of recorded inputs and outputs, case by case.

    FOLDER/config.json, model.safetensors   the weights, in Hugging Face's layout
          /cases.json                       which inputs and parameters give which expected arrays
          /inputs.npz, expected.npz         the arrays

Weights are cast to float32 and matmuls run at the highest precision, whatever the machine. A recorded attention mask is
never fed in: our own pattern must reproduce it exactly. Decodes must agree token for token; those whose decoder is not
wired up here are reported as "not run", never as passed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from diffgr_jax.decoding.greedy import decode_autoregressive, decode_llada
from diffgr_jax.models.attention import Layout, attention_mask
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.encoder import mean_pool, unit_length
from diffgr_jax.models.hf import ModelSpec
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import Params, bind

ATOL = 2e-4  # float32 logits; the reference's own error against float64 is about 2e-5
OK, MISS, NOT_RUN = "ok", "MISS", "not run"


@dataclass(frozen=True)
class Check:
  """One comparison. `difference` is the largest absolute one, or the number of different tokens or mask entries."""

  folder: str
  name: str
  status: str
  difference: float = 0.0
  note: str = ""

  def line(self) -> str:
    number = "" if self.status == NOT_RUN else f"{self.difference:.2g}"
    return f"{self.folder:<24} {self.name:<44} {self.status:<8} {number:>8}  {self.note}".rstrip()


@dataclass(frozen=True)
class Fixture:
  """A folder, read."""

  name: str
  spec: ModelSpec
  params: Params
  inputs: Mapping[str, np.ndarray]
  expected: Mapping[str, np.ndarray]
  cases: list[dict[str, Any]]


def read_fixture(folder: Path) -> Fixture:
  """Reads weights (as float32) and recordings.

  Raises:
    FileNotFoundError: one of the files is missing.
  """
  for name in ("cases.json", "inputs.npz", "expected.npz"):
    if not (folder / name).exists():
      raise FileNotFoundError(f"{folder}: has no {name}; a folder to check holds cases.json, inputs.npz, expected.npz")
  spec, params = load_hf(folder, param_dtype="float32")
  inputs, expected = (dict(np.load(folder / name, allow_pickle=False)) for name in ("inputs.npz", "expected.npz"))
  return Fixture(folder.name, spec, params, inputs, expected, json.loads((folder / "cases.json").read_text()))


def fixture_folders(folder: str | Path) -> list[Path]:
  """The folder itself if it holds recordings, else those inside it that do.

  Raises:
    FileNotFoundError: there are none.
  """
  folder = Path(folder)
  if (folder / "cases.json").exists():
    return [folder]
  folders = sorted(path.parent for path in folder.glob("*/cases.json"))
  if not folders:
    raise FileNotFoundError(f"{folder}: neither it nor a folder in it holds a cases.json")
  return folders


def check_folder(folder: str | Path) -> Iterator[Check]:
  """All comparisons of one folder, as they are made.

  Raises:
    ValueError: the weights do not load, or a case is of an unknown kind.
  """
  fixture = read_fixture(Path(folder))
  kinds = {"logits": _check_logits, "encoder": _check_encoder, "two_stream": _check_two_stream, "decode": _check_decode}
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


def _layout(tokens: np.ndarray, valid: np.ndarray | None, position: np.ndarray | None, noisy=None) -> Layout:
  valid = np.ones(tokens.shape, bool) if valid is None else valid.astype(bool)
  if position is None:
    position = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  noisy = np.zeros(tokens.shape, bool) if noisy is None else noisy
  return Layout(jnp.asarray(position, jnp.int32), jnp.asarray(valid, jnp.int32), jnp.asarray(noisy))


def _case_inputs(fixture: Fixture, case: Mapping[str, Any], known: set[str]) -> dict[str, np.ndarray]:
  named = {role: name for role, name in case["inputs"].items() if name is not None}
  if unknown := sorted(set(named) - known):
    raise ValueError(f"case {case['name']} of {fixture.name} has the input {unknown[0]!r}; known: {', '.join(known)}")
  return {role: fixture.inputs[name] for role, name in named.items()}


def _run(fixture: Fixture, case: Mapping[str, Any]):
  """Tokens, validity, our hidden states and logits, and the check of a recorded mask, of a logits or encoder case."""
  known = {"input_ids", "attention_mask", "position_ids", "attention_mask_2d", "token_type_ids"}
  inputs = _case_inputs(fixture, case, known)
  tokens = inputs["input_ids"]
  layout = _layout(tokens, inputs.get("attention_mask"), inputs.get("position_ids"))
  block_size = case.get("params", {}).get("block_size", 1)
  pattern = "block_causal" if "attention_mask_2d" in inputs else fixture.spec.config.pattern
  masks = _check_mask(fixture, case, inputs.get("attention_mask_2d"), pattern, layout, block_size)
  types = inputs.get("token_type_ids", np.zeros_like(tokens))
  hidden, logits = _forward(fixture.params, tokens, layout, types, fixture.spec.config, pattern, block_size)
  valid = np.asarray(layout.segment, bool) if case.get("valid") == "attention_mask==1" else np.ones(tokens.shape, bool)
  return tokens, valid, np.asarray(hidden), None if logits is None else np.asarray(logits), masks


def _close(fixture: Fixture, name: str, ours: np.ndarray, expected: np.ndarray, note: str = "") -> Check:
  if ours.shape != expected.shape:
    return Check(fixture.name, name, MISS, np.inf, f"shape {ours.shape}, expected {expected.shape}")
  difference = float(np.max(np.abs(ours.astype(np.float64) - expected), initial=0.0))
  return Check(fixture.name, name, OK if difference <= ATOL else MISS, difference, note)


def _equal_tokens(fixture: Fixture, name: str, ours: np.ndarray, expected: np.ndarray, note: str = "") -> Check:
  if ours.shape != expected.shape:
    return Check(fixture.name, name, MISS, np.inf, f"shape {ours.shape}, expected {expected.shape}")
  different = int((ours != expected).sum())
  return Check(fixture.name, name, MISS if different else OK, float(different), note or f"{ours.size} tokens")


def _check_mask(fixture, case, recorded, pattern: str, layout: Layout, block_size: int) -> list[Check]:
  if recorded is None:
    return []
  ours = np.asarray(attention_mask(pattern, layout, layout, block_size))
  recorded = np.broadcast_to(recorded, ours.shape)
  return [_equal_tokens(fixture, f"{case['name']}.mask", ours, recorded, f"{pattern}, blocks of {block_size}")]


def _check_logits(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  tokens, valid, hidden, logits, masks = _run(fixture, case)
  yield from masks
  name, rows = case["name"], f"{int(valid.sum())} of {valid.size} rows"
  if logits is None:
    yield Check(fixture.name, name, MISS, np.inf, "the model has no output head")
    return
  yield _close(fixture, name, logits[valid], fixture.expected[case["expected"]][valid], rows)
  if "hidden" in case:
    yield _close(fixture, f"{name}.hidden", hidden[:, 0], fixture.expected[case["hidden"]])
  if "last_hidden_state" in case:
    recorded = fixture.expected[case["last_hidden_state"]]
    yield _close(fixture, f"{name}.last_hidden_state", hidden[-1][valid], recorded[valid], rows)
  if name == "logits" and "token_logprobs" in fixture.expected:
    ours = _log_probability(logits[:, :-1], tokens[:, 1:])
    yield _close(fixture, f"{name}.token_logprobs", ours, fixture.expected["token_logprobs"])


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
      yield _close(fixture, name, hidden[-1][valid], recorded[valid], f"{int(valid.sum())} of {valid.size} rows")
    else:
      yield _close(fixture, name, ours[output], recorded)
  if "hidden" in case:
    shown = valid[0]
    yield _close(fixture, f"{case['name']}.hidden", hidden[:, 0, shown], fixture.expected[case["hidden"]][:, shown])


def _check_two_stream(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  inputs = _case_inputs(fixture, case, {"x_t", "x_0", "position_ids", "attention_mask_2d"})
  noised, clean, block_size = inputs["x_t"], inputs["x_0"], case["params"]["block_size"]
  tokens, length = np.concatenate([noised, clean], axis=1), clean.shape[1]
  noisy = np.broadcast_to(np.arange(2 * length) < length, tokens.shape)
  layout = _layout(tokens, None, inputs["position_ids"], noisy)
  yield from _check_mask(fixture, case, inputs["attention_mask_2d"], "two_stream", layout, block_size)
  types, config = np.zeros_like(tokens), fixture.spec.config
  logits = np.asarray(_forward(fixture.params, tokens, layout, types, config, "two_stream", block_size)[1])
  for output, array in case["expected"].items():
    if output == "nll_at_masked":
      masked = noised == fixture.inputs["mask_token_id"]
      ours = np.where(masked, -_log_probability(logits[:, :length], clean), 0.0)
    else:
      ours = {"x_t": logits[:, :length], "x_0": logits[:, length:]}[output]
    yield _close(fixture, f"{case['name']}.{output}", ours, fixture.expected[array])


# --- decodes ---


def _check_autoregressive(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  inputs, params = _case_inputs(fixture, case, {"input_ids", "attention_mask"}), case["params"]
  output, logits = decode_autoregressive(
    fixture.params,
    fixture.spec.config,
    inputs["input_ids"],
    inputs["attention_mask"].astype(bool),
    max_new_tokens=params["max_new_tokens"],
    pad_id=params["pad_token_id"],
    eos_id=params["eos_token_id"],
    vocab_size=fixture.spec.vocab_size,
  )
  yield _equal_tokens(fixture, case["name"], output, fixture.expected[case["expected"]])
  if "step_logits" in case:
    recorded = fixture.expected[case["step_logits"]]
    yield _close(fixture, f"{case['name']}.step_logits", logits.swapaxes(0, 1), recorded)


def _check_llada(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  inputs, params = _case_inputs(fixture, case, {"input_ids", "attention_mask"}), case["params"]
  tokens = inputs["input_ids"]
  history = decode_llada(
    fixture.params,
    fixture.spec.config,
    tokens,
    inputs.get("attention_mask", np.ones_like(tokens)).astype(bool),
    mask_id=int(fixture.inputs["mask_token_id"]),
    gen_length=params["gen_length"],
    block_length=params["block_length"],
    steps=params["steps"],
    cfg_scale=params["cfg_scale"],
    vocab_size=fixture.spec.vocab_size,
  )
  yield _equal_tokens(fixture, case["name"], history[-1], fixture.expected[case["expected"]])
  if "history" in case:
    yield _equal_tokens(fixture, f"{case['name']}.history", history, fixture.expected[case["history"]])


_DECODERS: dict[str, Callable[[Fixture, Mapping[str, Any]], Iterator[Check]]] = {
  "qwen2": _check_autoregressive,
  "qwen3": _check_autoregressive,
  "llada": _check_llada,
}


def _check_decode(fixture: Fixture, case: Mapping[str, Any]) -> Iterator[Check]:
  family = fixture.spec.family
  if family in _DECODERS:
    yield from _DECODERS[family](fixture, case)
  else:
    yield Check(fixture.name, case["name"], NOT_RUN, note=f"no decoder of the family {family} is compared here yet")
