"""docs/configs.md is what the config files say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def maker():
  spec = importlib.util.spec_from_file_location("make_configs", ROOT / "docs" / "make_configs.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_the_page_is_up_to_date():
  """Otherwise: python docs/make_configs.py"""
  made = maker()
  assert made.PAGE.read_text() == made.page()


def test_every_field_stands_in_it_once():
  made = maker()
  for file in made.BASES:
    names = [field.name for field in made.fields_of((ROOT / file).read_text())]
    assert sorted(names) == sorted(made.config_of(file, "").to_dict())


def test_every_field_has_a_meaning():
  made = maker()
  for file in made.BASES:
    assert [field.name for field in made.fields_of((ROOT / file).read_text()) if not field.comment] == []


def test_comments_find_their_fields():
  source = """
def get_config(arg=""):
  config = C()
  config.a = 1  # one | two

  # A section.
  # of two lines
  config.b = 2
  # of the next field
  config.c, config.d = 3, 4  # both
"""
  found = [(field.section, field.name, field.comment) for field in maker().fields_of(source)]
  assert found == [
    ("", "a", "one | two"),
    ("A section. of two lines", "b", ""),
    ("A section. of two lines", "c", "of the next field both"),
    ("A section. of two lines", "d", "of the next field both"),
  ]
