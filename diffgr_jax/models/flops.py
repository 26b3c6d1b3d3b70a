"""Floating-point operations of a model, by one rule: what the answer needs, not what the machine happens to run.

    counted        matrix products of projections, MLPs and unembedding; attention's two products over pairs of
                   positions that may see each other; three times the forward pass for a training step
    not counted    masked pairs, padding, recomputation (remat), norms, softmax, the optimizer, embedding look-ups

A multiply-add is two operations. An MFU by this rule does not rise when a kernel works on masked tiles or the backward
pass computes activations twice.
"""

import numpy as np

from diffgr_jax.models.config import PATTERNS, TransformerConfig

_TRAINING = 3  # forward, gradient of the inputs, gradient of the weights


def matmul_flops(config: TransformerConfig) -> tuple[int, int]:
  """Of one position: the layers' projections and MLPs, and the output head (0 for an encoder without one)."""
  attention = config.d_model * config.head_dim * 2 * (config.n_heads + config.n_kv_heads)
  mlp = config.d_model * config.d_ff * (3 if config.mlp == "swiglu" else 2)
  transform = config.d_model**2 if config.head == "mlm" else 0
  unembedding = config.d_model * config.vocab_size if config.head != "none" else 0
  if config.code_levels:
    unembedding = 2 * config.d_model * config.code_size  # centroids and rows of the position's level
  return 2 * config.n_layers * (attention + mlp), 2 * (transform + unembedding)


def attention_pairs(length: int, pattern: str, block_size: int = 1, canvas: int = 0) -> int:
  """Pairs (query, key) of one sequence that the pattern lets see each other.

  Args:
    length: tokens of the sequence; with `two_stream` those of x_0 alone, the pass holds twice as many.
    pattern: one of `models.config.PATTERNS`.
    block_size: of the block patterns; the last block may be shorter.
    canvas: of the prefix patterns, how many of the tokens stand behind the prompt.

  Raises:
    ValueError: an unknown pattern, or sizes below 1.
  """
  if pattern not in PATTERNS:
    raise ValueError(f"attention pattern is one of {', '.join(PATTERNS)}, not {pattern!r}")
  if length < 1 or block_size < 1:
    raise ValueError(f"length and block_size are at least 1, not {length} and {block_size}")
  if pattern == "bidirectional":
    return length**2
  if pattern in ("prefix", "prefix_causal"):
    inside = canvas**2 if pattern == "prefix" else canvas * (canvas + 1) // 2
    return (length - canvas) * length + inside
  size = 1 if pattern == "causal" else block_size
  full, rest = divmod(length, size)
  block_causal = size**2 * full * (full + 1) // 2 + rest * length
  # A noisy token sees its own noisy block and the clean blocks before it: as many keys as its clean twin sees.
  return 2 * block_causal if pattern == "two_stream" else block_causal


def forward_flops(
  config: TransformerConfig,
  batch: int,
  length: int,
  pattern: str | None = None,
  *,
  block_size: int = 1,
  logits_positions: int | None = None,
) -> int:
  """Of one forward pass over full sequences.

  Args:
    config: the model.
    batch: sequences.
    length: tokens of each; with `two_stream` those of x_0 alone.
    pattern: of attention; None takes the config's.
    block_size: of the block patterns.
    logits_positions: positions of a sequence that the output head is asked for, which behind a prefix are the canvas;
      None: `length`.
  """
  pattern = pattern or config.pattern
  body, head = matmul_flops(config)
  positions = length * (2 if pattern == "two_stream" else 1)
  asked = length if logits_positions is None else logits_positions
  pairs = attention_pairs(length, pattern, block_size, canvas=asked)
  attention = 4 * config.n_layers * config.n_heads * config.head_dim * pairs
  return batch * (positions * body + attention + asked * head)


def train_step_flops(
  config: TransformerConfig,
  batch: int,
  length: int,
  pattern: str | None = None,
  *,
  block_size: int = 1,
  logits_positions: int | None = None,
) -> int:
  """Of one training step on full sequences: forward, and a backward pass of twice the work. See `forward_flops`."""
  return _TRAINING * forward_flops(
    config, batch, length, pattern, block_size=block_size, logits_positions=logits_positions
  )


def unread_canvas_flops(config: TransformerConfig, batch: int, length: int, canvas: int) -> int:
  """Of one forward pass over prompts alone, whose code head scores an all-masked canvas: half of it, the centroids.

  Args:
    config: the model; `first_pass="prompt"`.
    batch: prompts.
    length: tokens of each.
    canvas: levels that are scored.
  """
  centroids = matmul_flops(config)[1] // 2
  return forward_flops(config, batch, length, "bidirectional", logits_positions=0) + batch * canvas * centroids


def ragged_train_step_flops(
  config: TransformerConfig, lengths: np.ndarray, pattern: str | None = None, *, logits_positions: int | None = None
) -> int:
  """Of one training step on sequences of these lengths, padding left out."""
  return sum(
    train_step_flops(config, int(rows), int(length), pattern, logits_positions=logits_positions)
    for length, rows in zip(*np.unique(lengths, return_counts=True), strict=True)
  )


def docid_step_flops(
  config: TransformerConfig, prompts: np.ndarray, canvas: int, pattern: str, *, rows: int, unread: int = 0
) -> float:
  """Of one training step of a DocID model, padding left out.

  Args:
    config: the model.
    prompts: lengths of some of the batch's prompts, which stand for all of them.
    canvas: positions of a canvas.
    pattern: of attention.
    rows: of the batch.
    unread: of these, the rows whose canvas is all masked and not read.
  """
  read = ragged_train_step_flops(config, prompts + canvas, pattern, logits_positions=canvas)
  alone = zip(*np.unique(prompts, return_counts=True), strict=True)
  short = sum(_TRAINING * unread_canvas_flops(config, int(n), int(length), canvas) for length, n in alone)
  return ((rows - unread) * read + unread * short) / len(prompts)
