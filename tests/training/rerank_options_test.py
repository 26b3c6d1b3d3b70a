"""A bad field of a re-ranking config is named in one line, with what it may be."""

import pytest

from diffgr_jax.training.jobs import check_config
from tests.training.tiny_rerank import tiny


@pytest.mark.parametrize(
  "stage, fields, message",
  [
    ("sft", {"stage": "dpo"}, "config.stage is one of mid_training, sft, convert, cft, opd, rl, not 'dpo'"),
    ("sft", {"task": "chat"}, "config.task is one of docid, rerank, not 'chat'"),
    ("sft", {"shop": "amazon_beauty", "shop_path": ""}, "config.shop_path must name the folder"),
    ("sft", {"list_size": 1}, "config.list_size is at least 2, not 1"),
    ("sft", {"start": "pretrained"}, "config.pretrained must name a folder"),
    ("sft", {"start": "run"}, "config.start_from must name a workdir"),
    ("sft", {"decoder": "block"}, "config.decoder 'block' needs a converted model"),
    ("sft", {"alignment": "same_position"}, "config.alignment must be 'shifted' for an autoregressive model"),
    ("sft", {"traces": "start"}, "config.traces 'start' are those of another run"),
    ("cft", {"traces": "start", "trace_model": "W/sft"}, "config.trace_model writes where config.traces is 'sampled'"),
    ("sft", {"traces": "sampled"}, "config.traces 'sampled' needs a run that writes them: config.trace_model, or"),
    ("sft", {"traces": "/no/such.jsonl"}, "no file '/no/such.jsonl'"),
    ("convert", {"steps": 5}, "config.steps must be 0 for the stage 'convert', which trains nothing"),
    ("sft", {"held_out_users": "/no/such"}, "config.held_out_users is a file that exists"),
    ("cft", {"row_length": 100}, r"config.row_length \(100\) must be a multiple of config.block_size \(8\)"),
    ("cft", {"start": "random", "start_from": "", "traces": "template"}, "config.start must be 'run'"),
    ("cft", {"complementary": True, "suffix_fraction": 0.5}, "config.suffix_fraction must be 0"),
    ("cft", {"complementary": True, "process": "random_time"}, "config.process must be 'exact_count'"),
    ("cft", {"attention": "splash"}, "config.attention 'splash' needs config.whole_stream"),
    ("cft", {"threshold": 1.5}, "Prefix.tau is 1.5"),
    ("sft", {"retriever": "generative", "list_folds": 0}, "config.list_folds is 2 or more for config.retriever"),
    ("sft", {"retriever": "generative", "retriever_width": 60}, "config.retriever_width is a multiple of 8, not 60"),
    ("sft", {"retriever": "dense"}, "config.retriever is one of covisitation, .*, generative, not 'dense'"),
    ("mid_training", {"mixture": {"text": 0.5}}, "config.text_files must name text files"),
  ],
)
def test_bad_fields(stage, fields, message):
  config = tiny(stage, "w" if stage in ("cft", "convert") else "", **fields)
  with pytest.raises(ValueError, match=message):
    check_config(config)


@pytest.mark.parametrize("stage", ["mid_training", "sft", "convert", "cft"])
def test_the_stages_are_accepted(stage):
  check_config(tiny(stage, "w" if stage in ("cft", "convert") else ""))
