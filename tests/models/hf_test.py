"""What a config.json means, and what is refused in it."""

import dataclasses
import json
import logging
from pathlib import Path
import re

import pytest

from diffgr_jax.models.hf import ModelSpec, read_spec, updated_config_json

GOLDEN = Path(__file__).parents[1] / "golden"


def config_of(name, tmp_path, **changes):
  """A folder with a golden config.json, changed; a change to `...` removes the field."""
  values = json.loads((GOLDEN / name / "config.json").read_text()) | changes
  values = {field: value for field, value in values.items() if value is not ...}
  (tmp_path / "config.json").write_text(json.dumps(values))
  return tmp_path


@pytest.mark.parametrize(
  "folder, family, pattern, alignment, block_size, mask_id",
  [
    ("llada", "llada", "bidirectional", "same_position", 1, 119),
    ("dream", "dream", "bidirectional", "shifted", 1, 118),
    ("qwen2", "qwen2", "causal", "shifted", 1, None),
    ("qwen3", "qwen3", "causal", "shifted", 1, None),
    ("sdar", "sdar", "block_causal", "same_position", 4, 119),
    ("a2d_qwen3", "a2d-qwen3", "bidirectional", "same_position", 1, None),
    ("fast_dllm_v2", "fast_dllm_v2", "block_causal", "shifted", 8, None),
    ("bert_minilm", "bert", "bidirectional", "same_position", 1, None),
  ],
)
def test_families(folder, family, pattern, alignment, block_size, mask_id):
  spec = read_spec(GOLDEN / folder)
  assert (spec.family, spec.config.pattern, spec.config.alignment) == (family, pattern, alignment)
  assert (spec.block_size, spec.mask_id) == (block_size, mask_id)
  assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_parts_of_a_family():
  qwen3, qwen2, bert = (read_spec(GOLDEN / name).config for name in ("qwen3_tied", "qwen2", "bert_mlm"))
  assert (qwen3.qk_norm, qwen3.qkv_bias, qwen3.head_dim, qwen3.tie_embeddings) == (True, False, 24, True)
  assert (qwen2.qk_norm, qwen2.qkv_bias, qwen2.head_dim, qwen2.tie_embeddings) == (False, True, 16, False)
  assert (bert.head, bert.norm_position, bert.mlp, bert.token_types) == ("mlm", "post", "gelu", 2)
  assert read_spec(GOLDEN / "bert_minilm").config.head == "none"


def test_rows_in_use_of_a_padded_embedding():
  spec = read_spec(GOLDEN / "llada_sharded_padvocab")
  assert (spec.vocab_size, spec.config.vocab_size) == (100, 128)


def test_the_architecture_decides_without_a_model_type(tmp_path):
  assert read_spec(config_of("sdar", tmp_path, model_type=...)).family == "sdar"
  with pytest.raises(ValueError, match=r"architectures \['GPT2LMHeadModel'\] is not supported"):
    read_spec(config_of("sdar", tmp_path, model_type=..., architectures=["GPT2LMHeadModel"]))


@pytest.mark.parametrize(
  "folder, changes, message",
  [
    ("qwen3", {"model_type": "mamba"}, "model_type 'mamba' is not supported; it may be llada, dream, qwen2"),
    ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling {'rope_type': 'yarn'"),
    ("qwen3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling {'type': 'linear'"),
    (
      "qwen3",
      {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}},
      "rope_parameters {'rope_type': 'llama3'",
    ),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 64}, "use_sliding_window True is not supported"),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types 'sliding_attention'"),
    ("dream", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported; it may be silu"),
    ("sdar", {"attention_bias": True}, "attention_bias True is not supported"),
    ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config {'bits': 4} is not supported"),
    ("qwen3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
    ("llada", {"alibi": True}, "alibi True is not supported"),
    ("llada", {"scale_logits": True}, "scale_logits True is not supported"),
    ("llada", {"activation_type": "swiglu"}, "activation_type 'swiglu' is not supported"),
    ("llada", {"include_qkv_bias": True}, "include_qkv_bias True is not supported"),
    ("llada", {"block_type": "sequential"}, "block_type 'sequential' is not supported"),
    ("bert_mlm", {"hidden_act": "gelu_new"}, "hidden_act 'gelu_new' is not supported; it may be gelu"),
    ("bert_mlm", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ("bert_mlm", {"tie_word_embeddings": False}, "tie_word_embeddings False is not supported"),
    ("bert_mlm", {"architectures": ["BertForSequenceClassification"]}, "architectures 'BertForSequenceClassification'"),
    ("qwen2", {"num_hidden_layers": ...}, "has no 'num_hidden_layers', which this model needs"),
    ("llada", {"rope": ...}, "has no 'rope', which this model needs"),
    ("sdar", {"block_size": ...}, "has no 'block_size', which this model needs"),
    ("qwen2", {"rope_theta": ...}, "has no 'rope_theta', which this model needs"),
  ],
)
def test_what_would_compute_something_else_is_refused_by_name(tmp_path, folder, changes, message):
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    read_spec(config_of(folder, tmp_path, **changes))
  assert "\n" not in str(error.value)
  assert str(tmp_path) in str(error.value)


def test_the_newer_place_of_the_rotary_base_is_read(tmp_path):
  folder = config_of("qwen3", tmp_path, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 5e5})
  assert read_spec(folder).config.rope_theta == 5e5


def test_a_window_that_is_turned_off_is_fine(tmp_path):
  assert read_spec(config_of("qwen2", tmp_path, sliding_window=32768)) == read_spec(GOLDEN / "qwen2")


def test_fields_that_no_rule_knows_are_logged_by_name(tmp_path, caplog):
  with caplog.at_level(logging.WARNING):
    read_spec(config_of("qwen3", tmp_path, qk_clip=3.0))
  assert "qk_clip" in caplog.text
  caplog.clear()
  for folder in GOLDEN.iterdir():
    if folder.is_dir():
      read_spec(folder)
  assert not caplog.text


def test_a_folder_without_a_config_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"has no config.json"):
    read_spec(tmp_path)


def test_the_updated_config_reads_back_as_the_grown_model(tmp_path):
  for name in ("llada_sharded_padvocab", "qwen3"):
    spec = read_spec(GOLDEN / name)
    grown = dataclasses.replace(spec, config=dataclasses.replace(spec.config, vocab_size=256))
    grown = grown if name.startswith("llada") else dataclasses.replace(grown, vocab_size=256)
    (tmp_path / "config.json").write_text(updated_config_json((GOLDEN / name / "config.json").read_text(), grown))
    assert read_spec(tmp_path) == grown
