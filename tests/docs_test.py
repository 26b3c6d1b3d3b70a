"""Every figure that README.md or docs/ quotes from a run stands in results/: the convention, its checker, the check.

    <!-- results: results/pydocs.json split=test -->     the table below repeats metrics["test"] of that record
    | method | Hit@1 | MRR@10 |                          columns are keys of a method's figures
    |---|---|---|
    | BM25 | .615 | 0.70 |                               rows are methods; a cell agrees at the digits that it shows
    | 4 steps, free | .31 | - |                          '-': the record has no such figure

    <!-- results: results/pydocs.json split=test method="one-pass" columns="Hit@1, MRR@10" -->
    One pass finds the document first in .402 of the queries (MRR@10 .487).       a line: its figures, in this order

    <!-- quoted: paper, table 2 -->                      figures measured elsewhere; not checked

A percentage (`61.5%`) is a hundredth of its number; bold type and code marks around a cell are ignored. The column
`X (95%)` is the interval `LOW to HIGH` of the record's `X low` and `X high`, as evaluation prints it. A table with a
column `Hit@1` needs one of the two comments in the line above it.
"""

from decimal import Decimal
import json
import math
from pathlib import Path
import re

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMENT = re.compile(r"<!--\s*(results|quoted):\s*(.*?)\s*-->")
SETTING = re.compile(r'(\w+)=(?:"([^"]*)"|(\S+))')
NUMBER = r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?%?"
FIGURE = re.compile(rf"(?<![\w@.,]){NUMBER}(?![\w@]|[.,]\d)")
STATUSES = ("measured", "compiled", "estimated")


# --- the checker ---


def check_page(text, page, root):
  """Returns what is wrong with the figures of a Markdown page, one line each, as `PAGE:LINE: ...`."""
  wrong = []
  lines = text.splitlines()
  fenced, covered = False, False  # inside a code block; the comment above still speaks of this line
  for number, line in enumerate(lines, 1):
    if line.lstrip().startswith("```"):
      fenced = not fenced
    comment = None if fenced else COMMENT.fullmatch(line.strip())
    if comment:
      covered = True
      if comment[1] == "results":
        wrong += [f"{page}:{at}: {what}" for at, what in check_block(comment[2], lines, number, root)]
      continue
    begins_table = is_row(line) and (number == 1 or not is_row(lines[number - 2]))
    if begins_table and not fenced and not covered and "Hit@1" in cells_of(line):
      wrong.append(f"{page}:{number}: a table of Hit@1 without <!-- results: ... --> or <!-- quoted: ... --> above it")
    covered = False
  return wrong


def check_block(settings, lines, number, root):
  """Yields (line, what is wrong) of the table or line below a `results` comment, which is line `number` (from 1)."""
  file, _, rest = settings.partition(" ")
  given = {key: quoted or plain for key, quoted, plain in SETTING.findall(rest)}
  if not (root / file).is_file():
    yield number, f"there is no {file}"
    return
  metrics = json.loads((root / file).read_text(encoding="utf-8"))["metrics"]
  split = given.get("split", "")
  if split not in metrics:
    yield number, f"{file} has the splits {', '.join(metrics)}, not {split!r}"
  elif number >= len(lines) or not lines[number].strip():
    yield number, "no table or line follows"
  elif is_row(lines[number]):
    yield from check_table(lines, number, metrics[split], file)
  else:
    yield from check_line(lines[number], number + 1, given, metrics[split], file)


def check_table(lines, first, methods, file):
  """Yields what is wrong in the table whose heading is lines[first]."""
  columns = cells_of(lines[first])[1:]
  known = {name for figures in methods.values() for name in figures}
  known |= {f"{name.removesuffix(' low')} (95%)" for name in known if name.endswith(" low")}
  if missing := [column for column in columns if column not in known]:
    yield first + 1, f"{file} has no column {missing[0]!r}; it has {', '.join(sorted(known))}"
    return
  rows = 0
  for number in range(first + 2, len(lines)):  # behind the rule
    if not is_row(lines[number]):
      break
    rows += 1
    method, *cells = cells_of(lines[number])
    if method not in methods:
      yield number + 1, f"{file} has no method {method!r}; it has {', '.join(methods)}"
      continue
    if len(cells) != len(columns):
      yield number + 1, f"{len(cells)} cells under {len(columns)} columns"
      continue
    for column, cell in zip(columns, cells, strict=True):
      if what := cell_disagreement(cell, column, methods[method]):
        yield number + 1, f"{method}, {column}: {what} ({file})"
  if not rows:
    yield first + 1, "the table has no rows"


def check_line(line, number, given, methods, file):
  """Yields what is wrong in one line of text, whose figures are the named columns of one method, in order."""
  method = given.get("method", "")
  if method not in methods:
    yield number, f"{file} has no method {method!r}; it has {', '.join(methods)}"
    return
  columns = [column.strip() for column in given.get("columns", "").split(",") if column.strip()]
  shown = FIGURE.findall(line)
  if not columns or len(shown) != len(columns):
    yield number, f"{len(shown)} figures in the line, {len(columns)} in columns=: {', '.join(shown)}"
    return
  for column, figure in zip(columns, shown, strict=True):
    if column not in methods[method]:
      yield number, f"{file} has no {column!r} for {method!r}"
    elif what := disagreement(figure, methods[method][column]):
      yield number, f"{method}, {column}: {what} ({file})"


def cell_disagreement(cell, column, figures):
  """`disagreement` of a cell, or of the two ends of an interval's."""
  if not column.endswith(" (95%)"):
    return disagreement(cell, figures.get(column))
  ends = [figures.get(f"{column.removesuffix(' (95%)')} {end}") for end in ("low", "high")]
  shown = cell.split(" to ") if " to " in cell else [cell, cell]
  return next(filter(None, map(disagreement, shown, ends)), None)


def disagreement(cell, value):
  """What is wrong with a cell that shows `value` (None: no such figure); None where nothing is."""
  if cell in ("-", "–", "—"):
    return None if value is None else f"the page shows none, the record has {value}"
  if value is None:
    return f"the page shows {cell}, the record has none"
  if not FIGURE.fullmatch(cell):
    return f"{cell!r} is no figure"
  shown = Decimal(cell.rstrip("%").replace(",", ""))
  scale = 100 if cell.endswith("%") else 1
  half_a_digit = Decimal(1).scaleb(shown.as_tuple().exponent) / 2
  # Half to even and half up are both rounding; 1e-9 is for what binary fractions make of a decimal half.
  if abs(shown - Decimal(value) * scale) <= half_a_digit * (1 + Decimal("1e-9")):
    return None
  return f"the page shows {cell}, the record has {value}"


def is_row(line):
  return line.lstrip().startswith("|")


def cells_of(line):
  return [cell.strip().strip("*`").strip() for cell in line.strip().strip("|").split("|")]


def check_record(record):
  """Returns what keeps a results.json from being a record of a run, one line each."""
  wrong = []
  if not str(record.get("command", "")).strip():
    wrong.append("no command")
  if record.get("status") not in STATUSES:
    wrong.append(f"status {record.get('status')!r} is none of {', '.join(STATUSES)}")
  wrong += [
    f"versions names no {name}" for name in ("python", "jax", "flax") if not record.get("versions", {}).get(name)
  ]
  wrong += [
    f"machine names no {name}" for name in ("platform", "processor", "cpus") if not record.get("machine", {}).get(name)
  ]
  if not record.get("metrics"):
    wrong.append("no metrics")
  for split, methods in record.get("metrics", {}).items():
    for method, figures in methods.items():
      for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
          wrong.append(f"metrics of {split}, {method}: {name} is {value!r}")
  return wrong


# --- the project's own pages and records ---


def pages():
  return [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if path.is_file()]


@pytest.mark.parametrize("page", pages(), ids=lambda path: path.name)
def test_every_quoted_figure_is_in_its_record(page):
  assert check_page(page.read_text(encoding="utf-8"), page.relative_to(ROOT), ROOT) == []


@pytest.mark.parametrize("file", sorted((ROOT / "results").glob("**/*.json")), ids=lambda path: path.name)
def test_every_record_says_what_was_run_where_and_with_what(file):
  assert check_record(json.loads(file.read_text(encoding="utf-8"))) == []


# --- the checker itself, on made-up pages ---

RECORD = {
  "command": "python -m diffgr_jax.evaluate --workdir=w",
  "status": "measured",
  "versions": {"python": "3.11.1", "jax": "0.10.2", "flax": "0.12.8"},
  "machine": {"platform": "Linux", "processor": "x86_64", "cpus": 2},
  "metrics": {
    "test": {
      "BM25": {"Hit@1": 0.6154, "MRR@10": 0.70251, "queries/s": 12345.6, "queries": 411},
      "4 steps, free": {"Hit@1": 0.3125, "invalid": 0.0625, "queries": 411, "gain low": -0.3201, "gain high": 0.0149},
    }
  },
}
TABLE = """\
<!-- results: results/made.json split=test -->
| method | Hit@1 | MRR@10 | queries/s |
|---|---:|---:|---:|
| BM25 | **.615** | 0.7025 | 12,346 |
| `4 steps, free` | 31.2% | - | - |
"""
LINE = """\
<!-- results: results/made.json split=test method="4 steps, free" columns="Hit@1, invalid" -->
It names the right page in .31 of the cases and no page in 6.3%.
"""


@pytest.fixture
def made(tmp_path):
  (tmp_path / "results").mkdir()
  (tmp_path / "results" / "made.json").write_text(json.dumps(RECORD))
  return lambda text: check_page(text, "page.md", tmp_path)


def test_figures_that_agree_at_the_digits_shown_pass(made):
  assert made(TABLE) == []
  assert made(LINE) == []
  assert made(TABLE.replace("31.2%", "31.3%")) == []  # 31.25 lies between the two
  assert made(f"# Title\n\n{TABLE}\nText.\n\n{LINE}") == []


@pytest.mark.parametrize(
  "right, wrong, message",
  [
    (".615", ".616", "page.md:4: BM25, Hit@1: the page shows .616, the record has 0.6154"),
    ("0.7025", "0.7026", "page.md:4: BM25, MRR@10: the page shows 0.7026"),
    ("12,346", "12,345", "page.md:4: BM25, queries/s: the page shows 12,345"),
    ("31.2%", "31.4%", "page.md:5: 4 steps, free, Hit@1: the page shows 31.4%"),
    ("31.2%", "-", "page.md:5: 4 steps, free, Hit@1: the page shows none, the record has 0.3125"),
    ("31.2% | -", "31.2% | .4", "page.md:5: 4 steps, free, MRR@10: the page shows .4, the record has none"),
    ("31.2%", "many", "page.md:5: 4 steps, free, Hit@1: 'many' is no figure"),
    ("MRR@10", "MRR@11", "page.md:2: results/made.json has no column 'MRR@11'; it has Hit@1, MRR@10"),
    ("| BM25", "| BM26", "page.md:4: results/made.json has no method 'BM26'; it has BM25, 4 steps, free"),
    (" | 12,346", "", "page.md:4: 2 cells under 3 columns"),
    ("made.json", "gone.json", "page.md:1: there is no results/gone.json"),
    ("split=test", "split=valid", "page.md:1: results/made.json has the splits test, not 'valid'"),
    ("split=test -->\n", "split=test -->\n\n", "page.md:1: no table or line follows"),
    ("<!-- results: results/made.json split=test -->\n", "", "page.md:1: a table of Hit@1 without"),
    ("<!-- results: results/made.json split=test -->\n", "Text.\n", "page.md:2: a table of Hit@1 without"),
  ],
)
def test_what_does_not_agree_is_named_by_page_and_line(made, right, wrong, message):
  assert right in TABLE
  found = made(TABLE.replace(right, wrong, 1))
  assert any(line.startswith(message) for line in found), found


def test_an_interval_is_checked_at_both_ends(made):
  table = "<!-- results: results/made.json split=test -->\n| m | gain (95%) |\n|---|---|\n| BM25 | - |\n"
  assert made(f"{table}| 4 steps, free | -0.320 to +0.015 |\n") == []
  for cell, wrong in (("-0.321 to +0.015", "-0.321"), ("-0.320 to +0.016", "+0.016"), ("-0.320", "-0.320")):
    (found,) = made(f"{table}| 4 steps, free | {cell} |\n")
    assert found.startswith(f"page.md:5: 4 steps, free, gain (95%): the page shows {wrong}, the record has"), found


@pytest.mark.parametrize(
  "right, wrong, message",
  [
    (".31 ", ".32 ", "page.md:2: 4 steps, free, Hit@1: the page shows .32"),
    ("6.3%", "6.4%", "page.md:2: 4 steps, free, invalid: the page shows 6.4%"),
    (", invalid", "", "page.md:2: 2 figures in the line, 1 in columns=: .31, 6.3%"),
    ("invalid", "MRR@10", "page.md:2: results/made.json has no 'MRR@10' for '4 steps, free'"),
    ('method="4 steps, free" ', "", "page.md:2: results/made.json has no method ''"),
  ],
)
def test_a_line_is_checked_too(made, right, wrong, message):
  assert right in LINE
  found = made(LINE.replace(right, wrong, 1))
  assert any(line.startswith(message) for line in found), found


def test_figures_of_others_and_code_blocks_are_left_alone(made):
  table = TABLE.split("\n", 1)[1].replace(".615", ".999")
  assert made(f"<!-- quoted: paper, table 2 -->\n{table}") == []
  assert made(f"```\n{table}```\n") == []
  assert len(made(f"```\ntext\n```\n{table}")) == 1


def test_a_table_without_rows_shows_nothing_and_is_wrong(made):
  assert made("\n".join(TABLE.splitlines()[:3])) == ["page.md:2: the table has no rows"]


def test_a_record_without_its_circumstances_is_refused():
  assert check_record(RECORD) == []
  for key in RECORD:
    assert check_record({k: v for k, v in RECORD.items() if k != key}), key
  assert check_record(RECORD | {"status": "guessed"}) == ["status 'guessed' is none of measured, compiled, estimated"]
  assert check_record(RECORD | {"machine": {"platform": "Linux", "cpus": 2}}) == ["machine names no processor"]
  broken = json.loads(json.dumps(RECORD))
  broken["metrics"]["test"]["BM25"]["Hit@1"] = math.nan
  assert check_record(broken) == ["metrics of test, BM25: Hit@1 is nan"]
