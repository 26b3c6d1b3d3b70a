"""What a Hugging Face config.json says: the family, its `TransformerConfig`, the block size and the special tokens.

A field that changes what is computed is honoured or refused by name; fields that no rule knows are logged. The names
of the tensors are in hf_keys.py; reading and writing them in hf_weights.py.
"""

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass
import json
import logging
from pathlib import Path
from typing import Any

from diffgr_jax.models.config import TransformerConfig

CONFIG_FILE = "config.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSpec:
  """What a folder's config.json (and the names of its tensors) say about a model.

  family: llada, dream, qwen2, qwen3, sdar, a2d-qwen3, fast_dllm_v2 or bert.
  block_size: tokens a block where the config has one (sdar, fast_dllm_v2), else 1.
  vocab_size: rows in use; `config.vocab_size` counts padding rows too. Rows from here on must never be sampled.
  key_prefix: what stands before the family's names in the file: "bert." or nothing.
  old_norm_names: the file calls LayerNorm's weight and bias gamma and beta, as the first BERT files do.
  """

  family: str
  config: TransformerConfig
  block_size: int = 1
  vocab_size: int = 0
  mask_id: int | None = None
  pad_id: int | None = None
  bos_id: int | None = None
  eos_id: int | None = None
  key_prefix: str = ""
  old_norm_names: bool = False

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {"config": self.config.to_dict()}

  @classmethod
  def from_dict(cls, values: Mapping[str, Any]) -> "ModelSpec":
    return cls(**{**values, "config": TransformerConfig.from_dict(values["config"])})


# --- config.json ---

# model_type in lower case -> family. Nothing is guessed from the class name when model_type is there.
_MODEL_TYPES = {
  "llada": "llada",
  "dream": "dream",
  "qwen2": "qwen2",
  "qwen3": "qwen3",
  "sdar": "sdar",
  "a2d-qwen3": "a2d-qwen3",
  "fast_dllm_qwen": "fast_dllm_v2",
  "bert": "bert",
}
_ARCHITECTURES = {
  "LLaDAModelLM": "llada",
  "DreamModel": "dream",
  "Qwen2ForCausalLM": "qwen2",
  "Qwen3ForCausalLM": "qwen3",
  "SDARForCausalLM": "sdar",
  "A2DQwen3LMHeadModel": "a2d-qwen3",
  "Fast_dLLM_QwenForCausalLM": "fast_dllm_v2",
  "BertModel": "bert",
  "BertForMaskedLM": "bert",
  "BertForPreTraining": "bert",
}
FAMILIES = tuple(dict.fromkeys(_MODEL_TYPES.values()))

# Fields that say nothing about the computation of a trained model's logits: training, file and generation settings.
# fmt: off
_HARMLESS = frozenset({
  "_attn_implementation", "_name_or_path", "alibi_bias_max", "architectures", "attention_dropout",
  "attention_layer_norm_with_affine", "attention_probs_dropout_prob", "attn_implementation", "auto_map",
  "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "cls_token_id", "complementary_mask",
  "conplemenrary_mask", "debug", "dtype", "embedding_dropout", "eos_token_id", "ep_size", "flash_attention",
  "fuse_cross_entropy", "gradient_checkpointing", "hidden_dropout_prob", "id2label", "init_cutoff_factor",
  "init_device", "init_fn", "init_std", "initializer_factor", "initializer_range", "label2id", "mask_token_id",
  "max_position_embeddings", "max_sequence_length", "max_window_layers", "micro_forward", "mlp_ratio",
  "model_type", "output_attentions", "output_hidden_states", "pad_token_id", "precision", "problem_type",
  "resid_pdrop", "residual_dropout", "return_dict", "rope_full_precision", "sep_token_id", "skip_checkpoint",
  "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_cache", "use_deepep",
  "vocab_size",
})
# fmt: on

# Fields with the values under which our model computes the same; any other value is refused.
_DECODER_FIXED = {
  "hidden_act": ("silu",),
  "rope_scaling": (None,),
  "sliding_window_pattern": (None,),
  "use_sliding_window": (False, None),
  "use_mrope": (False, None),
  "attention_bias": (False, None),
  "mlp_bias": (False, None),
  "partial_rotary_factor": (1.0, 1, None),
  "quantization_config": (None,),
}
_LLADA_FIXED = {
  "activation_type": ("silu",),
  "alibi": (False,),
  "attention_layer_norm": (False,),
  "bias_for_layer_norm": (False,),
  "block_group_size": (1,),
  "block_type": ("llama",),
  "clip_qkv": (None,),
  "include_bias": (False,),
  "include_qkv_bias": (False,),
  "input_emb_norm": (False,),
  "layer_norm_type": ("rms",),
  "layer_norm_with_affine": (True,),
  "multi_query_attention": (None, False),
  "quantization_config": (None,),
  "rope": (True,),
  "rope_scaling": (None,),
  "scale_logits": (False,),
}
# What LLaDA's own class would fill in for these is another model, so they must be there.
_LLADA_EXPLICIT = ("activation_type", "block_type", "include_bias", "layer_norm_type", "rope", "weight_tying")
_BERT_FIXED = {
  "hidden_act": ("gelu",),
  "position_embedding_type": ("absolute",),
  "is_decoder": (False,),
  "add_cross_attention": (False,),
  "tie_word_embeddings": (True,),
  "quantization_config": (None,),
}
_FIXED = {family: _DECODER_FIXED for family in FAMILIES} | {"llada": _LLADA_FIXED, "bert": _BERT_FIXED}

# family -> (attention pattern, alignment)
_BEHAVIOUR = {
  "llada": ("bidirectional", "same_position"),
  "dream": ("bidirectional", "shifted"),
  "qwen2": ("causal", "shifted"),
  "qwen3": ("causal", "shifted"),
  "sdar": ("block_causal", "same_position"),
  "a2d-qwen3": ("bidirectional", "same_position"),
  "fast_dllm_v2": ("block_causal", "shifted"),
  "bert": ("bidirectional", "same_position"),
}
_QKV_BIAS = ("qwen2", "dream", "fast_dllm_v2", "bert")
_QK_NORM = ("qwen3", "sdar", "a2d-qwen3")
_BLOCK_FIELD = {"sdar": "block_size", "fast_dllm_v2": "bd_size"}


class _Fields:
  """config.json, remembering which fields were read, so that the others can be named."""

  def __init__(self, path: Path, values: dict[str, Any]):
    self.path, self.values, self.read = path, values, set()

  def get(self, name: str, default: Any = None) -> Any:
    self.read.add(name)
    value = self.values.get(name)
    return default if value is None else value

  def need(self, name: str) -> Any:
    value = self.get(name)
    if value is None:
      raise ValueError(f"{self.path}: has no {name!r}, which this model needs")
    return value

  def refuse(self, name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{self.path}: {name} {value!r} is not supported; it may be {allowed}")


def _family(fields: _Fields) -> str:
  model_type, architectures = fields.get("model_type"), fields.get("architectures", [])
  if model_type is not None:
    if model_type.lower() not in _MODEL_TYPES:
      raise fields.refuse("model_type", model_type, ", ".join(_MODEL_TYPES))
    return _MODEL_TYPES[model_type.lower()]
  for name in architectures:
    if name in _ARCHITECTURES:
      return _ARCHITECTURES[name]
  raise fields.refuse("architectures", architectures, ", ".join(_ARCHITECTURES))


def _check_fixed(fields: _Fields, family: str) -> None:
  """Refuses what our model would compute differently, and logs the fields that no rule knows."""
  for name, allowed in _FIXED[family].items():
    value = fields.values.get(name, allowed[0])
    fields.read.add(name)
    if name == "rope_scaling" and isinstance(value, Mapping) and _rope_kind(value) == "default":
      continue
    if value not in allowed:
      raise fields.refuse(name, value, " or ".join(str(choice) for choice in allowed))
  fields.get("sliding_window")  # a window is stored even where use_sliding_window turns it off
  if other := sorted(set(fields.get("layer_types", [])) - {"full_attention"}):
    raise fields.refuse("layer_types", other[0], "full_attention")


def _rope_kind(scaling: Mapping[str, Any]) -> str:
  return scaling.get("rope_type", scaling.get("type", "default"))


def _rope_theta(fields: _Fields) -> float:
  """The base of the rotary angles; newer files keep it inside rope_parameters."""
  parameters = fields.get("rope_parameters", {})
  if _rope_kind(parameters) != "default" or parameters.get("partial_rotary_factor", 1.0) != 1.0:
    raise fields.refuse("rope_parameters", parameters, "of rope_type default, unscaled")
  theta = fields.get("rope_theta", parameters.get("rope_theta"))
  return float(fields.need("rope_theta") if theta is None else theta)


def _decoder_config(fields: _Fields, family: str) -> TransformerConfig:
  d_model, n_heads = fields.need("hidden_size"), fields.need("num_attention_heads")
  pattern, alignment = _BEHAVIOUR[family]
  return TransformerConfig(
    vocab_size=fields.need("vocab_size"),
    d_model=d_model,
    n_layers=fields.need("num_hidden_layers"),
    n_heads=n_heads,
    n_kv_heads=fields.get("num_key_value_heads", n_heads),
    head_dim=fields.get("head_dim", d_model // n_heads),
    d_ff=fields.need("intermediate_size"),
    norm_epsilon=float(fields.need("rms_norm_eps")),
    rope_theta=_rope_theta(fields),
    qkv_bias=family in _QKV_BIAS,
    qk_norm=family in _QK_NORM,
    tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
    pattern=pattern,
    alignment=alignment,
  )


def _llada_config(fields: _Fields) -> TransformerConfig:
  d_model, n_heads = fields.need("d_model"), fields.need("n_heads")
  for name in _LLADA_EXPLICIT:
    fields.need(name)
  pattern, alignment = _BEHAVIOUR["llada"]
  return TransformerConfig(
    vocab_size=fields.get("embedding_size", fields.need("vocab_size")),
    d_model=d_model,
    n_layers=fields.need("n_layers"),
    n_heads=n_heads,
    n_kv_heads=fields.get("n_kv_heads", n_heads),
    head_dim=d_model // n_heads,
    d_ff=fields.need("mlp_hidden_size"),
    norm_epsilon=float(fields.need("rms_norm_eps")),
    rope_theta=_rope_theta(fields),
    tie_embeddings=bool(fields.get("weight_tying", False)),
    pattern=pattern,
    alignment=alignment,
  )


def _bert_config(fields: _Fields) -> TransformerConfig:
  d_model, n_heads = fields.need("hidden_size"), fields.need("num_attention_heads")
  encoder = fields.need("architectures")[0]
  if encoder not in ("BertModel", "BertForMaskedLM", "BertForPreTraining"):
    raise fields.refuse("architectures", encoder, "BertModel, BertForMaskedLM, BertForPreTraining")
  pattern, alignment = _BEHAVIOUR["bert"]
  return TransformerConfig(
    vocab_size=fields.need("vocab_size"),
    d_model=d_model,
    n_layers=fields.need("num_hidden_layers"),
    n_heads=n_heads,
    n_kv_heads=n_heads,
    head_dim=d_model // n_heads,
    d_ff=fields.need("intermediate_size"),
    norm="layernorm",
    norm_position="post",
    norm_epsilon=float(fields.need("layer_norm_eps")),
    mlp="gelu",
    position_encoding="learned",
    max_positions=fields.need("max_position_embeddings"),
    token_types=fields.need("type_vocab_size"),
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tie_embeddings=True,
    head="none" if encoder == "BertModel" else "mlm",
    pattern=pattern,
    alignment=alignment,
  )


def read_spec(folder: Path) -> ModelSpec:
  """The model that a folder's config.json describes, in float32; `load_hf` puts in the dtype that the tensors have.

  Raises:
    ValueError: an unknown model_type, a missing field, or a field whose value our model would not honour; named.
    FileNotFoundError: there is no config.json.
  """
  path = folder / CONFIG_FILE
  if not path.exists():
    raise FileNotFoundError(f"{folder}: has no {CONFIG_FILE}; a Hugging Face folder has one beside its weights")
  fields = _Fields(path, json.loads(path.read_text()))
  family = _family(fields)
  _check_fixed(fields, family)
  if family == "llada":
    config = _llada_config(fields)
  else:
    config = _bert_config(fields) if family == "bert" else _decoder_config(fields, family)
  block_size = fields.need(_BLOCK_FIELD[family]) if family in _BLOCK_FIELD else 1
  if unknown := sorted(set(fields.values) - fields.read - _HARMLESS):
    _LOG.warning("%s: no rule knows the fields %s; they change nothing here", path, ", ".join(unknown))
  eos = fields.get("eos_token_id")
  return ModelSpec(
    family=family,
    config=config,
    block_size=block_size,
    vocab_size=fields.need("vocab_size"),
    mask_id=fields.get("mask_token_id"),
    pad_id=fields.get("pad_token_id"),
    bos_id=fields.get("bos_token_id"),
    eos_id=eos[0] if isinstance(eos, list) else eos,
  )


def updated_config_json(text: str, spec: ModelSpec) -> str:
  """A config.json with the embedding rows and the dtype of a model whose embedding grew or whose precision changed."""
  values = json.loads(text)
  if spec.family == "llada":
    values |= {"embedding_size": spec.config.vocab_size, "vocab_size": spec.vocab_size}
  else:
    values["vocab_size"] = spec.config.vocab_size
  values["dtype" if "dtype" in values else "torch_dtype"] = spec.config.param_dtype
  return json.dumps(values, indent=2) + "\n"
