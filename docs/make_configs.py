"""Writes docs/configs.md from the config files: `python docs/make_configs.py` (a test keeps the page true)."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
import importlib
from pathlib import Path
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configs.md"
sys.path.insert(0, str(ROOT))

# Config files with every field, and those that start from them: file -> arguments that it cannot do without.
BASES = {"configs/docid/base.py": "DocID retrieval", "configs/rerank/base.py": "Re-ranking"}
OTHERS = {
  "configs/docid/base.py": {
    "configs/quickstart.py": "",
    "configs/docid/folder.py": "path=DIR",
    "configs/docid/minilm.py": "path=DIR",
    "configs/docid/codes.py": "path=DIR,index=codes.npz",
    "configs/docid/bound.py": "path=DIR",
    "configs/docid/autoregressive.py": "path=DIR",
    "configs/docid/nq320k.py": "path=DIR",
    "configs/docid/msmarco.py": "path=DIR",
    "configs/pod/docid.py": "size=8b",
  },
  "configs/rerank/base.py": {
    "configs/rerank/mid_training.py": "",
    "configs/rerank/sft.py": "start=W/mid",
    "configs/rerank/convert.py": "start=W/sft",
    "configs/rerank/cft.py": "start=W/sft",
    "configs/rerank/opd.py": "start=W/cft,teacher=W/sft",
    "configs/rerank/rl.py": "start=W/opd",
    "configs/pod/rerank.py": "stage=cft,start=W/sft",
  },
}
# Named by their own arguments, or by the run itself: no news in a list of what differs.
NOT_NEWS = {"dataset_path", "docid_index", "start_from", "teacher", "stage"}


@dataclass(frozen=True)
class Field:
  """A field as its config file states it."""

  section: str
  name: str
  comment: str


def fields_of(source: str) -> Iterator[Field]:
  """The fields of a `get_config`, in order. A comment behind a blank line heads a section; others speak of a field."""
  lines = source.splitlines()
  function = next(
    node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "get_config"
  )
  section, previous_end = "", function.body[0].lineno
  for node in function.body:
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    above = lines[previous_end : node.lineno - 1]
    previous_end = node.end_lineno or node.lineno
    names = [
      one.attr for one in (target.elts if isinstance(target, ast.Tuple) else [target]) if isinstance(one, ast.Attribute)
    ]
    if not names:
      continue
    blank = max((at for at, line in enumerate(above) if not line.strip()), default=-1)
    comments = [line.strip().removeprefix("#").strip() for line in above[blank + 1 :]]
    if blank >= 0 and comments:
      section, comments = " ".join(comments), []
    _, mark, behind = lines[node.lineno - 1].partition("  # ")
    comments += [behind.strip()] if mark else []
    for name in names:
      yield Field(section, name, " ".join(comments))


def shown(value: Any) -> str:
  """A default as the page writes it."""
  if hasattr(value, "to_dict"):
    value = value.to_dict()
  text = repr(value) if not isinstance(value, str) else f'"{value}"'
  return f"`{text}`" if len(text) <= 70 else "see the file"


def config_of(file: str, arguments: str) -> Any:
  module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
  found = module.get_config(arguments)
  return found[0] if isinstance(found, tuple) else found


def cell(text: str) -> str:
  return text.replace("|", "\\|")


def table_of(file: str) -> Iterator[str]:
  """Every field of a base, a table a section."""
  config, section = config_of(file, ""), None
  for field in fields_of((ROOT / file).read_text()):
    if field.section != section:
      section = field.section
      yield from ("", section or "What it is:", "", "| field | default | values and meaning |", "|---|---|---|")
    yield f"| `{field.name}` | {cell(shown(config[field.name]))} | {cell(field.comment)} |"


def others_of(base: str) -> Iterator[str]:
  """What the configs that start from a base change."""
  plain = config_of(base, "").to_dict()
  yield from ("", "| config | what it is | what differs |", "|---|---|---|")
  for file, arguments in OTHERS[base].items():
    own = config_of(file, arguments).to_dict()
    changed = [
      f"`{name}`: {shown(value)}"
      for name, value in own.items()
      if name not in NOT_NEWS and (name not in plain or plain[name] != value)
    ]
    doc = ast.get_docstring(ast.parse((ROOT / file).read_text())) or ""
    name = f"{file}:{arguments}" if arguments else file
    what = doc.splitlines()[0].split("`")[0].rstrip(": ")
    yield f"| [{name}](../{file}) | {cell(what)} | {cell('; '.join(changed))} |"


HEAD = """# Configs

Generated from the config files by `python docs/make_configs.py`; do not edit. Every field is set in one of two files,
and the other configs start from them. `--config=FILE.py:name=value,...` gives a config's arguments,
`--config.field=value` sets a field, and a run's own fields stand in its WORKDIR/config.json.
`evaluate --set=field=value` changes how a trained run decodes."""


def page() -> str:
  lines = [HEAD]
  for file, title in BASES.items():
    lines += ["", f"## {title}: {file}", *table_of(file), "", f"### What starts from {file}", *others_of(file)]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  PAGE.write_text(page())
  print(f"wrote {PAGE.relative_to(ROOT)}")
