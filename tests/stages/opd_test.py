"""OPD: teacher and student at the same tokens, by hand and uncached; top-k buckets; nothing behind an end."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, rel_entr

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.trajectory import generated
from diffgr_jax.diffusion.divergence import divergence
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.transformer import bind
from diffgr_jax.stages.opd import OpdStage, banned_rows, doubted_passes, one_a_pass, score
from tests.stages import rollouts as r

TEACHER = r.policy(pattern="causal")


@functools.partial(jax.jit, static_argnames="own")
def row_logits(params, canvas, end, *, own):
  """The logits of a row that ends at `end`, uncached."""
  model = bind(own.model, params)
  here = (jnp.arange(len(canvas)) < end)[None]
  size = 1 if own.model.pattern == "causal" else r.SIZE
  hidden = model(jnp.where(here, canvas[None], 0), padded_layout(here), pattern=own.model.pattern, block_size=size)
  return model.logits(hidden)[0]


def distribution(own, params, canvas, place):
  """The distribution of one token: of a row that ends with the token's block, or with the token before it."""
  causal = own.model.pattern == "causal"
  end = place if causal else (place // r.SIZE + 1) * r.SIZE
  at = place if own.model.alignment == "same_position" and not causal else place - 1
  logits = np.array(row_logits(params, jnp.asarray(canvas), end, own=own)[at], np.float64)
  logits[list(r.BANNED)] = -np.inf
  return log_softmax(logits)


def scored(alignment="shifted", count=5, **how):
  own = r.policy(alignment)
  params, other = r.sharp_params(own.model), r.sharp_params(TEACHER.model, seed=9)
  batch = r.rollouts(own, params, r.prompts(count), **how)
  return own, params, other, batch


def by_hand(own, params, other, batch, compare):
  """The mean over all generated tokens of `compare(teacher, student, token)`."""
  total, count = 0.0, 0
  for row in range(len(batch["tokens"])):
    tokens, step = np.asarray(batch["tokens"][row]), np.asarray(batch["step"][row])
    start, length = int(batch["start"][row]), int(batch["length"][row])
    for place in range(start, start + length):
      seen = np.where(step >= step[place], r.MASK, tokens)
      before = place // r.SIZE * r.SIZE
      seen[:before] = tokens[:before]
      student = distribution(own, params, seen, place)
      teacher = distribution(TEACHER, other, tokens, place)
      total += compare(teacher, student, tokens[place])
      count += 1
  return total / count


COMPARED = {
  "forward_kl": lambda t, s, _: rel_entr(np.exp(t), np.exp(s)).sum(),
  "reverse_kl": lambda t, s, _: rel_entr(np.exp(s), np.exp(t)).sum(),
  "sampled": lambda t, s, token: s[token] - t[token],
}


@pytest.mark.parametrize("alignment", ["shifted", "same_position"])
@pytest.mark.parametrize("kind", COMPARED)
def test_the_loss_by_hand(alignment, kind):
  own, params, other, batch = scored(alignment)
  stage = OpdStage(own, r.BANNED, kind)
  batch |= score(other, batch, teacher=TEACHER, banned=r.BANNED, kind=kind)
  batch, count = stage.prepare(jax.random.key(0), batch)
  _, metrics = stage.loss(params, batch, {}, count, 5)
  assert float(count) == np.asarray(batch["length"]).sum()
  assert float(metrics["loss"]) == pytest.approx(by_hand(own, params, other, batch, COMPARED[kind]), rel=1e-3, abs=1e-4)


def test_a_sharper_teacher():
  own, params, other, batch = scored()
  sharper = lambda teacher, student, _: rel_entr(np.exp(log_softmax(teacher / 0.25)), np.exp(student)).sum()
  batch |= score(other, batch, teacher=TEACHER, banned=r.BANNED, kind="forward_kl", temperature=0.25)
  batch, count = OpdStage(own, r.BANNED).prepare(jax.random.key(0), batch)
  _, metrics = OpdStage(own, r.BANNED).loss(params, batch, {}, count, 5)
  assert float(metrics["loss"]) == pytest.approx(by_hand(own, params, other, batch, sharper), rel=1e-3, abs=1e-4)
  assert np.asarray(jnp.exp(batch["teacher_log_probs"]).sum(-1)) == pytest.approx(1.0, abs=1e-5)


def test_passes_that_the_teacher_doubts():
  """The loss of some passes is the whole replay's over their tokens, and nothing else is learned from."""
  own, params, other, batch = scored(threshold=1e-4)
  batch |= score(other, batch, teacher=TEACHER, banned=r.BANNED, kind="forward_kl")
  step, length = np.asarray(generated(batch["step"], batch["start"], r.ROOM)), np.asarray(batch["length"])
  least = doubted_passes(step, length, np.asarray(batch["teacher_log_prob"]), 2)
  assert least.shape == (5, 2)
  for row in range(5):
    of_pass = {n: np.asarray(batch["teacher_log_prob"])[row][(step[row] == n) & (np.arange(r.ROOM) < length[row])].min()
               for n in set(step[row, : length[row]].tolist())}  # fmt: skip
    written = min(2, len(of_pass))
    assert {n for n in least[row].tolist() if n in of_pass} == set(sorted(of_pass, key=of_pass.__getitem__)[:written])

  chosen = jnp.asarray((step[:, :, None] == least[:, None]).any(-1) & (np.arange(r.ROOM)[None] < length[:, None]))
  assert 0 < chosen.sum() < length.sum()
  stage = OpdStage(own, r.BANNED)
  loss = lambda params, batch: stage.loss(params, batch, {}, jnp.float32(1), 5)[0]
  model = bind(own.model, params)
  whole = log_probabilities(model.logits(own.states(model, batch)), banned_rows(own.model, r.BANNED))
  by_token = divergence("forward_kl", batch["teacher_log_probs"], whole, 0.5)
  short = batch | {"copy": jnp.asarray(least)}
  assert float(loss(params, short)) == pytest.approx(float(jnp.where(chosen, by_token, 0.0).sum()), rel=1e-4)
  same = own.are_read(short)
  np.testing.assert_array_equal(same, chosen)
  np.testing.assert_array_equal(own.are_read(batch), np.arange(r.ROOM)[None] < length[:, None])


def test_the_best_k_and_the_rest():
  own, params, other, batch = scored()
  ids = {}

  def compare(teacher, student, _):
    best = np.argsort(-teacher)[:6]
    p, q = (np.r_[np.exp(x[best]), 1 - np.exp(x[best]).sum()] for x in (teacher, student))
    return rel_entr(p, np.maximum(q, 1e-13)).sum()

  stage = OpdStage(own, r.BANNED, top_k=6)
  batch |= score(other, batch, teacher=TEACHER, banned=r.BANNED, kind="forward_kl", top_k=6)
  ids = batch["teacher_ids"]
  assert ids.shape == (5, r.ROOM, 6)
  batch, count = stage.prepare(jax.random.key(0), batch)
  loss, _ = stage.loss(params, batch, {}, count, 5)
  assert float(loss) == pytest.approx(by_hand(own, params, other, batch, compare), rel=2e-3)


def test_what_stands_behind_an_end_changes_nothing():
  own, params, other, batch = scored(count=16)
  stage = OpdStage(own, r.BANNED)
  batch |= score(other, batch, teacher=TEACHER, banned=r.BANNED, kind="forward_kl")
  behind = jnp.arange(r.ROOM)[None, :, None] >= batch["length"][:, None, None]
  assert behind.any()
  spoilt = batch | {"teacher_log_probs": jnp.where(behind, -3.0, batch["teacher_log_probs"])}
  gradient = jax.grad(lambda params, batch: stage.loss(params, batch, {}, jnp.float32(50), 16)[0])
  jax.tree.map(np.testing.assert_array_equal, gradient(params, batch), gradient(params, spoilt))


def test_the_sampled_gradient_is_the_reverse_kl_s():
  """Over many rollouts of one token the policy gradient converges to the gradient of the divergence."""
  own = dataclasses.replace(r.policy(), room=1)
  params, other = r.sharp_params(own.model), r.sharp_params(TEACHER.model, seed=9)
  teacher = dataclasses.replace(TEACHER, room=1)
  asked = [[11, 12, 13, 14]] * 8192
  batch = r.rollouts(own, params, asked)
  batch |= {"length": jnp.ones_like(batch["length"])}

  def gradient(kind, batch):
    batch = batch | score(other, batch, teacher=teacher, banned=r.BANNED, kind=kind)
    stage = OpdStage(own, r.BANNED, kind)
    return jax.grad(lambda p: stage.loss(p, batch, {}, jnp.float32(len(batch["tokens"])), 1)[0])(params)

  exact, estimate = gradient("reverse_kl", jax.tree.map(lambda x: x[:1], batch)), gradient("sampled", batch)
  gap = optax.global_norm(jax.tree.map(lambda a, b: a - b, exact, estimate))
  assert float(gap / optax.global_norm(exact)) < 0.15


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
  """At block size 1 a shifted student writes as the autoregressive model of its weights does."""
  own = dataclasses.replace(r.policy(), block_size=1)
  params = r.sharp_params(own.model)
  batch = r.rollouts(TEACHER, params, r.prompts(6))
  steps = int(batch["step"].max()) + 1
  batch["copy"] = jnp.broadcast_to(jnp.arange(steps)[None], (6, steps))
  stage = OpdStage(own, r.BANNED)
  batch |= score(params, batch, teacher=TEACHER, banned=r.BANNED, kind="forward_kl")
  loss, _ = stage.loss(params, batch, {}, jnp.float32(20), 6)
  assert float(loss) == pytest.approx(0.0, abs=1e-5)


def test_one_a_pass_keeps_the_order_of_passes_and_puts_the_surest_first():
  batch = {
    "step": jnp.asarray([[-1, 1, 0, 1, 2, -1]]),
    "log_prob": jnp.asarray([[0.0, -2.0, -5.0, -1.0, -0.1, 0.0]]),
  }
  np.testing.assert_array_equal(one_a_pass(batch), [[-1, 2, 0, 1, 3, -1]])
