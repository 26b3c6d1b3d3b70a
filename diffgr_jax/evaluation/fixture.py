"""A folder of recorded inputs and outputs of a reference implementation, and how an output of ours is compared."""

from collections.abc import Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

import numpy as np

from diffgr_jax.models.hf import ModelSpec
from diffgr_jax.models.hf_weights import load_hf
from diffgr_jax.models.transformer import Params

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


def case_inputs(fixture: Fixture, case: Mapping[str, Any], known: set[str]) -> dict[str, np.ndarray]:
  named = {role: name for role, name in case["inputs"].items() if name is not None}
  if unknown := sorted(set(named) - known):
    raise ValueError(f"case {case['name']} of {fixture.name} has the input {unknown[0]!r}; known: {', '.join(known)}")
  return {role: fixture.inputs[name] for role, name in named.items()}


def close(fixture: Fixture, name: str, ours: np.ndarray, expected: np.ndarray, note: str = "") -> Check:
  if ours.shape != expected.shape:
    return Check(fixture.name, name, MISS, np.inf, f"shape {ours.shape}, expected {expected.shape}")
  difference = float(np.max(np.abs(ours.astype(np.float64) - expected), initial=0.0))
  return Check(fixture.name, name, OK if difference <= ATOL else MISS, difference, note)


def equal_tokens(fixture: Fixture, name: str, ours: np.ndarray, expected: np.ndarray, note: str = "") -> Check:
  if ours.shape != expected.shape:
    return Check(fixture.name, name, MISS, np.inf, f"shape {ours.shape}, expected {expected.shape}")
  different = int((ours != expected).sum())
  return Check(fixture.name, name, MISS if different else OK, float(different), note or f"{ours.size} tokens")
