"""Makes the figures of the documents anew, and says how far they are from the recorded ones.

    python -m benchmarks.reproduce --table=pydocs     runs its commands, then compares; `make reproduce TABLE=pydocs`
    python -m benchmarks.reproduce --compare=pydocs   compares a run that is there already
    python -m benchmarks.reproduce --page             writes REPRODUCE.md

A table is a record under results/, which README.md and docs/ quote (a test holds them to it).
"""

from collections.abc import Iterator
import json
import os
from pathlib import Path
import shlex
import subprocess
import sys

from absl import flags

from benchmarks.recipes import RECIPES, Recipe
from diffgr_jax import cli

_TABLE = flags.DEFINE_string("table", "", "which table is made anew, of those in REPRODUCE.md")
_COMPARE = flags.DEFINE_string("compare", "", "which table is compared with what its commands have left")
_PAGE = flags.DEFINE_bool("page", False, "write REPRODUCE.md")
_DATA = flags.DEFINE_string("data", "../shared/data", "where gqwiki, amazon_beauty, cranfield and msmarco_dl lie")

ROOT = Path(__file__).resolve().parents[1]


def main(_) -> int:
  if _PAGE.value:
    (ROOT / "REPRODUCE.md").write_text(page())
    print("wrote REPRODUCE.md")
    return 0
  name = _TABLE.value or _COMPARE.value
  if name not in RECIPES:
    raise ValueError(f"--table={name}: one of {', '.join(RECIPES)}")
  recipe = RECIPES[name]
  if _TABLE.value:
    print(f"{name}: about {recipe.minutes} minutes on {recipe.machine}")
    for command in recipe.commands:
      run(command.format(data=_DATA.value))
  if not recipe.figures:
    return 0
  lines = list(compare(recipe, ROOT / "results" / f"{name}.json", ROOT / recipe.makes))
  print("\n".join(text for text, _ in lines))
  return int(not all(within for _, within in lines))


def run(command: str) -> None:
  """Runs a command with this Python.

  Raises:
    RuntimeError: it failed.
  """
  print(f"$ {command}", flush=True)
  words = shlex.split(command)
  if words[0] == "python":
    words[0] = sys.executable
  elif words[0] == "pip":
    words = [sys.executable, "-m", *words]
  paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
  done = subprocess.run(words, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths})
  if done.returncode:
    raise RuntimeError(f"{command} ended with {done.returncode}")


def compare(recipe: Recipe, recorded: Path, made: Path) -> Iterator[tuple[str, bool]]:
  """A line for every figure, and whether it is within the tolerance.

  Raises:
    FileNotFoundError: the commands have not been run.
  """
  if not made.exists():
    raise FileNotFoundError(f"{made} is not there: run its commands first (--table)")
  old, new = (json.loads(path.read_text())["metrics"] for path in (recorded, made))
  for split, method, measure in recipe.figures:
    was, now = old[split][method][measure], new[split][method][measure]
    off = abs(now - was) / (abs(was) if recipe.relative else 1.0)
    within = off <= recipe.tolerance
    says = "as recorded" if within else f"MORE THAN {tolerance_of(recipe)} OFF"
    yield f"{split} | {method} | {measure}: {now:.4g}, recorded {was:.4g}: {says}", within


def tolerance_of(recipe: Recipe) -> str:
  return f"{recipe.tolerance:.0%}" if recipe.relative else f"{recipe.tolerance:g}"


def page() -> str:
  """REPRODUCE.md."""
  head, tail = (ROOT / "docs" / "reproduce_text.md").read_text().split("<!-- tables -->\n")
  lines = [
    "| table | shown in | minutes | machine | tolerance | the figure that is compared first |",
    "|---|---|---:|---|---:|---|",
  ]
  for name, recipe in RECIPES.items():
    first = "exit code 0"
    if recipe.figures:
      split, method, measure = recipe.figures[0]
      value = json.loads((ROOT / "results" / f"{name}.json").read_text())["metrics"][split][method][measure]
      first = f"{split}, {method}: {measure} {value:.4g}"
    shown = ", ".join(f"[{where}]({where})" for where in recipe.shown.split(", "))
    off = tolerance_of(recipe) if recipe.figures else "-"
    lines.append(f"| `{name}` | {shown} | {recipe.minutes} | {recipe.machine} | {off} | {first} |")
  for name, recipe in RECIPES.items():
    record = f" Record: [results/{name}.json](results/{name}.json); writes `{recipe.makes}`." if recipe.makes else ""
    remark = ["", recipe.remark] if recipe.remark else []
    commands = "\n".join(command.format(data="DATA") for command in recipe.commands)
    lines += ["", f"### {name}", "", f"Shown in {recipe.shown}.{record}", *remark, "", "```", commands, "```"]
  return head + "\n".join(lines) + "\n" + tail


if __name__ == "__main__":
  cli.run(main)
