"""Re-ranking stages that learn from what the model writes: on-policy distillation and RL, as jobs.

    training lists -> prompts -> the model's own answers (batched, jitted, with the weights that are trained)
      opd   -> the frozen teacher's distributions at their tokens
      rl    -> parsed, rewarded, compared inside each group
    -> the batch of a train step (stages/opd.py, stages/rl.py)

WORKDIR/prompts.npz   the lists as prompts, with candidates and targets;  rollouts/  rounds (rollouts.py)
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
import time
from typing import Any

import grain
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Int
import numpy as np

from diffgr_jax.data.pipeline import row_batches
from diffgr_jax.decoding.autoregressive import decode_autoregressive, pad_prompts
from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.policies import make_policy
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.trajectory import autoregressive_trajectories, block_trajectories, generated
from diffgr_jax.evaluation.rerank_answers import list_prompts
from diffgr_jax.models.transformer import Params, abstract_params, logical_axes
from diffgr_jax.parallel.distributed import fetch, in_turn, process_rows
from diffgr_jax.parallel.rules import frozen_rules, shard_batch, tree_shardings
from diffgr_jax.rerank.answer import Answers, Verdict, answer_form, candidate_codes, parse_tokens
from diffgr_jax.rerank.reward import answer_rewards
from diffgr_jax.stages import opd, rl
from diffgr_jax.stages.policy import Policy
from diffgr_jax.stages.replay import REPLAY
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.fields import Config
from diffgr_jax.training.metrics import Collapse
from diffgr_jax.training.rerank_job import RerankJob, rollout_flops
from diffgr_jax.training.rerank_options import OPD, RL, rollout_context
from diffgr_jax.training.rerank_run import RerankRun, check_same_tokens, open_rerank, prepare_rerank, writing_policy
from diffgr_jax.training.rollouts import Figures, RolloutRows, Rounds, Rows
from diffgr_jax.training.speed import Work

PROMPTS_FILE = "prompts.npz"
_PASSES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # widths of `copy`: a program each


@dataclass(frozen=True, eq=False)
class Asked:
  """The lists that answers are written to: prompts that fit, their candidates and targets."""

  prompts: list[np.ndarray]
  candidates: Int[np.ndarray, "N K"]  # positions in the shop
  targets: Int[np.ndarray, "N"]  # places among the candidates


@dataclass(frozen=True)
class Teacher:
  """The frozen model that says more of a rollout, and the workdir of its weights."""

  policy: Policy
  workdir: Path


@dataclass(frozen=True, eq=False)
class RolloutJob(RerankJob):
  """See `RollsOut`."""

  asked: Asked = field(kw_only=True)
  teacher: Teacher | None = field(kw_only=True)  # opd, and rl with a KL
  rounds: list[Rounds] = field(default_factory=list, kw_only=True)  # made at the first step

  def batches(self, mesh: Mesh) -> grain.DatasetIterator:
    config = self.config
    count, a_step = len(self.asked.prompts), config.batch_size // config.group
    if jax.process_index() == 0:
      print(f"{count} lists, {a_step} a step, {config.group} rollouts of each", flush=True)
    rows = RolloutRows(count, config.group, config.seed)
    return row_batches(rows, process_rows(mesh, config.batch_size), config.batch_size)

  def roll_out(self, params: Params, step: int, mesh: Mesh) -> tuple[Rows, Figures]:
    """This process's rows of what step `step` learns from, and figures of all."""
    rows, figures = self._rounds(mesh).step(params, step)
    own = process_rows(mesh, self.config.batch_size)
    return {name: x[own] for name, x in rows.items()}, figures

  def settle(self, mesh: Mesh) -> None:
    self._rounds(mesh).settle()

  def work(self, rows: dict[str, np.ndarray]) -> Work:
    config = self.config
    flops = rollout_flops(config, self.model, rows["tokens"].shape[1], rows["copy"].shape[1])
    share = config.batch_size / len(rows["length"])
    return Work(1, config.batch_size, share * float(rows["length"].sum()), float(config.batch_size * flops))

  # --- rounds ---

  def _rounds(self, mesh: Mesh) -> Rounds:
    config = self.config
    if not self.rounds:
      keep = (config.keep_checkpoints + 1) * config.checkpoint_every
      how = dict(updates=config.updates_per_rollout, ahead=config.rollout_ahead, keep_steps=keep, steps=config.steps)
      self.rounds.append(Rounds(_Writer(self, mesh).write, self.workdir, config.batch_size, **how))
    return self.rounds[0]


class _Writer:
  """Writes rollouts on a mesh, and makes batches of them."""

  def __init__(self, job: RolloutJob, mesh: Mesh):
    self._job, self._mesh, self._config = job, mesh, job.config
    self._stream = RolloutRows(len(job.asked.prompts), job.config.group, job.config.seed)
    self._policy = writing_policy(job.config, job.stage.model)
    self._last, self._teacher = time.monotonic(), None
    if job.teacher is not None:
      policy = job.teacher.policy
      model = dataclasses.replace(policy.model, rules=job.stage.model.rules)
      lie = tree_shardings(mesh, abstract_params(model), logical_axes(model), job.config.rules)
      params, step = restore_params(job.teacher.workdir, model, shardings=lie)
      if jax.process_index() == 0:
        what = "reference" if job.config.stage == RL else "teacher"
        print(f"{what}: step {step} of {job.teacher.workdir}", flush=True)
      self._teacher = dataclasses.replace(policy, model=model), params

  def write(self, params: Params, number: int, indices: Sequence[int]) -> tuple[Rows, Figures]:
    """The rollouts of a round as the rows of its steps."""
    jax.block_until_ready(params)  # the update that makes them is still under way, and is no rollout's time
    began = time.monotonic()
    config = self._config
    with jax.set_mesh(self._mesh):
      rows, answers, rewards = self._roll(params, indices)
      figures = rollout_figures(rows, answers, rewards, self._job.asked.targets[rows["list"]], self._policy.room)
      check_collapse(self._job, figures)
      written = time.monotonic()
      if config.stage == RL or config.refills:
        rows |= self._worth(answers, rewards)
        rows = self._refilled(params, rows, number)
        figures["kept"] = float(rows["kept"].mean())
      if config.stage == OPD:
        rows.pop("kept", None)  # all rollouts are learned from
      rows |= self._scores(params, rows)
    del rows["list"]
    now = time.monotonic()
    figures |= {
      "rollout_seconds": written - began,
      "scoring_seconds": now - written,
      "rollout_share": (now - began) / max(now - self._last, now - began, 1e-9),
    }
    self._last = now
    return rows, figures

  def _roll(self, params: Params, indices: Sequence[int], draw: int = 0) -> tuple[Rows, Answers, np.ndarray]:
    """Rollouts, what they say, and their rewards. `draw` tells rollouts of the same index apart."""
    job, config = self._job, self._config
    lists = np.array([self._stream[index]["list"] for index in indices])
    seeds = np.array(
      [np.random.SeedSequence([config.seed, draw, index]).generate_state(1)[0] for index in indices], np.uint32
    ).view(np.int32)
    rows = roll_out(job.run, self._policy, params, [job.asked.prompts[at].tolist() for at in lists], seeds)
    rows |= {"list": lists.astype(np.int32), "row_seed": seeds}
    tokens = _generated(rows["tokens"], rows["start"], self._policy.room)
    behind = np.arange(self._policy.room)[None] >= rows["length"][:, None]
    tokens = np.where(behind, job.run.vocab.pad_id, tokens)
    form = answer_form(job.run.vocab, job.run.prompts.template)
    candidates = job.asked.candidates[lists]
    answers = parse_tokens(tokens, form, candidate_codes(job.run.codes, candidates.tolist()))
    return rows, answers, answer_rewards(answers, job.asked.targets[lists], config.reward_alpha)

  def _worth(self, answers: Answers, rewards: np.ndarray) -> Rows:
    """Which groups teach much: RL's that differ in their rewards, and by how much; OPD's with an invalid answer."""
    config = self._config
    if config.stage == RL:
      advantage, kept = rl.group_advantages(rewards, config.group, scale=config.scale_advantages)
      return {"advantage": advantage, "kept": kept}
    return {"kept": np.repeat(~answers.ok.reshape(-1, config.group).all(axis=1), config.group)}

  def _refilled(self, params: Params, rows: Rows, number: int) -> Rows:
    """Dynamic sampling: groups of other lists in place of those that teach little."""
    group, count = self._config.group, len(rows["kept"])
    for extra in range(self._config.refills):
      empty = np.flatnonzero(~rows["kept"].reshape(-1, group)[:, 0])
      if not len(empty):
        break
      # Lists from the other end of the stream, which training does not come to.
      begin = 2**40 + (number * self._config.refills + extra) * count
      more, answers, rewards = self._roll(params, range(begin, begin + count), draw=1 + extra)
      more |= self._worth(answers, rewards)
      useful = np.flatnonzero(more["kept"].reshape(-1, group)[:, 0])[: len(empty)]
      put, take = ((at[:, None] * group + np.arange(group)[None]).reshape(-1) for at in (empty[: len(useful)], useful))
      rows, more = _same_passes(rows, more)
      rows = {name: np.array(x) for name, x in rows.items()}  # what came from a device can't be written to
      for name, x in rows.items():
        x[put] = more[name][take]
    return rows

  def _scores(self, params: Params, rows: Rows) -> Rows:
    """What a batch holds beside its rollouts: scores of a teacher, of a reference, of the weights that wrote it."""
    config, stage = self._config, self._job.stage
    if isinstance(stage, opd.OpdStage):
      assert self._teacher is not None
      policy, teacher = self._teacher
      how: dict[str, Any] = dict(
        teacher=policy, banned=stage.banned, kind=stage.kind, top_k=stage.top_k,
        temperature=config.teacher_temperature, slow=config.teacher_slow,
      )  # fmt: skip
      scores = self._in_parts(
        lambda part: opd.score(teacher, part, **how), _one_a_pass(rows) if config.teacher_slow else rows
      )
      of_token = scores["teacher_log_prob"] if stage.kind == opd.SAMPLED else scores.pop("teacher_log_prob")
      if config.teacher_passes:
        step = _generated(rows["step"], rows["start"], self._policy.room)
        scores["copy"] = opd.doubted_passes(step, rows["length"], of_token, config.teacher_passes)
      return scores
    assert isinstance(stage, rl.RlStage)
    of = lambda policy, params: self._in_parts(
      lambda part: {"it": rl.score(params, part, policy=policy, banned=stage.banned)}, rows
    )["it"]
    if stage.policy.in_blocks and stage.policy.estimator != REPLAY:
      scores = {"old_log_prob": of(stage.policy, params)}
    else:
      scores = {"old_log_prob": _generated(rows["log_prob"], rows["start"], self._policy.room)}
    if config.kl_weight:
      assert self._teacher is not None
      scores["reference_log_prob"] = of(*self._teacher)
    return scores

  def _in_parts(self, score, rows: Rows) -> Rows:
    """Scores as many rollouts at once as a part of a train step holds; every process gets all scores."""
    size = self._config.batch_size // self._config.microbatches
    own, found = process_rows(self._mesh, size), []
    for begin in range(0, len(rows["tokens"]), size):
      part = shard_batch({name: x[begin + own] for name, x in rows.items()}, self._mesh)
      found.append({name: fetch(x) for name, x in score(part).items()})
    return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


# --- writing ---


def roll_out(
  run: RerankRun, policy: Policy, params: Params, prompts: Sequence[Sequence[int]], seeds: Int[np.ndarray, "B"]
) -> Rows:
  """Rollouts of prompts as host arrays: the fields of `Trajectories`, and `copy` (stages/replay.py).

  In a job of several processes all write together, split as the mesh splits a batch, and every one gets all rows. Every
  row has `config.row_length` slots, so that all rounds share a decoder.
  """
  config, vocab, stops = run.config, run.vocab, ((run.vocab.eos_id,),)
  model = dataclasses.replace(policy.model, rules=frozen_rules(config.decode_rules))
  width = rollout_context(config)
  tokens, valid = pad_prompts(prompts, vocab.pad_id, width=width)
  how: dict[str, Any] = dict(
    config=model, max_new_tokens=policy.room, stops=stops, sampling=make_sampling(policy.temperature)
  )
  if policy.in_blocks:
    size = policy.block_size
    # The policy sees what it sees when answers are decoded: at a low temperature the distribution that tokens are drawn
    # from is sure of anything. A rollout's log-probabilities are of that one.
    options = BlockOptions(size, make_policy(config.policy, config.rollout_threshold), vocab.mask_id, records="drawn")
    shape: dict[str, Any] = dict(
      context=width, blocks=(config.row_length - width) // size, steps=config.decode_steps or None
    )
    state = decode_blocks(params, tokens, valid, seeds, run.banned, options=options, **how, **shape)
    found = _block_trajectories(state, stops, mask_id=vocab.mask_id, max_new_tokens=policy.room)
  else:
    rows = decode_autoregressive(params, tokens, valid, seeds, run.banned, pad_id=vocab.pad_id, **how)
    found = _token_trajectories(rows, tokens, valid, stops, mask_id=vocab.mask_id)
  rows = {one.name: fetch(getattr(found, one.name)) for one in dataclasses.fields(found)}
  passes = int(rows["step"].max(initial=0)) + 1 if policy.in_blocks else 1
  return rows | {"copy": _copy(len(prompts), passes)}


_block_trajectories = jax.jit(block_trajectories, static_argnames=("stops", "mask_id", "max_new_tokens"))
_token_trajectories = jax.jit(autoregressive_trajectories, static_argnames=("stops", "mask_id"))


def _copy(rows: int, passes: int) -> Int[np.ndarray, "B C"]:
  width = next((width for width in _PASSES if width >= passes), passes)
  return np.broadcast_to(np.arange(width, dtype=np.int32)[None], (rows, width)).copy()


def _one_a_pass(rows: Rows) -> Rows:
  return rows | {"copy": _copy(len(rows["copy"]), int((rows["step"] >= 0).sum(axis=1).max()))}


def _same_passes(a: Rows, b: Rows) -> tuple[Rows, Rows]:
  width = max(a["copy"].shape[1], b["copy"].shape[1])
  copy = lambda rows: rows | {"copy": _copy(len(rows["copy"]), width)}
  return copy(a), copy(b)


def _generated(x: np.ndarray, start: np.ndarray, room: int) -> np.ndarray:
  return np.asarray(generated(jnp.asarray(x), jnp.asarray(start), room))


# --- watching ---


def rollout_figures(rows: Rows, answers: Answers, rewards: np.ndarray, targets: np.ndarray, room: int) -> Figures:
  """What to watch of rollouts: their rewards, and the ways in which a policy cheats or collapses."""
  entries, ok = answers.entries, answers.ok
  width = entries.shape[1]
  in_order = (entries == np.arange(width)[None]).all(axis=1) if width else np.zeros(len(ok), bool)
  first = entries[:, 0] == targets if width else np.zeros(len(ok), bool)
  written = rows["step"] >= 0
  log_prob = _generated(rows["log_prob"], rows["start"], room)
  here = np.arange(room)[None] < rows["length"][:, None]
  passes = np.array([len(np.unique(row[own])) for row, own in zip(rows["step"], written, strict=True)])
  figures = {
    "reward": rewards.mean(),
    "rollouts R@1": (ok & first).mean(),
    "rollouts valid": ok.mean(),
    "rollouts copied": (ok & in_order).mean(),  # the input order, as it came
    "rollouts length": rows["length"].mean(),
    "rollouts entropy": -log_prob[here].mean(),  # of a token that was drawn, in nats
    "rollouts tokens a forward": rows["length"].sum() / max(passes.sum(), 1),
  }
  shares = {f"rollouts {one.name.lower()}": (answers.verdict == one).mean() for one in Verdict if one != Verdict.OK}
  return {name: float(value) for name, value in (figures | shares).items()}


def check_collapse(job: RolloutJob, figures: Figures) -> None:
  """Stops a run whose rollouts have collapsed.

  Raises:
    Collapse: fewer are valid, or their entropy is lower, than the config allows.
  """
  config = job.config
  for name, least in (("valid", config.least_valid), ("entropy", config.least_entropy)):
    value = figures[f"rollouts {name}"]
    if value < least:
      raise Collapse(
        f"rollouts have {name} {value:.3f}, below config.least_{name} {least}: see metrics.jsonl, and go on from"
        f" the last checkpoint under {job.workdir / 'checkpoints'} with a lower learning_rate"
      )


# --- jobs ---


def rollout_job(config: Config, workdir: Path) -> RolloutJob:
  """Builds, or reads, the run, its prompts and its teacher.

  Raises:
    ValueError: rounds written ahead by several processes, a teacher that does not fit; what `prepare_rerank` raises.
  """
  if jax.process_count() > 1 and config.rollout_ahead:
    raise ValueError(
      f"config.rollout_ahead is for one process, not for {jax.process_count()}: they would come to their collectives in"
      " different orders"
    )
  run = prepare_rerank(config, workdir)
  if not config.steps:
    return RolloutJob(run, (), asked=Asked([], np.zeros((0, 0), np.int64), np.zeros(0, np.int64)), teacher=None)
  return RolloutJob(run, (), asked=asked_lists(run), teacher=_teacher(run))


def _teacher(run: RerankRun) -> Teacher | None:
  """opd's teacher, or rl's reference."""
  config = run.config
  if config.stage == RL and not config.kl_weight:
    return None
  own = config.stage == RL or config.teacher_slow
  folder = config.start_from if own else config.teacher
  first = open_rerank(Path(folder))
  if not own:
    if first.converted:
      raise ValueError(f"config.teacher {folder} writes in blocks: it must be autoregressive")
    check_same_tokens(first, run, f"config.teacher {folder}")
  model = dataclasses.replace(first.model, attention=config.attention)
  policy = writing_policy(config, model)
  if config.stage == OPD and jax.process_index() == 0:
    kept = 1 if config.divergence == opd.SAMPLED else 2 * config.teacher_top_k or first.model.vocab_size
    size = 4 * config.batch_size * config.updates_per_rollout * config.max_new_tokens * kept
    print(f"its scores of a round take {size / 1e6:.0f} MB", flush=True)
  policy = dataclasses.replace(policy, block_size=config.block_size if policy.in_blocks else 1)
  return Teacher(policy, first.workdir)


def asked_lists(run: RerankRun) -> Asked:
  """The training lists as prompts, made on the first call."""
  file = run.workdir / PROMPTS_FILE
  with in_turn("prompts"):
    if not file.exists():
      tasks = run.lists("train").tasks
      prompts = list_prompts(run, tasks)
      fits = [at for at, prompt in enumerate(prompts) if len(prompt) <= rollout_context(run.config)]
      if not fits:
        raise ValueError(
          f"config.row_length {run.config.row_length} leaves {rollout_context(run.config)} slots for prompts, and none"
          f" of {len(prompts)} fits: their median is {np.median([len(prompt) for prompt in prompts]):.0f}"
        )
      if len(fits) < len(prompts):
        print(f"{len(prompts) - len(fits)} of {len(prompts)} prompts are too long, and left out", flush=True)
      partial = file.with_name(file.name + ".partial.npz")
      np.savez_compressed(
        partial,
        tokens=np.concatenate([prompts[at] for at in fits]).astype(np.int32),
        ends=np.cumsum([len(prompts[at]) for at in fits]),
        candidates=np.array([tasks[at].candidates for at in fits]),
        targets=np.array([tasks[at].target_rank for at in fits]),
      )
      partial.replace(file)
  with np.load(file) as kept:
    return Asked(np.split(kept["tokens"], kept["ends"][:-1]), kept["candidates"], kept["targets"])
