"""Which stored tensor is which parameter, family by family.

    blocks.attention.query.kernel [layers, in, out]  <->  model.layers.0.self_attn.q_proj.weight [out, in], .1., .2. ...

Stored matrices are [out, in], ours are [in, out]; a layer's tensors are stacked on a leading axis. Nothing else
differs.
"""

from collections.abc import Callable, Mapping
import dataclasses

import numpy as np

from diffgr_jax.models.hf import ModelSpec
from diffgr_jax.models.tensor_file import StoredTensor

_QWEN_LAYER = {
  "attention_norm.scale": "input_layernorm.weight",
  "attention.query.kernel": "self_attn.q_proj.weight",
  "attention.query.bias": "self_attn.q_proj.bias",
  "attention.query_norm.scale": "self_attn.q_norm.weight",
  "attention.key.kernel": "self_attn.k_proj.weight",
  "attention.key.bias": "self_attn.k_proj.bias",
  "attention.key_norm.scale": "self_attn.k_norm.weight",
  "attention.value.kernel": "self_attn.v_proj.weight",
  "attention.value.bias": "self_attn.v_proj.bias",
  "attention.out.kernel": "self_attn.o_proj.weight",
  "mlp_norm.scale": "post_attention_layernorm.weight",
  "mlp.gate.kernel": "mlp.gate_proj.weight",
  "mlp.up.kernel": "mlp.up_proj.weight",
  "mlp.down.kernel": "mlp.down_proj.weight",
}
_QWEN_TOP = {
  "embed.embedding": "model.embed_tokens.weight",
  "final_norm.scale": "model.norm.weight",
  "unembed.embedding": "lm_head.weight",
}
_LLADA_LAYER = {
  "attention_norm.scale": "attn_norm.weight",
  "attention.query.kernel": "q_proj.weight",
  "attention.key.kernel": "k_proj.weight",
  "attention.value.kernel": "v_proj.weight",
  "attention.out.kernel": "attn_out.weight",
  "mlp_norm.scale": "ff_norm.weight",
  "mlp.gate.kernel": "ff_proj.weight",
  "mlp.up.kernel": "up_proj.weight",
  "mlp.down.kernel": "ff_out.weight",
}
_LLADA_TOP = {
  "embed.embedding": "model.transformer.wte.weight",
  "final_norm.scale": "model.transformer.ln_f.weight",
  "unembed.embedding": "model.transformer.ff_out.weight",
}
_BERT_LAYER = {
  "attention.query.kernel": "attention.self.query.weight",
  "attention.query.bias": "attention.self.query.bias",
  "attention.key.kernel": "attention.self.key.weight",
  "attention.key.bias": "attention.self.key.bias",
  "attention.value.kernel": "attention.self.value.weight",
  "attention.value.bias": "attention.self.value.bias",
  "attention.out.kernel": "attention.output.dense.weight",
  "attention.out.bias": "attention.output.dense.bias",
  "attention_norm.scale": "attention.output.LayerNorm.weight",
  "attention_norm.bias": "attention.output.LayerNorm.bias",
  "mlp.up.kernel": "intermediate.dense.weight",
  "mlp.up.bias": "intermediate.dense.bias",
  "mlp.down.kernel": "output.dense.weight",
  "mlp.down.bias": "output.dense.bias",
  "mlp_norm.scale": "output.LayerNorm.weight",
  "mlp_norm.bias": "output.LayerNorm.bias",
}
_BERT_TOP = {
  "embed.embedding": "{prefix}embeddings.word_embeddings.weight",
  "position_embed.embedding": "{prefix}embeddings.position_embeddings.weight",
  "type_embed.embedding": "{prefix}embeddings.token_type_embeddings.weight",
  "embed_norm.scale": "{prefix}embeddings.LayerNorm.weight",
  "embed_norm.bias": "{prefix}embeddings.LayerNorm.bias",
  "mlm.dense.kernel": "cls.predictions.transform.dense.weight",
  "mlm.dense.bias": "cls.predictions.transform.dense.bias",
  "mlm.norm.scale": "cls.predictions.transform.LayerNorm.weight",
  "mlm.norm.bias": "cls.predictions.transform.LayerNorm.bias",
  "mlm.bias": "cls.predictions.bias",
}
# family -> (names outside the layers, where layer i stands, names inside a layer); other families use Qwen's names
_NAMES = {
  "llada": (_LLADA_TOP, "model.transformer.blocks.{i}.", _LLADA_LAYER),
  "bert": (_BERT_TOP, "{prefix}encoder.layer.{i}.", _BERT_LAYER),
}
_QWEN_NAMES = (_QWEN_TOP, "model.layers.{i}.", _QWEN_LAYER)


def key_namer(spec: ModelSpec) -> Callable[[str, int], str]:
  """A function from a parameter's path ("blocks.mlp.up.kernel") and a layer to the stored name.

  The layer is used inside `blocks` only.
  """
  top, stem, layer = _NAMES.get(spec.family, _QWEN_NAMES)

  def name(path: str, index: int = 0) -> str:
    inside = path.removeprefix("blocks.")
    template = stem + layer[inside] if inside != path else top[path]
    stored = template.format(i=index, prefix=spec.key_prefix)
    if spec.old_norm_names and "LayerNorm" in stored:
      stored = stored.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return stored

  return name


def with_stored_names(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> ModelSpec:
  """Completes a spec with how this file writes its names (only BERT has variants) and with the dtype of its tensors.

  Files of one dtype keep it; files that mix float32 and bfloat16 become float32, which holds both exactly.

  Raises:
    ValueError: a weight of another dtype, named.
  """
  if spec.family == "bert":
    prefix = "bert." if any(name.startswith("bert.") for name in stored) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in stored)
    spec = dataclasses.replace(spec, key_prefix=prefix, old_norm_names=old)
  found = set()
  for name, tensor in stored.items():
    if is_extra(spec, name):
      continue
    if tensor.dtype.name not in ("float32", "bfloat16"):
      raise ValueError(f"{tensor.path}: tensor {name} is {tensor.dtype}; weights may be float32 or bfloat16")
    found.add(tensor.dtype.name)
  dtype = "bfloat16" if found == {"bfloat16"} else "float32"
  return dataclasses.replace(spec, config=dataclasses.replace(spec.config, param_dtype=dtype, compute_dtype=dtype))


def is_extra(spec: ModelSpec, name: str) -> bool:
  """Whether a stored tensor is not the model's, and so kept aside: buffers, BERT's pooler, the next-sentence head."""
  if name.endswith(("rotary_emb.inv_freq", "embeddings.position_ids")):
    return True
  if spec.family != "bert":
    return False
  return name.startswith((f"{spec.key_prefix}pooler.", "cls.seq_relationship."))


def aliases(spec: ModelSpec) -> dict[str, str]:
  """Stored names that repeat another tensor in a tied model, and which one: they must be equal to it."""
  name = key_namer(spec)
  if spec.family == "bert" and spec.config.head == "mlm":
    return {
      "cls.predictions.decoder.weight": name("embed.embedding", 0),
      "cls.predictions.decoder.bias": name("mlm.bias", 0),
    }
  if spec.family != "bert" and spec.config.tie_embeddings:
    top = _NAMES.get(spec.family, _QWEN_NAMES)[0]
    return {top["unembed.embedding"]: name("embed.embedding", 0)}
  return {}


def stored_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of one stored tensor of a parameter: without the layer axis, matrices turned to [out, in]."""
  if path.startswith("blocks."):
    shape = shape[1:]
  return shape[::-1] if path.endswith(".kernel") else shape


def to_stored(path: str, values: np.ndarray) -> np.ndarray:
  """A parameter (one layer of it) as it is stored; its own inverse."""
  return values.T if path.endswith(".kernel") else values
