"""Every config under configs/ loads, is accepted, is locked, and says what is wrong with its arguments."""

import importlib

import pytest

from diffgr_jax.training.options import check_config

ARGUMENTS = {"quickstart": "", "docid.folder": "path=somewhere", "docid.minilm": "", "pod.docid": "size=1b"}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_config_is_accepted_as_it_stands(name):
  config = importlib.import_module(f"configs.{name}").get_config(ARGUMENTS[name])
  check_config(config)
  assert config.is_locked
  with pytest.raises(AttributeError):
    config.no_such_field = 1


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_unknown_argument_is_named(name):
  with pytest.raises(ValueError, match="depth=3: arguments are key=value with key one of"):
    importlib.import_module(f"configs.{name}").get_config("depth=3")


def test_the_folder_config_needs_a_path():
  with pytest.raises(ValueError, match=r"folder\.py:path=DIR: name the folder"):
    importlib.import_module("configs.docid.folder").get_config("")


def test_arguments_reach_the_fields():
  config = importlib.import_module("configs.docid.minilm").get_config("path=here,steps=7,seed=3,pretrained=/a/model")
  assert (config.dataset_path, config.steps, config.seed, config.pretrained) == ("here", 7, 3, "/a/model")
