"""The harvest: what a docstring is split into, and what holds of every entry of the running Python."""

import functools
import re
import subprocess
import sys

import pytest

from diffgr_jax.data.pydocs import harvest


@functools.cache
def entries():
  return harvest.harvest()


def squash(text):
  return " ".join(text.split()).casefold()


REST = "One two three four five."

SPLIT = {
  "the summary is the first sentence, wherever lines break": (
    "Join the parts\nof a path. " + REST,
    "Join the parts of a path.",
  ),
  "an abbreviation ends no sentence": ("Take a thing, e.g. Foo.\n\n" + REST, "Take a thing, e.g. Foo."),
  "one signature": ("S.name(sub[, (start, end)]) -> int\n\nReturn it.\n\n" + REST, "Return it."),
  "several signatures": ("name(stop) -> object\nname(start, stop) -> object\n\nReturn it.\n\n" + REST, "Return it."),
  "words behind a signature stay": ("D.name(k[,d]) -> v, remove key k from D.\n" + REST, "remove key k from D."),
  "the signature of another name": ("alias(k) => [int, int]\n\nReturn it.\n\n" + REST, "Return it."),
  "a call in prose is no signature": ("name(x) must be called first.\n\n" + REST, "name(x) must be called first."),
}


@pytest.mark.parametrize("doc, summary", SPLIT.values(), ids=SPLIT.keys())
def test_docstring_is_split(doc, summary):
  assert harvest.make_entry("m.name", doc) == harvest.Entry("m.name", summary, REST)


def test_repeats_of_the_summary_are_removed():
  entry = harvest.make_entry("m.f", "Read a file.\n\nTo READ a\n  file: one two. Three four five. Read a file.")
  assert entry.summary == "Read a file."
  assert entry.text.split() == ["To", "one", "two.", "Three", "four", "five."]


def test_a_docstring_needs_five_words_beyond_its_summary():
  assert harvest.make_entry("m.f", "Do it all.\n\none two three four 5 6 7 ---") is None
  assert harvest.make_entry("m.f", "Do it all.\n\none two three four five") is not None
  assert harvest.make_entry("m.f", "Do it all.\n\ndo it all. Do it all. one two") is None


def test_a_docstring_that_holds_an_address_is_no_document():
  doc = "Make it so now.\n\nThe default is <object object at 0x7f31aa04c0d0> and so on and on."
  assert harvest.make_entry("m.f", doc) is None


def test_every_entry_keeps_the_rules():
  assert entries()
  for entry in entries():
    assert squash(entry.summary.rstrip(" .:;!?")) not in squash(entry.text), entry.title
    assert len(re.findall(r"[A-Za-z]\w*", entry.text)) >= harvest.MIN_TEXT_WORDS, entry.title
    assert not any(part.startswith("_") for part in entry.title.split(".")), entry.title


def test_titles_and_contents_are_unique():
  titles = [entry.title for entry in entries()]
  assert titles == sorted(set(titles))
  assert len({(squash(entry.summary), squash(entry.text)) for entry in entries()}) == len(titles)


def test_an_object_is_called_what_a_user_types():
  titles = {entry.title for entry in entries()}
  assert {"os.path.join", "open", "functools.wraps", "asyncio.gather", "subprocess.run", "str.split"} <= titles
  hidden = ("posixpath", "ntpath", "genericpath", "posix", "builtins", "unittest.case", "asyncio.tasks", "_")
  assert not [title for title in titles if title.startswith(tuple(f"{name}." for name in hidden))]


def test_nothing_of_this_machine_or_session_is_in_it():
  everything = "\n".join(f"{entry.summary}\n{entry.text}" for entry in entries())
  assert sys.prefix not in everything
  assert not harvest.ADDRESS.search(everything)


def test_a_second_harvest_is_the_same(monkeypatch):
  monkeypatch.setenv("PYTHONHASHSEED", "7")
  monkeypatch.setenv("LC_ALL", "C")
  monkeypatch.setenv("PYTHONOPTIMIZE", "2")  # would strip docstrings
  assert harvest.harvest() == entries()


def test_a_child_that_fails_is_reported_in_one_line(monkeypatch):
  def fail(command, **kwargs):
    return subprocess.CompletedProcess(command, 3, b"", b"Traceback\nMemoryError: no room\n")

  monkeypatch.setattr(harvest.subprocess, "run", fail)
  with pytest.raises(RuntimeError, match=r"exit 3\): MemoryError: no room$"):
    harvest.harvest()
