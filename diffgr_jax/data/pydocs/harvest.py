"""Harvests the docstrings of the running Python's standard library as JSON lines.

Modules are imported, not parsed: many of the library's docstrings belong to C code that has no Python source, and what
is an alias of what (`os.path.join` is `posixpath.join`) is known only of living objects. So that importing three
hundred modules neither changes this process nor depends on what was imported before, the walk runs in a child process:

    this process                     child: python -I -S harvest.py
    harvest() --- starts ----------> imports every public module, stdout and warnings shut
              <-- JSON lines ------- one {title, summary, text} per docstring, sorted by title

`-I -S` keeps environment variables, the user's path and site-packages out. This file therefore imports only the
standard library. The result depends on the Python build alone: on no set order, memory address, locale, date or path.
"""

from collections.abc import Iterator
import contextlib
from dataclasses import asdict, dataclass
import importlib
import inspect
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
import types
import warnings

HARVEST_VERSION = 1  # raise it when the rules below change: it is part of the data set's version

# Modules that open windows or browsers, print, or hang on a C library that many builds lack (tkinter, turtle); test
# suites, bundled tools and tables; and what stands behind `os`, `os.path` and `re`, whose names nobody types.
# fmt: off
SKIPPED_MODULES = frozenset((
  "antigravity", "idlelib", "this", "tkinter", "turtle", "turtledemo", "distutils", "encodings", "ensurepip", "lib2to3",
  "pydoc_data", "test", "genericpath", "nt", "posix", "sre_compile", "sre_constants", "sre_parse",
))
# fmt: on
MIN_TEXT_WORDS = 5  # a document needs as many words beyond its summary
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}")  # the repr of an object inside a generated docstring
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<!vs\.)\s+(?=[\"'`(*<]*[A-Z])")


@dataclass(frozen=True)
class Entry:
  """One docstring: the qualified name, its first sentence, and the rest."""

  title: str
  summary: str
  text: str


def harvest() -> list[Entry]:
  """Returns the entries of the running Python, sorted by title.

  Raises:
    RuntimeError: the child process failed; the message ends with the last line it wrote.
  """
  command = [sys.executable, "-I", "-S", "-X", "utf8", os.path.abspath(__file__)]
  environment = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if key in os.environ}
  child = subprocess.run(command, capture_output=True, env=environment, stdin=subprocess.DEVNULL, check=False)
  if child.returncode:
    last = child.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
    raise RuntimeError(f"harvesting docstrings with {sys.executable} failed (exit {child.returncode}): {last}")
  return [Entry(**json.loads(line)) for line in child.stdout.decode("utf-8").splitlines()]


def main() -> None:
  """Writes the entries as JSON lines, to a stdout that no imported module can reach."""
  out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
  with open(os.devnull, "w") as void:
    os.dup2(void.fileno(), 1)
  for entry in collect():
    out.write(json.dumps(asdict(entry)) + "\n")
  out.close()


def collect() -> list[Entry]:
  """Walks the standard library in this process. `harvest` is the quiet way to call it."""
  with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    warnings.simplefilter("ignore")
    names = _preferred_names(dict(_import_all()))
  entries: dict[str, Entry] = {}
  seen: set[tuple[str, str]] = set()
  for title, doc in sorted(names, key=lambda item: (_rank(item[0]), item[0])):
    entry = make_entry(title, doc)
    if entry is None or title in entries:
      continue
    content = (_squash(entry.summary), _squash(entry.text))
    if content not in seen:  # the same words under a second name: an inherited or copied docstring
      seen.add(content)
      entries[title] = entry
  return [entries[title] for title in sorted(entries)]


# --- what is walked ---


def _import_all() -> Iterator[tuple[str, types.ModuleType]]:
  """Yields (name a user types, module) for every public module that can be imported."""
  pending = sorted(name for name in sys.stdlib_module_names if _is_public(name))
  while pending:
    name = pending.pop(0)
    try:
      module = importlib.import_module(name)
    except BaseException:  # a module may lack its C library, or call sys.exit
      continue
    if name not in ("ntpath", "posixpath"):
      yield name, module
    elif module is os.path:
      yield "os.path", module
    for child in pkgutil.iter_modules(getattr(module, "__path__", ())):
      if _is_public(child.name):
        pending.append(f"{name}.{child.name}")


def _is_public(name: str) -> bool:
  return not name.startswith("_") and name not in SKIPPED_MODULES


def _preferred_names(modules: dict[str, types.ModuleType]) -> list[tuple[str, str]]:
  """Returns (title, docstring) of every documented object, once, under the name that a user would type."""
  candidates: dict[int, list[tuple[str, object]]] = {}
  for module_name, module in sorted(modules.items()):
    for attribute, value in _exports(module_name, module):
      prefix = "" if module_name == "builtins" else f"{module_name}."
      candidates.setdefault(id(value), []).append((f"{prefix}{attribute}", value))
  found = []
  for named in candidates.values():
    title, value = min(named, key=lambda item: (_own_name(*item), _rank(item[0]), _not_home(*item), item[0]))
    found += _documented(title, value)
  found += [(name, _docstring(module)) for name, module in modules.items()]
  return [(title, doc) for title, doc in found if doc]


def _exports(module_name: str, module: types.ModuleType) -> Iterator[tuple[str, object]]:
  """Yields the public functions and classes that belong to a module's interface."""
  listed = getattr(module, "__all__", None)
  for attribute in sorted(set(listed) if listed is not None else vars(module)):
    value = getattr(module, attribute, None)
    if attribute.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
      continue
    home = getattr(value, "__module__", None) or module_name
    own = home.lstrip("_").split(".")[0] == module.__name__.split(".")[0]
    if listed is not None or own or module_name in ("builtins", "os"):
      yield attribute, value


def _documented(title: str, value: object) -> Iterator[tuple[str, str]]:
  """Yields (title, docstring) of a function, or of a class and the public members that it defines itself."""
  yield title, _docstring(value)
  if not inspect.isclass(value):
    return
  for name, member in sorted(vars(value).items()):
    if name.startswith("_"):
      continue
    if isinstance(member, (staticmethod, classmethod)):
      member = member.__func__
    if inspect.isroutine(member) or isinstance(member, property) or inspect.isdatadescriptor(member):
      yield f"{title}.{name}", _docstring(member)


def _docstring(value: object) -> str:
  doc = value.__doc__ if isinstance(value, types.ModuleType) else _own_docstring(value)
  return inspect.cleandoc(doc) if isinstance(doc, str) else ""


def _own_docstring(value: object) -> object:
  """The docstring that a class or function has itself: a class without one inherits `__doc__` from nobody."""
  return vars(value).get("__doc__") if inspect.isclass(value) and "__doc__" in vars(value) else value.__doc__


def _rank(title: str) -> tuple[int, int]:
  """Sorts the names of one object: few dots first, then few letters."""
  return title.count("."), len(title)


def _own_name(title: str, value: object) -> bool:
  return title.rpartition(".")[2] != getattr(value, "__name__", "")


def _not_home(title: str, value: object) -> bool:
  return not title.startswith(f"{getattr(value, '__module__', None)}.")


# --- what a docstring is split into ---


def make_entry(title: str, doc: str) -> Entry | None:
  """Splits a docstring into summary and text; None where it has too few words, or words of one run only."""
  if ADDRESS.search(doc):
    return None
  body = strip_signature(doc, title.rpartition(".")[2])
  paragraph, _, rest = body.partition("\n\n")
  summary, *more = SENTENCE_END.split(" ".join(paragraph.split()), maxsplit=1)
  text = remove_repeats("\n\n".join([*more, rest]).strip(), summary)
  if not summary or len(_words(text)) < MIN_TEXT_WORDS:
    return None
  return Entry(title, summary, text)


def strip_signature(doc: str, name: str) -> str:
  """Drops the call signatures that docstrings of C functions begin with: `S.find(sub[, start]) -> int`."""
  lines = doc.split("\n")
  while lines and (rest := _after_signature(lines[0], name)) is not None:
    lines[0:1] = [rest] if rest else []
    while lines and not lines[0].strip():
      lines.pop(0)
  return "\n".join(lines)


def _after_signature(line: str, name: str) -> str | None:
  """The words behind the signature on a line; '' where there are none; None where the line is no signature."""
  head = re.match(r"([\w.]*\w)\s*\(", line)
  if not head:
    return None
  depth = 1
  for end in range(head.end(), len(line)):
    depth += (line[end] in "([{") - (line[end] in ")]}")
    if depth == 0:
      break
  else:
    return None
  rest = line[end + 1 :].strip()
  arrow = re.match(r"(->|=>|-->|--|:|=)\s*", rest)
  own_name = head[1].rpartition(".")[2] == name
  if not (own_name and (arrow or not rest)) and not (arrow and ">" in arrow[1]):
    return None  # a sentence that begins with a call
  rest = re.sub(r"^\w[.,]\s+", "", rest[arrow.end() :]) if arrow else ""  # `-> v, remove the key`
  return rest if len(_words(rest)) > 3 else ""


def remove_repeats(text: str, summary: str) -> str:
  """Removes every repeat of the summary from a text, whatever its case, line breaks and closing full stop."""
  words = summary.rstrip(" .:;!?").split()
  if not words:
    return text
  pattern = re.compile(r"\s+".join(map(re.escape, words)) + r"[.:;!?]*", re.IGNORECASE)
  while pattern.search(text):
    text = pattern.sub(" ", text).strip()
  return text


def _words(text: str) -> list[str]:
  return re.findall(r"\w*[^\W\d_]\w*", text)


def _squash(text: str) -> str:
  return " ".join(text.split()).casefold()


if __name__ == "__main__":
  main()
