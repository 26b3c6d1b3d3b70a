"""A re-ranker's answers to lists: decoded in batches of one shape, parsed, and counted.

lists -> prompts -> answers, token by token or block by block -> rankings of the candidates, and what was wrong

Nothing outside the model keeps an answer valid. A forward is a pass over a row: of an autoregressive decoder one a
token; of a block decoder a denoising pass, and reasoning and answer are told apart by the passes that committed them.
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass
import functools
import time
from typing import Any

import jax
from jaxtyping import Float, Int
import numpy as np
from tqdm import tqdm

from diffgr_jax.decoding.autoregressive import decode_autoregressive, pad_prompts
from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.block_state import answers as block_answers
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.evaluation.rerank import ranking_metrics
from diffgr_jax.models.inference import decoding_params
from diffgr_jax.models.transformer import Params
from diffgr_jax.parallel.distributed import fetch
from diffgr_jax.parallel.mesh import batch_shards
from diffgr_jax.parallel.rules import frozen_rules
from diffgr_jax.rerank.answer import Answers, answer_form, answer_starts, candidate_codes, parse_tokens, rankings
from diffgr_jax.rerank.chat import encode_in_parts
from diffgr_jax.rerank.model_traces import Sample
from diffgr_jax.rerank.prompt import render_prompt
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.rerank_run import RerankRun

_BUCKET = 32  # prompts are padded to a multiple


@dataclass(frozen=True, eq=False)
class Written:
  """What a model wrote for each of Q lists.

  Attributes:
    tokens: up to and with [EOS], then PAD.
    length: tokens of each answer.
    passes: the pass, from 0, that committed each token; -1 behind the end.
    forwards: passes of each row.
    parts: of `reasoning` and `answer`: tokens, and the passes that committed one of them.
    seconds: of decoding all lists once, compilation apart.
  """

  tokens: Int[np.ndarray, "Q G"]
  length: Int[np.ndarray, "Q"]
  passes: Int[np.ndarray, "Q G"]
  forwards: Int[np.ndarray, "Q"]
  parts: dict[str, tuple[Int[np.ndarray, "Q"], Int[np.ndarray, "Q"]]]
  seconds: float


def list_prompts(run: RerankRun, tasks: Sequence[RankingTask]) -> list[list[int]]:
  """Each list's prompt as tokens."""
  messages = (render_prompt(task, run.shop, run.prompts) for task in tasks)
  how = run.vocab, run.codes, run.prompts.template
  return [one.tokens.tolist() for one in encode_in_parts(messages, len(tasks), "prompts", *how)]


def write_answers(
  run: RerankRun,
  params: Params,
  tasks: Sequence[RankingTask],
  *,
  batch_size: int | None = None,
  seed: int = 0,
  quiet: bool = False,
) -> Written:
  """Decodes an answer to each list, as the run's config says.

  Args:
    run: its `decoder`, policy, temperature and budget.
    params: the weights.
    tasks: the lists.
    batch_size: lists decoded together; None: the config's, or all of fewer lists.
    seed: of row r's draws, with r: a row decodes to the same tokens in any batch.
    quiet: no progress bar.
  """
  prompts = list_prompts(run, tasks)
  batch = batch_size or min(run.config.eval_batch_size, len(tasks))
  decode = _decoder(run, params, max(map(len, prompts)), batch)
  seeds = np.arange(len(tasks), dtype=np.int32) + np.int32(seed)
  decode(prompts[:batch], seeds[:batch])  # compiles
  found, seconds = [], 0.0
  starts = range(0, len(prompts), batch)
  for start in tqdm(starts, desc="answers", unit="batch", leave=False, disable=quiet or None):
    began = time.perf_counter()
    found.append(decode(prompts[start : start + batch], seeds[start : start + batch]))
    seconds += time.perf_counter() - began
  tokens, passes = (np.concatenate(column) for column in zip(*found, strict=True))
  return _written(run, tokens, passes, seconds)


def decode_prompts(run: RerankRun, params: Params, prompts: Sequence[Sequence[int]]) -> Int[np.ndarray, "Q G"]:
  """What the run's decoder writes behind any prompts, PAD behind an end."""
  batch = min(run.config.eval_batch_size, len(prompts))
  decode = _decoder(run, params, max(map(len, prompts)), batch)
  starts, seeds = range(0, len(prompts), batch), np.arange(len(prompts), dtype=np.int32)
  return np.concatenate([decode([*prompts[at : at + batch]], seeds[at : at + batch])[0] for at in starts])


def _decoder(run: RerankRun, params: Params, longest: int, batch: int):
  """A function of prompts and seeds: tokens [rows, G], PAD behind the end, and the pass that committed each."""
  config, vocab = run.config, run.vocab
  width, room = -(-longest // _BUCKET) * _BUCKET, config.max_new_tokens
  params = jax.jit(functools.partial(decoding_params, run.model))(params)
  stops = [(vocab.eos_id,)]
  how: dict[str, Any] = dict(config=run.model, max_new_tokens=room, stops=stops)
  how["sampling"] = make_sampling(config.temperature)

  def autoregressive(prompts, seeds):
    tokens, valid = pad_prompts(prompts, vocab.pad_id, width=width, rows=batch)
    seeds = np.resize(seeds, batch)
    rows = decode_autoregressive(params, tokens, valid, seeds, run.banned, pad_id=vocab.pad_id, **how)
    tokens = fetch(rows.tokens)[: len(prompts)]
    place = np.arange(room)[None]
    return tokens, np.where(place < fetch(rows.length)[: len(prompts), None], place, -1)

  size = config.block_size
  options = BlockOptions(size, make_policy(config.policy, config.threshold), vocab.mask_id, pad_id=vocab.pad_id)
  shape = dict(context=-(-longest // size) * size, blocks=-(-(size - 1 + room) // size))

  def block(prompts, seeds):
    asked = [*prompts, *[prompts[-1]] * (batch - len(prompts))]  # a block decoder's rows all have a prompt
    tokens, valid = pad_prompts(asked, vocab.pad_id, width=width, rows=batch)
    seeds, steps = np.resize(seeds, batch), config.decode_steps or None
    state = decode_blocks(params, tokens, valid, seeds, run.banned, options=options, steps=steps, **how, **shape)
    tokens, _ = block_answers(state, room, stops, mask_id=vocab.mask_id, pad_id=vocab.pad_id)
    at = np.minimum(fetch(state.start)[:, None] + np.arange(room)[None], state.canvas.shape[1] - 1)
    step = np.take_along_axis(fetch(state.step_map), at, axis=1)
    tokens = fetch(tokens)
    return tokens[: len(prompts)], np.where(tokens != vocab.pad_id, step, -1)[: len(prompts)]

  return autoregressive if run.decoder == "autoregressive" else block


def make_sampler(run: RerankRun, params: Params, tasks: Sequence[RankingTask], batch: int) -> Sample:
  """What `rerank.model_traces.ModelTraces` draws answers with: the run's decoder at its temperature.

  Args:
    run: an autoregressive run.
    params: its weights.
    tasks: all that will be asked for, so that one program serves them.
    batch: prompts of a call, at most.
  """
  decode = _decoder(run, params, max(map(len, list_prompts(run, tasks))), batch)

  def sample(prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    seeds = (np.arange(len(prompts), dtype=np.uint32) + np.uint32(seed)).view(np.int32)
    tokens, passes = decode([list(prompt) for prompt in prompts], seeds)
    return [row[own >= 0].tolist() for row, own in zip(tokens, passes, strict=True)]

  return sample


def _written(run: RerankRun, tokens: np.ndarray, passes: np.ndarray, seconds: float) -> Written:
  form = answer_form(run.vocab, run.prompts.template)
  length = (tokens != run.vocab.pad_id).sum(axis=1)
  start = answer_starts(tokens, form.marker) - len(form.marker)
  start = np.where(start < 0, length, start)[:, None]
  place = np.arange(tokens.shape[1])[None]
  inside = place < length[:, None]
  parts = {}
  for name, where in (("reasoning", inside & (place < start)), ("answer", inside & (place >= start))):
    used = [len(np.unique(row[own])) for row, own in zip(passes, where, strict=True)]
    parts[name] = (where.sum(axis=1), np.array(used, np.int64))
  return Written(tokens, length, passes, passes.max(axis=1) + 1, parts, seconds)


def parse_answers(run: RerankRun, written: Written, tasks: Sequence[RankingTask]) -> Answers:
  """What the answers say."""
  form = answer_form(run.vocab, run.prompts.template)
  return parse_tokens(written.tokens, form, candidate_codes(run.codes, [task.candidates for task in tasks]))


def ranked(answers: Answers, tasks: Sequence[RankingTask], invalid: str) -> list[tuple[int, ...]]:
  """The rankings as items; `invalid`: see `rerank.answer.rankings`."""
  places = rankings(answers, "repair" if invalid == "repair" else "input_order")
  return [
    tuple(task.candidates[at] for at in row[: len(task.candidates)])
    for task, row in zip(tasks, places.tolist(), strict=True)
  ]


def _write_where_they_lie(run: RerankRun, params: Params, tasks: Sequence[RankingTask]) -> Written:
  """On one device of each process if every device has all weights, else on the mesh that they are split over."""
  leaves = jax.tree.leaves(params)
  if all(leaf.is_fully_replicated for leaf in leaves):
    return write_answers(run, jax.tree.map(lambda leaf: leaf.addressable_data(0), params), tasks, quiet=True)
  model = dataclasses.replace(run.model, rules=frozen_rules(run.config.decode_rules))
  mesh = leaves[0].sharding.mesh
  parts = batch_shards(mesh)
  batch = -(-min(run.config.eval_batch_size, len(tasks)) // parts) * parts
  with jax.set_mesh(mesh):
    return write_answers(dataclasses.replace(run, model=model), params, tasks, batch_size=batch, quiet=True)


def quick_figures(run: RerankRun, params: Params) -> dict[str, float]:
  """R@1, NDCG@3 and the share of valid answers on some of the valid lists, for the eye and for keep_best."""
  tasks = run.lists("valid").tasks
  count = min(run.config.watch_lists, len(tasks))
  if not count:
    return {}
  chosen = [tasks[at] for at in np.linspace(0, len(tasks) - 1, count).astype(int)]
  written = _write_where_they_lie(run, params, chosen)
  answers = parse_answers(run, written, chosen)
  metrics = ranking_metrics(ranked(answers, chosen, run.config.invalid), chosen)
  figures: dict[str, Float[np.ndarray, "Q"]] = {name: metrics[name] for name in ("R@1", "NDCG@3")}
  figures["valid"] = answers.ok.astype(np.float64)
  return {f"valid {name}": float(values.mean()) for name, values in figures.items()}
