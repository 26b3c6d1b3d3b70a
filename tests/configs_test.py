"""Every config under configs/ loads, is accepted, is locked, and says what is wrong with its arguments."""

import importlib

import pytest

from diffgr_jax.evaluation.study import cells_of
from diffgr_jax.training.jobs import check_config

ARGUMENTS = {
  "quickstart": "", "docid.base": "", "docid.folder": "path=somewhere", "docid.minilm": "",
  "docid.nq320k": "path=somewhere", "docid.msmarco": "path=somewhere,part=passages,limit=1000",
  "docid.codes": "index=codes.npz", "docid.bound": "index=codes.npz",
  "docid.autoregressive": "", "pod.docid": "size=1b", "rerank.mid_training": "shop=amazon_beauty,path=here",
  "rerank.sft": "pool=50,size=base", "rerank.convert": "start=w",
  "rerank.cft": "start=w,block=8,alignment=same_position",
  "rerank.opd": "start=w,teacher=t,threshold=0.6", "rerank.rl": "start=w,estimator=coupled",
  "pod.rerank": "stage=cft,start=w",
}  # fmt: skip


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


@pytest.mark.parametrize("name", ["rerank.convert", "rerank.cft", "rerank.opd", "rerank.rl", "pod.rerank"])
def test_a_conversion_needs_a_start(name):
  with pytest.raises(ValueError, match="start=WORKDIR"):
    importlib.import_module(f"configs.{name}").get_config("")


@pytest.mark.parametrize("name", ["folder", "nq320k", "msmarco"])
def test_a_config_of_files_needs_a_path(name):
  with pytest.raises(ValueError, match=rf"{name}\.py:path=DIR: name the folder"):
    importlib.import_module(f"configs.docid.{name}").get_config("")


def test_a_limit_is_a_number():
  with pytest.raises(ValueError, match="limit=many: limit is a number of documents"):
    importlib.import_module("configs.docid.msmarco").get_config("path=here,limit=many")


def test_arguments_reach_the_fields():
  config = importlib.import_module("configs.docid.minilm").get_config("path=here,steps=7,seed=3,pretrained=/a/model")
  assert (config.dataset_path, config.steps, config.seed, config.pretrained) == ("here", 7, 3, "/a/model")


def test_every_cell_of_the_study_is_a_run_that_is_accepted():
  study = importlib.import_module("configs.docid.study").get_config(
    "path=here,codes=c.npz,product=p.npz,steps=7,batch=16"
  )
  cells = cells_of(study)
  assert len(cells) == len({cell.name for cell in cells}) == 18
  for cell in cells:
    file, _, arguments = cell.config.partition(":")
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(arguments)
    with config.unlocked():
      config.update(cell.fields)
    check_config(config)
    steps = 1 if cell.name.endswith("_start") else 7
    assert (config.steps, config.batch_size, config.dataset_path) == (steps, 16, "here")
  with pytest.raises(ValueError, match=r"a study needs path"):
    importlib.import_module("configs.docid.study").get_config("path=here")


@pytest.mark.parametrize("stage", ["sft", "cft", "opd", "rl"])
def test_lists_of_five_come_from_their_pool_in_shorter_rows(stage):
  start = {"sft": "", "opd": ",start=w,teacher=t"}.get(stage, ",start=w")
  make = importlib.import_module(f"configs.rerank.{stage}").get_config
  ten, five, natural = make(f"pool=50{start}"), make(f"candidates=5,pool=20{start}"), make(f"candidates=5{start}")
  assert [(one.list_size, one.list_pool, one.list_draws) for one in (ten, five, natural)] == [
    (10, 50, 3), (5, 20, 3), (5, 5, 1)
  ]  # fmt: skip
  assert (five.row_length < ten.row_length, five.max_new_tokens < ten.max_new_tokens) == (True, True)
  check_config(five)


def test_a_small_student_is_taught_where_it_errs_and_a_large_one_as_before():
  make = importlib.import_module("configs.rerank.opd").get_config
  of = lambda given: [
    make(f"start=w,teacher=t{given}")[name]
    for name in ("steps", "rollout_threshold", "learning_rate", "lr_decay", "teacher_temperature")
  ]
  assert of("") == [240, 0.6, 2e-3, "linear", 0.2]
  assert of(",steps=7,threshold=0.8") == [7, 0.8, 2e-3, "linear", 0.2]
  assert of(",size=8b,steps=7") == [7, 0.9, 3e-4, "constant", 1.0]


@pytest.mark.parametrize("stage", ["opd", "rl"])
def test_rollouts_on_pods_are_accepted(stage):
  check_config(importlib.import_module("configs.pod.rerank").get_config(f"stage={stage},start=w,teacher=t"))


def test_a_study_of_another_shop_reads_it_once():
  given = "shop=interactions,path=DIR,vectors=DIR/vectors.npy"
  for cell in cells_of(importlib.import_module("configs.rerank.study").get_config(given)):
    assert "shop=interactions,path=DIR" in cell.config
    assert "vectors" not in cell.config
    assert (cell.fields["data_dir"], cell.fields["vectors"]) == ("{out}/data", "DIR/vectors.npy")


@pytest.mark.parametrize("given", ["", ",candidates=5", ",models=colabs/models"])
def test_every_stage_of_the_re_ranking_study_begins_with_one_before_it(given):
  study = importlib.import_module("configs.rerank.study").get_config(f"seed=3,part=0.1{given}")
  cells, seen = cells_of(study), set()
  assert study.against in {cell.name for cell in cells}
  for cell in cells:
    file, _, arguments = cell.config.partition(":")
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(arguments)
    with config.unlocked():
      config.update(cell.fields)
    folders = (config.start_from, config.teacher, config.examples)
    with config.unlocked():
      config.examples = ""  # they are not there yet
    check_config(config)
    assert config.seed == 3
    assert (config.list_size, config.list_pool) == ((5, 20) if "candidates" in given else (10, 50))
    for folder in filter(None, folders):
      assert folder in ("colabs/models/teacher", "colabs/models/student") or folder.removeprefix("{out}/") in seen
    seen.add(cell.name)
  assert len(seen) == (13 if "models" in given else 15)
