"""What a transformer is, as plain values: one frozen dataclass describes every family that the project loads.

A config is hashable, so it can be a static argument of `jax.jit`; two equal configs compile once.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from diffgr_jax.parallel.rules import Place

PATTERNS = ("causal", "bidirectional", "prefix", "prefix_causal", "block_causal", "two_stream")
PROJECTIONS = ("query", "key", "value", "out", "gate", "up", "down")
_CHOICES = {
  "norm": ("rmsnorm", "layernorm"),
  "norm_position": ("pre", "post"),
  "mlp": ("swiglu", "gelu"),
  "position_encoding": ("rope", "learned"),
  "head": ("linear", "mlm", "none"),
  "pattern": PATTERNS,
  "alignment": ("same_position", "shifted"),
  "first_pass": ("canvas", "prompt"),
  "remat": ("none", "dots", "full"),
  "param_dtype": ("float32", "bfloat16"),
  "compute_dtype": ("float32", "bfloat16"),
  "attention": ("auto", "reference", "splash", "flash"),
}


_OF_A_JOB = ("attention", "rules")


@dataclass(frozen=True)
class TransformerConfig:
  """Sizes, parts and precision of one transformer.

  Precision policy: parameters live in `param_dtype`; matmuls and the residual stream run in `compute_dtype`;
  normalisation statistics, attention softmax, logits, losses and every reduction are float32 whatever the rest is.
  """

  vocab_size: int  # rows of the embedding, padding rows included
  d_model: int
  n_layers: int
  n_heads: int
  n_kv_heads: int  # key/value heads; n_heads must be a multiple (grouped-query attention)
  head_dim: int
  d_ff: int
  norm: str = "rmsnorm"  # rmsnorm | layernorm
  norm_position: str = "pre"  # pre | post (BERT)
  norm_epsilon: float = 1e-6
  mlp: str = "swiglu"  # swiglu | gelu (exact, with erf)
  position_encoding: str = "rope"  # rope | learned
  rope_theta: float = 10_000.0
  max_positions: int = 0  # rows of the learned position table; unused with rope
  token_types: int = 0  # rows of the token-type table; 0: none
  qkv_bias: bool = False
  out_bias: bool = False  # on the attention's output projection
  mlp_bias: bool = False
  qk_norm: bool = False  # RMSNorm over head_dim on queries and keys, before RoPE
  tie_embeddings: bool = True
  head: str = "linear"  # linear | mlm (BERT: dense, gelu, LayerNorm, tied embedding, bias) | none
  pattern: str = "bidirectional"  # the attention pattern the weights were trained for
  code_levels: int = 0  # levels of learned DocIDs with a head of their own (code_head.py); 0: none
  code_size: int = 0  # codes a level
  word_levels: int = 0  # the last so many of the code levels name pieces of text (docid/words.py)
  word_rows: tuple[int, int] = (0, 0)  # the vocabulary's rows of those pieces: the first, and behind the last
  first_pass: str = "canvas"  # what a code head reads where all of the canvas is masked: canvas | prompt, alone
  alignment: str = "same_position"  # same_position: logit i predicts token i | shifted: logit i-1 does
  remat: str = "none"  # none | dots (keep matmul outputs) | full (keep layer inputs only)
  lora_rank: int = 0  # of adapters beside frozen projections (lora.py); 0: none
  lora_alpha: float = 16.0  # an adapter's output is multiplied by lora_alpha / lora_rank
  lora_targets: tuple[str, ...] = ()  # which projections: query, key, value, out, gate, up, down
  param_dtype: str = "float32"
  compute_dtype: str = "float32"
  attention: str = "auto"  # reference | splash (TPU) | flash (GPU) | auto: by where it runs (kernels.py)
  rules: tuple[tuple[str, Place], ...] = ()  # activations on a mesh (parallel/rules.py); (): as the compiler finds best

  def __post_init__(self):
    for field, allowed in _CHOICES.items():
      if getattr(self, field) not in allowed:
        raise ValueError(f"model.{field} is one of {', '.join(allowed)}, not {getattr(self, field)!r}")
    for field in ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "head_dim", "d_ff"):
      if getattr(self, field) < 1:
        raise ValueError(f"model.{field} is at least 1, not {getattr(self, field)}")
    unknown = sorted(set(self.lora_targets) - set(PROJECTIONS))
    if unknown or bool(self.lora_rank) != bool(self.lora_targets):
      raise ValueError(
        f"model.lora_targets are some of {', '.join(PROJECTIONS)} where model.lora_rank is above 0, and none elsewhere;"
        f" not {', '.join(unknown or self.lora_targets) or 'none'} with rank {self.lora_rank}"
      )
    if self.n_heads % self.n_kv_heads:
      raise ValueError(f"model.n_heads ({self.n_heads}) must be a multiple of model.n_kv_heads ({self.n_kv_heads})")
    if self.position_encoding == "rope" and self.head_dim % 2:
      raise ValueError(f"model.head_dim must be even for rope, not {self.head_dim}")
    if self.position_encoding == "learned" and self.max_positions < 1:
      raise ValueError("model.max_positions must be set when model.position_encoding is 'learned'")
    if (self.code_levels > 0) != (self.code_size > 0):
      raise ValueError(
        "model.code_levels and model.code_size are both 0 or both above it, not"
        f" {self.code_levels} and {self.code_size}"
      )
    first, end = self.word_rows
    if not 0 <= self.word_levels <= self.code_levels or (self.word_levels > 0) != (0 < first < end <= self.vocab_size):
      raise ValueError(
        f"model.word_levels is at most model.code_levels ({self.code_levels}) and needs model.word_rows inside the"
        f" vocabulary; not {self.word_levels} with rows {self.word_rows}"
      )
    if self.first_pass == "prompt" and not self.code_levels:
      raise ValueError("model.first_pass 'prompt' is read by a code head: set model.code_levels, or take 'canvas'")
    if self.head == "mlm" and not self.tie_embeddings:
      raise ValueError("model.head 'mlm' ties its output to the embedding: set model.tie_embeddings to True")

  @property
  def prompt_pattern(self) -> str:
    """How an autoregressive decoder reads its prompt."""
    return "bidirectional" if self.pattern == "prefix_causal" else "causal"

  def to_dict(self) -> dict:
    """What weights mean and how they are run, but not on which machine: that is the job's, not the model's."""
    return {name: value for name, value in dataclasses.asdict(self).items() if name not in _OF_A_JOB}

  @classmethod
  def from_dict(cls, values: dict) -> "TransformerConfig":
    """Builds a config from plain values; an unknown field is refused by name."""
    known = {field.name for field in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - known):
      raise ValueError(f"model has no field {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    tuples: Any = {"lora_targets": (), "word_rows": (0, 0)}
    return cls(**{**values, **{name: tuple(values.get(name, usual)) for name, usual in tuples.items()}})  # from JSON
