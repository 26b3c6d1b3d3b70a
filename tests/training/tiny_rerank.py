"""Configs of re-ranking runs that train in seconds, on a made-up shop of 120 users."""

import importlib

SHOP = "users=120+categories=4+items_a_category=6+brands=3+colours=3+most_events=10+mean_events=6"


def plain(stage, first="", /):
  """The command's --config of a stage, and what it gives; `first`: the workdir that it begins with."""
  arguments = (
    f"size=tiny,path={SHOP}" + (f",start={first}" if first else "") + ("" if stage == "convert" else ",steps=4")
  )
  return f"configs/rerank/{stage}.py:{arguments}", importlib.import_module(f"configs.rerank.{stage}").get_config(
    arguments
  )


def tiny(stage, first="", /, **fields):
  """The config of a stage, for seconds of training."""
  _, config = plain(stage, first)
  with config.unlocked():
    config.update(
      item_method="random", item_codes=16, item_levels=2, trace_scores="evidence", least_reasoning=20, vocab_size=400,
      list_size=5, list_pool=5, list_folds=2, row_length=416, target_length=256, batch_size=8, log_every=1,
      checkpoint_every=2, warmup_steps=0 if stage == "convert" else 1, max_new_tokens=24, eval_batch_size=8,
      eval_limit=12, block_size=8, watch_lists=6,
    )  # fmt: skip
    config.update(fields)
  return config


def flags_of(config, stage, first="", /):
  """The command's flags that give a config: its file, and every field that differs."""
  command, usual = plain(stage, first)
  mesh = {f"mesh.{axis}": size for axis, size in config.mesh.items()}
  fields = {name: value for name, value in config.items() if name != "mesh" and value != usual[name]}
  return [f"--config={command}", *(f"--config.{name}={value}" for name, value in (mesh | fields).items())]
