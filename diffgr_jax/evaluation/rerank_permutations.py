"""Rankings that cannot be invalid: each list's candidates, assigned to the places of the answer behind its reasoning.

    written    so  b <c3>  first | b <c3> d <c1> b <c3>     the reasoning is the model's own, its answer repaired:
    read       so  b <c3>  first | b <c3> d <c1> a <c8>     a place is read behind those before it
    scores     [i, j] = log p(candidate j at place i)       in one pass: of an autoregressive model behind all that
                                                            stands before, of a block model from MASK behind the blocks
    ranking    what rerank/permutation.py assigns by them

A candidate is read by its label, where the template has labels (its ID only follows), else by the codes of its ID,
level by level. This is an extra row of a table, never the headline: it hides what free decoding would have done.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.evaluation.rerank_answers import Written, list_prompts
from diffgr_jax.models.attention import Layout
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, bind
from diffgr_jax.rerank.answer import AnswerForm, Answers, answer_form, answer_starts, rankings
from diffgr_jax.rerank.chat import item_tokens
from diffgr_jax.rerank.permutation import greedy_permutations, optimal_permutations
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.stages.two_stream import Clean, read_noisy
from diffgr_jax.training.rerank_run import RerankRun

PERMUTATIONS = ("optimal", "left_to_right", "surest_first")


def permuted(
  run: RerankRun, params: Params, tasks: Sequence[RankingTask], written: Written, answers: Answers, how: str
) -> list[tuple[int, ...]]:
  """A ranking of each list's candidates, whatever its answer was.

  Args:
    run: of the weights.
    params: that wrote the answers.
    tasks: the lists.
    written: what was written to each.
    answers: the same, parsed.
    how: one of PERMUTATIONS.

  Raises:
    ValueError: `how` is none of them.
  """
  if how not in PERMUTATIONS:
    raise ValueError(f"permutations are one of {', '.join(PERMUTATIONS)}, not {how!r}")
  scores = place_scores(run, params, tasks, written, answers)
  chosen = optimal_permutations(scores) if how == "optimal" else greedy_permutations(scores, how)  # pyright: ignore
  return [
    tuple(task.candidates[at] for at in row[: len(task.candidates)])
    for task, row in zip(tasks, chosen.tolist(), strict=True)
  ]


def place_scores(
  run: RerankRun, params: Params, tasks: Sequence[RankingTask], written: Written, answers: Answers
) -> Float[np.ndarray, "Q C C"]:
  """log p(candidate j at place i) of every list; of a shorter list, what lies behind its end is the identity."""
  form = answer_form(run.vocab, run.prompts.template)
  names = _names(run, form, tasks)  # [Q, C, K]
  rows, slots, begins = _laid_out(run, form, tasks, written, answers, names)
  size = run.config.block_size if run.converted else 1
  batch = min(run.config.eval_batch_size, len(tasks))
  read = functools.partial(_read, params, config=run.model, block_size=size, mask_id=run.vocab.mask_id)
  blocks = -(-int((rows.shape[1] - begins).max()) // size) + 1
  found = []
  for start in tqdm(range(0, len(tasks), batch), desc="permutations", unit="batch", leave=False, delay=5.0):
    own = np.resize(np.arange(start, min(start + batch, len(tasks))), batch)  # the last batch is filled with its own
    scores = read(rows[own], begins[own], slots[own], names[own], run.banned, blocks=blocks)
    found.append(np.asarray(scores)[: len(tasks) - start])
  scores = np.concatenate(found).astype(np.float64)
  there = np.arange(scores.shape[1]) < np.array([len(task.candidates) for task in tasks])[:, None]
  inside = there[:, :, None] & there[:, None]
  behind = ~there[:, :, None] & np.eye(scores.shape[1], dtype=bool)
  return np.where(inside, scores, np.where(behind, 0.0, -np.inf))


def _names(run: RerankRun, form: AnswerForm, tasks: Sequence[RankingTask]) -> Int[np.ndarray, "Q C K"]:
  """The tokens that a candidate is read by: its label, or its ID."""
  width = max(len(task.candidates) for task in tasks)
  if form.labels:
    return np.broadcast_to(np.array(form.labels[:width])[None, :, None], (len(tasks), width, 1))
  codes = item_tokens(run.codes, run.vocab)
  return np.stack([codes[np.resize(np.array(task.candidates), width)] for task in tasks])


def _laid_out(
  run: RerankRun,
  form: AnswerForm,
  tasks: Sequence[RankingTask],
  written: Written,
  answers: Answers,
  names: Int[np.ndarray, "Q C K"],
) -> tuple[Int[np.ndarray, "Q T"], Int[np.ndarray, "Q C K"], Int[np.ndarray, "Q"]]:
  """Messages whose answers are repaired, the slots of each place's name in them, and where their answers begin."""
  ids, repaired = item_tokens(run.codes, run.vocab), rankings(answers, "repair")
  marks = answer_starts(written.tokens, form.marker) - len(form.marker)
  ended = (written.tokens == run.vocab.eos_id).any(axis=1)
  messages, slots, begins = [], np.zeros(names.shape, np.int32), np.zeros(len(tasks), np.int32)
  for row, (task, prompt) in enumerate(zip(tasks, list_prompts(run, tasks), strict=True)):
    length = int(written.length[row]) - int(ended[row])
    reasoning = written.tokens[row, : marks[row] if marks[row] >= 0 else length].tolist()
    message = [*prompt, *reasoning]
    begins[row] = len(message)
    message += [*form.marker, *form.list_open]
    for place, at in enumerate(repaired[row, : len(task.candidates)].tolist()):
      message += form.separator if place else ()
      slots[row, place] = len(message) + np.arange(names.shape[2])
      message += [*form.labels[at : at + 1], *ids[task.candidates[at]].tolist()]
    messages.append([*message, *form.list_close, form.eos_id])
  step = 32 * (run.config.block_size if run.converted else 1)
  tokens = np.full((len(tasks), -(-max(map(len, messages)) // step) * step), run.vocab.pad_id, np.int32)
  for row, message in enumerate(messages):
    tokens[row, : len(message)] = message
  return tokens, slots, begins


@functools.partial(jax.jit, static_argnames=("config", "block_size", "mask_id", "blocks"))
def _read(
  params: Params,
  tokens: Int[Array, "B T"],
  begin: Int[Array, "B"],
  slots: Int[Array, "B C K"],
  names: Int[Array, "B C K"],
  banned: Bool[Array, "V"],
  *,
  config: TransformerConfig,
  block_size: int,
  mask_id: int,
  blocks: int,
) -> Float[Array, "B C C"]:
  """Scores of the candidates (by their names) at the places (by their slots)."""
  model, (rows, length) = bind(config, params), tokens.shape
  position = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], tokens.shape)
  one = jnp.ones_like(tokens)
  flat = slots.reshape(rows, -1)
  if config.pattern == "causal":
    hidden = model(tokens, Layout(position, one, 0 * one), pattern="causal", aligned=True)
    states = jnp.take_along_axis(hidden, (flat - 1)[..., None], axis=1)
  else:
    first = begin // block_size * block_size
    at = first[:, None] + jnp.arange(blocks * block_size)[None]
    x_t = jnp.where(at < begin[:, None], jnp.take_along_axis(tokens, jnp.minimum(at, length - 1), axis=1), mask_id)
    at = jnp.where(at < length, at, -1)
    read = read_noisy(model, Clean(tokens, position, one), x_t, at, jnp.ones_like(at), block_size)
    states = jnp.take_along_axis(read, (flat - first[:, None])[..., None], axis=1)
  logits = jnp.where(banned[None, None], -jnp.inf, model.logits(states))
  log_probs = jax.nn.log_softmax(logits).reshape(*slots.shape, -1)  # [B, C, K, V]
  wanted = jnp.broadcast_to(names[:, None].swapaxes(2, 3), (rows, slots.shape[1], slots.shape[2], names.shape[1]))
  return jnp.take_along_axis(log_probs, wanted, axis=-1).sum(axis=2)
