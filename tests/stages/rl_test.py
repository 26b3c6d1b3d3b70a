"""RL: ratios of 1 at the first update, exact gradients on a task that can be enumerated, groups that teach nothing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.policies import Threshold
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.trajectory import block_trajectories, generated
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind, init_params
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.parallel.rules import TRAIN_RULES, frozen_rules, shard_batch
from diffgr_jax.stages.rl import RlStage, group_advantages, k3, score
from tests.stages import rollouts as r


def scored(own, params, rewards, group, count=8, seed=0, **how):
  """Rollouts with advantages, as the stage reads them."""
  asked = [prompt for prompt in r.prompts(count // group, seed) for _ in range(group)]
  batch = r.rollouts(own, params, asked, seed=seed, **how)
  advantage, kept = group_advantages(np.asarray(rewards(batch), np.float32), group)
  old = generated(batch["log_prob"], batch["start"], own.room)
  return batch | {"advantage": jnp.asarray(advantage), "kept": jnp.asarray(kept), "old_log_prob": old}


def lengths(batch):
  return np.asarray(batch["length"])


def gradient(stage, params, batch):
  batch, count = stage.prepare(jax.random.key(0), batch)
  return jax.grad(lambda params: stage.loss(params, batch, {}, count, 8)[0])(params)


@pytest.mark.parametrize("pattern", ["causal", "block_causal"])
@pytest.mark.parametrize("devices", [1, 8])
def test_every_ratio_is_one_at_the_first_update(pattern, devices):
  rules = frozen_rules(TRAIN_RULES) if devices > 1 else ()
  own = r.policy(pattern=pattern)
  own = dataclasses.replace(own, model=dataclasses.replace(own.model, rules=rules))
  params = r.sharp_params(own.model)
  batch = scored(own, params, lengths, 4, count=16)
  stage = RlStage(own, r.BANNED)

  def metrics(batch):
    batch, count = stage.prepare(jax.random.key(0), batch)
    return stage.loss(params, batch, {}, count, 16)[1]

  if devices > 1:
    mesh = make_mesh({"data": 8})
    with jax.set_mesh(mesh):
      found = jax.jit(metrics)(shard_batch({name: np.asarray(x) for name, x in batch.items()}, mesh))
  else:
    found = jax.jit(metrics)(batch)
  assert float(found["ratio_off"]) < 1e-5
  assert float(found["clipped"]) == 0


# --- a task that can be enumerated: 3 tokens, 2 blocks of 2 positions ---

_TOKENS, _PROMPT = (8, 9, 10), [11, 12, 13, 14]


def tiny():
  own = r.policy()
  return dataclasses.replace(own, room=4, block_size=2), tuple(t for t in range(48) if t not in _TOKENS)


def reward_of(tokens):
  """Of four tokens: not additive over them."""
  return 1.0 * (tokens[0] == 9) + 2.0 * (tokens[1] == tokens[3]) - 1.0 * (tokens[2] == 8) * (tokens[0] == 10)


def distributions(own, params, canvases, banned):
  """log p at every position of whole rows that end with their last block, uncached."""
  model = bind(own.model, params)
  rows = jnp.asarray(canvases)
  hidden = model(rows, padded_layout(jnp.ones(rows.shape, bool)), pattern="block_causal", block_size=2)
  logits = model.logits(jnp.roll(hidden, 1, axis=1))
  return jax.nn.log_softmax(jnp.where(jnp.zeros(48, bool).at[jnp.asarray(banned)].set(True), -jnp.inf, logits), -1)


def enumerated(own, params, banned, tau):
  """Every trajectory of the threshold decoder: lists of (canvas, positions committed, tokens)."""
  unfinished, done = [(tuple(_PROMPT), [])], []
  while unfinished:
    row, passes = unfinished.pop()
    masked = [at for at, token in enumerate(row) if token == r.MASK]
    if not masked:
      if len(row) == 8:
        done.append((row, passes))
        continue
      row = (*row, r.MASK, r.MASK)
      masked = [len(row) - 2, len(row) - 1]
    best = np.exp(np.asarray(distributions(own, params, [row], banned)))[0, masked].max(axis=-1)
    where = [at for at, sure in zip(masked, best, strict=True) if sure > tau] or [masked[int(best.argmax())]]
    for tokens in itertools.product(_TOKENS, repeat=len(where)):
      after = list(row)
      for at, token in zip(where, tokens, strict=True):
        after[at] = token
      unfinished.append((tuple(after), [*passes, (row, where, tokens)]))
  return done


def test_the_gradient_converges_to_that_of_the_expected_reward():
  own, banned = tiny()
  params = r.sharp_params(own.model, seed=3)
  tau = 0.6
  found = enumerated(own, params, banned, tau)
  canvases = [np.pad(row, (0, 8 - len(row)), constant_values=r.MASK) for _, passes in found for row, _, _ in passes]
  # blocks behind a canvas do not exist yet in decoding, and no block sees one that comes later

  steps = [(answer, one) for answer, (_, passes) in enumerate(found) for one in passes]
  at = np.array([
    (answer, number, place, token)
    for number, (answer, (_, where, tokens)) in enumerate(steps)
    for place, token in zip(where, tokens, strict=True)
  ])  # fmt: skip
  rewards = jnp.array([reward_of(row[4:]) for row, _ in found])

  def expected(params):
    log_probs = distributions(own, params, canvases, banned)[at[:, 1], at[:, 2], at[:, 3]]
    return (jnp.exp(jax.ops.segment_sum(log_probs, at[:, 0], len(found))) * rewards).sum()

  exact = jax.grad(lambda params: expected(params) / own.room)(params)
  assert {len(passes) for _, passes in found} > {2}  # some passes commit one token, some two

  def estimate(count, seed):
    batch = rolled_out(own, params, banned, tau, count, seed)
    rewards = np.array([reward_of(row[4:8]) for row in np.asarray(batch["tokens"])], np.float32)
    batch["advantage"] = jnp.asarray(rewards - rewards.mean())
    batch["kept"] = jnp.ones(count, bool)
    batch["old_log_prob"] = generated(batch["log_prob"], batch["start"], own.room)
    return gradient(RlStage(own, banned, aggregate="constant"), params, batch)

  def error(count, seed):
    gap = jax.tree.map(lambda a, b: a + b, estimate(count, seed), exact)  # the loss is minus the reward
    return float(optax.global_norm(gap) / optax.global_norm(exact))

  few, many = np.mean([error(256, seed) for seed in range(3)]), error(16_384, 5)
  assert many < 0.06
  assert many < 0.35 * few  # it falls as the root of the number of rollouts


def rolled_out(own, params, banned, tau, count, seed):
  prompt = np.tile(_PROMPT, (count, 1))
  rows = jnp.zeros(48, bool).at[jnp.asarray(banned)].set(True)
  state = decode_blocks(
    params, prompt, np.ones(prompt.shape, bool), np.arange(count) + 100_000 * seed, rows, config=own.model,
    options=BlockOptions(2, Threshold(tau), r.MASK, records="drawn"), max_new_tokens=4, sampling=make_sampling(1.0),
  )  # fmt: skip
  found = block_trajectories(state, (), mask_id=r.MASK, max_new_tokens=4)
  batch = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
  batch["copy"] = jnp.broadcast_to(jnp.arange(4)[None], (count, 4))
  batch["row_seed"] = jnp.zeros(count, jnp.int32)
  return batch


def test_a_bandit_is_solved():
  own, banned = tiny()
  params = init_params(own.model, jax.random.key(1))
  stage, optimizer = RlStage(own, banned), optax.adam(3e-3)
  state = optimizer.init(params)

  @jax.jit
  def update(params, state, batch):
    updates, state = optimizer.update(gradient(stage, params, batch), state)
    return optax.apply_updates(params, updates), state

  means = []
  for step in range(60):
    batch = rolled_out(own, params, banned, 0.9, 64, step)
    rewards = np.array([reward_of(row[4:8]) for row in np.asarray(batch["tokens"])], np.float32)
    means.append(rewards.mean())
    advantage, kept = group_advantages(rewards, 64)
    batch |= {"advantage": jnp.asarray(advantage), "kept": jnp.asarray(kept)}
    batch["old_log_prob"] = generated(batch["log_prob"], batch["start"], own.room)
    params, state = update(params, state, batch)
  assert means[0] < 1.5
  assert np.mean(means[-5:]) > 2.9  # the best there is, 3, is found


# --- groups, aggregates, KL ---


@pytest.mark.parametrize("reward", [0.7, -1.0])  # -1: no rollout of the group is valid
def test_groups_of_equal_reward_give_no_gradient(reward):
  own = r.policy()
  params = r.sharp_params(own.model)
  batch = scored(own, params, lambda batch: np.full(8, reward), 4)
  assert not np.asarray(batch["kept"]).any()
  for aggregate in ("token", "sequence", "constant"):
    grads = gradient(RlStage(own, r.BANNED, aggregate=aggregate, kl_weight=0.0), params, batch)
    assert float(optax.global_norm(grads)) == 0


def test_a_dropped_group_does_not_dilute_the_others():
  own = r.policy()
  params = r.sharp_params(own.model)
  rewards = lambda batch: np.r_[np.arange(4), np.ones(4)]
  both = scored(own, params, rewards, 4)
  alone = jax.tree.map(lambda x: x[:4], both)
  for aggregate in ("token", "sequence", "constant"):
    stage = RlStage(own, r.BANNED, aggregate=aggregate)
    found, expected = gradient(stage, params, both), gradient(stage, params, alone)
    gap = optax.global_norm(jax.tree.map(jnp.subtract, found, expected))
    assert float(gap / optax.global_norm(expected)) < 1e-5  # float32 rounding: entries are as large as 6


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
def test_the_surrogate_by_hand(aggregate):
  own = r.policy()
  params, later = r.sharp_params(own.model), r.sharp_params(own.model, seed=1)
  batch = scored(own, params, lengths, 4)
  batch["reference_log_prob"] = score(params, batch, policy=own, banned=r.BANNED)
  stage = RlStage(own, r.BANNED, clip_low=0.1, clip_high=0.3, aggregate=aggregate, kl_weight=0.2)
  prepared, count = stage.prepare(jax.random.key(0), batch)
  loss, metrics = stage.loss(later, prepared, {}, count, 8)
  new, old = np.asarray(own.log_probs(bind(own.model, later), batch, r.BANNED_ROWS)), np.asarray(batch["old_log_prob"])
  terms, kls = [], []
  kept = [row for row in range(8) if batch["kept"][row]]
  for row in kept:
    n, a = int(batch["length"][row]), float(batch["advantage"][row])
    ratio = np.exp(np.clip(new[row, :n] - old[row, :n], -10, 10))
    own_terms = -np.minimum(ratio * a, np.clip(ratio, 0.9, 1.3) * a)
    gap = np.clip(old[row, :n] - new[row, :n], -10, 10)
    own_kl = np.exp(gap) - gap - 1
    scale = {"token": 1.0, "sequence": 1 / n, "constant": 1.0}[aggregate]
    terms.append(scale * own_terms.sum())
    kls.append(scale * own_kl.sum())
  total = {
    "token": sum(int(batch["length"][row]) for row in kept), "sequence": len(kept), "constant": len(kept) * r.ROOM,
  }[aggregate]  # fmt: skip
  assert len(kept) >= 4
  assert float(loss) == pytest.approx((sum(terms) + 0.2 * sum(kls)) / total, rel=1e-3)
  assert float(metrics["kl"]) == pytest.approx(sum(kls) / total, rel=1e-3)


def test_advantages_of_groups():
  advantage, kept = group_advantages(np.array([1.0, 3.0, 2.0, 2.0], np.float32), 2)
  np.testing.assert_allclose(advantage, [-1, 1, 0, 0], atol=2e-4)
  np.testing.assert_array_equal(kept, [True, True, False, False])
  plain, _ = group_advantages(np.array([1.0, 5.0], np.float32), 2, scale=False)
  np.testing.assert_allclose(plain, [-2, 2])


def test_k3_is_never_negative():
  rng = np.random.default_rng(0)
  a, b = jnp.asarray(rng.normal(size=(4, 50)), jnp.float32), jnp.asarray(rng.normal(size=(4, 50)), jnp.float32)
  assert (k3(a, b) >= 0).all()
  np.testing.assert_allclose(k3(a, a), 0.0)


def test_an_unknown_aggregate_is_named():
  with pytest.raises(ValueError, match="token, sequence, constant, not 'mean'"):
    RlStage(r.policy(), r.BANNED, aggregate="mean")
