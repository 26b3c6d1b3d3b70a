"""What a compiled program sends between devices, read off its HLO text.

    %ag = bf16[32,4096]{1,0} all-gather(%x), replica_groups=[16,16]<=[256], ...     kind, bytes, groups
    while(...), condition=%c, body=%layer     c: counter < 32                       what is in the body counts 32 times

Groups are compared with the mesh: devices of one group that differ in the coordinate of an axis talk over that axis. A
loop whose trip count the compiler does not know (a decoding loop) counts once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import itertools
import math
import re

import numpy as np

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_DTYPE_BITS = re.compile(r"(pred|[a-z]+?)(\d*)(?:e\d+m\d+\w*)?$")
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|called_computations)=\{?([^\s{}]*(?:, ?%[\w.\-]+)*)\}?"
)
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_LIMIT = re.compile(r"ROOT \S+ = pred\[\]\S* compare\([^,()]*, (?:[su]\d+\[\]\S* )?%?([\w.\-]+)\), direction=LT")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")  # 'name', or 'name':(devices before)size for a part of it
_LISTED = re.compile(r"replica_groups=\{\{([\d,{} ]*)\}\}")
_PAIRS = re.compile(r"source_target_pairs=\{\{([\d,{} ]*)\}\}")


@dataclass(frozen=True)
class Collective:
  """All collectives of one kind over the same mesh axes."""

  kind: str
  axes: tuple[str, ...]
  count: int  # executions, loops multiplied out
  bytes: int  # that one device sends, in all of them


def collectives(text: str, mesh_shape: Mapping[str, int]) -> list[Collective]:
  """Sums the collectives of a partitioned program by kind and mesh axes, the largest first.

  Args:
    text: HLO, after partitioning.
    mesh_shape: size of every axis, in the order of the mesh.
  """
  computations, entry = _computations(text)
  totals: dict[tuple[str, tuple[str, ...]], list[int]] = {}
  for line, times in _executed(computations, entry):
    result, operation, rest = line
    kind = operation.removesuffix("-start")
    if kind not in KINDS:
      continue
    axes, size = _group(rest, kind, mesh_shape)
    if size > 1:
      total = totals.setdefault((kind, axes), [0, 0])
      total[0] += times
      total[1] += times * _sent(kind, _payload(result, operation, kind), size)
  found = [Collective(kind, axes, count, sent) for (kind, axes), (count, sent) in totals.items()]
  return sorted(found, key=lambda one: -one.bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  found: dict[str, list[str]] = {}
  entry, lines = "", []
  for line in text.splitlines():
    if not line.startswith(" ") and (header := _COMPUTATION.match(line)):
      lines = found.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith(" "):
      lines.append(line)
  return found, entry


def _executed(computations: dict[str, list[str]], entry: str) -> Iterator[tuple[tuple[str, str, str], int]]:
  """Every instruction that runs, as (result, operation, rest of the line), with how often."""
  times = {entry: 1}
  for name in _callers_first(computations, entry):
    for line in computations[name]:
      if not (instruction := _INSTRUCTION.match(line)):
        continue
      result, operation, rest = instruction.groups()
      yield (result, operation, rest), times[name]
      trips = _trips(operation, rest, computations)
      for called in _called(operation, rest):
        times[called] = times.get(called, 0) + times[name] * trips


def _trips(operation: str, rest: str, computations: dict[str, list[str]]) -> int:
  """How often the body of a loop runs: as the compiler says, or as its condition does where it counts up to a constant.

  A scan begins at 0 and adds 1. The TPU's compiler leaves only the condition: ROOT compare(counter, constant), LT.
  """
  if operation != "while":
    return 1
  if found := _TRIPS.search(rest):
    return int(found[1])
  name = _CONDITION.search(rest)
  lines = "\n".join(computations.get(name[1], [])) if name else ""
  limit = _LIMIT.search(lines)
  constant = re.search(rf"%?{re.escape(limit[1])} = [su]\d+\[\]\S* constant\((\d+)\)", lines) if limit else None
  return int(constant[1]) if constant else 1


def _called(operation: str, rest: str) -> list[str]:
  if operation.endswith(("-update", "-done")):  # of an asynchronous operation: its start was counted
    return []
  return [name.strip().lstrip("%") for names in _CALLED.findall(rest) for name in names.split(",") if name.strip()]


def _callers_first(computations: dict[str, list[str]], entry: str) -> list[str]:
  """Computations in an order in which every caller stands before what it calls."""
  order, seen = [], set()

  def visit(name: str) -> None:
    seen.add(name)
    for line in computations.get(name, ()):
      if instruction := _INSTRUCTION.match(line):
        for called in _called(instruction[2], instruction[3]):
          if called not in seen and called in computations:
            visit(called)
    order.append(name)

  visit(entry)
  return order[::-1]


def _bytes(shapes: str) -> list[int]:
  sizes = []
  for dtype, dimensions in _SHAPE.findall(shapes):
    bits = _DTYPE_BITS.match(dtype)
    if bits is None or dtype == "token":
      continue
    width = 8 if bits[1] == "pred" else int(bits[2] or 8)
    sizes.append(math.prod(int(n) for n in dimensions.split(",") if n) * width // 8)
  return sizes


def _payload(result: str, operation: str, kind: str) -> int:
  """Bytes of the result. An asynchronous gather or permute returns (operands, results, ...)."""
  sizes = _bytes(result)
  if operation.endswith("-start") and kind in ("all-gather", "collective-permute", "reduce-scatter", "all-to-all"):
    large = [size for size in sizes if size > 8]  # contexts are a few bytes
    half = len(large) // 2
    return sum(large[half:]) if half else sum(large)
  return sum(sizes)


def _sent(kind: str, result_bytes: int, size: int) -> int:
  """Bytes that one device of a ring of `size` sends."""
  others = size - 1
  return {
    "all-gather": result_bytes * others // size,
    "reduce-scatter": result_bytes * others,
    "all-reduce": 2 * result_bytes * others // size,
    "all-to-all": result_bytes * others // size,
    "collective-permute": result_bytes,
  }[kind]


def _group(rest: str, kind: str, mesh_shape: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
  """The mesh axes that a collective runs over, and the devices of a group."""
  shape = tuple(mesh_shape.values())
  groups = _pairs(rest) if kind == "collective-permute" else _groups(rest, math.prod(shape))
  differs = np.zeros(len(shape), bool)
  for group in groups:
    coordinates = np.stack(np.unravel_index(group, shape))
    differs |= (coordinates != coordinates[:, :1]).any(axis=1)
  axes = tuple(axis for axis, one in zip(mesh_shape, differs, strict=True) if one)
  return axes, max((len(group) for group in groups), default=1)


def _pairs(rest: str) -> list[np.ndarray]:
  found = _PAIRS.search(rest)
  pairs = [np.array(pair.split(","), int) for pair in found[1].split("},{")] if found else []
  return [pair for pair in pairs if pair[0] != pair[1]]


def _groups(rest: str, devices: int) -> list[np.ndarray]:
  """The groups of a collective, in the three forms that HLO writes them; without any, all devices are one group."""
  if found := _NAMED.search(rest):
    return _named_groups(*found.groups())
  if found := _IOTA.search(rest):
    return list(_iota(found[2], found[3]).reshape(_numbers(found[1])))
  if found := _LISTED.search(rest):
    return [np.array(group.split(","), int) for group in found[1].split("},{")]
  return [np.arange(devices)]


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _iota(dimensions: str, transposed: str | None) -> np.ndarray:
  ids = np.arange(math.prod(_numbers(dimensions))).reshape(_numbers(dimensions))
  return ids.transpose(_numbers(transposed)) if transposed else ids


def _named_groups(axes: str, dimensions: str | None, transposed: str | None, over: str) -> list[np.ndarray]:
  """mesh['a'=2,'b'=4] {'b'}: the devices that differ along b, or along a part of it."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  cuts = {name: {1, size} for name, size in sizes.items()}
  wanted = [(name, int(before or 1), int(size or sizes[name])) for name, before, size in _AXIS.findall(over)]
  for name, before, size in wanted:
    cuts[name] |= {before, before * size}
  shape, chosen = [], []
  for name in sizes:
    steps = sorted(cuts[name])
    for before, after in itertools.pairwise(steps):
      inside = any(one == name and start <= before and after <= start * size for one, start, size in wanted)
      chosen += [len(shape)] if inside else []
      shape.append(after // before)
  ids = _iota(dimensions, transposed) if dimensions else np.arange(math.prod(sizes.values()))
  ids = np.moveaxis(ids.reshape(shape), chosen, range(-len(chosen), 0))
  return list(ids.reshape(-1, math.prod(shape[one] for one in chosen)))
