"""On-policy distillation (OPD): the student writes, a frozen teacher says what it would have written, token by token.

    the student's rollout    p p p | a b c d E      tokens and step map (decoding/trajectory.py)
    teacher, one pass        the distribution of every token, read once and kept (`score`)
    student, replayed        its distribution of every token on the canvas of the pass that committed it
    loss                     their divergence at each generated token, averaged over all of the global batch

The teacher's logit at position i - 1 belongs to the student's token i, whatever the student's own alignment. Behind the
end of a rollout nothing is asked. Diffusion-GR2 (arXiv 2607.01170) has the forward KL over the vocabulary; the canvas
that the student is scored on is not stated there and is the replay's here, as is the choice of the others: reverse KL,
generalised JSD (GKD, arXiv 2306.13649), and `sampled`, the reverse KL's policy gradient from the tokens that were
drawn.

The teacher's distributions are whole, or its best `top_k` tokens and the rest as one bucket. A `temperature` under 1
sharpens them: a student that decodes greedily needs the teacher's likeliest token, and at 1 most of what it is told is
how unsure the teacher is between candidates. A student may also be distilled into itself, from slow decoding to fast
(`teacher_slow`): the frozen student is then asked one token a pass.
"""

from dataclasses import dataclass
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key
import numpy as np

from diffgr_jax.decoding.denoiser import log_probabilities
from diffgr_jax.decoding.trajectory import generated
from diffgr_jax.diffusion.divergence import buckets, divergence
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import Params, bind
from diffgr_jax.stages.policy import Policy
from diffgr_jax.stages.stage import Batch, Metrics

SAMPLED = "sampled"


@dataclass(frozen=True)
class OpdStage:
  """See the module."""

  policy: Policy
  banned: tuple[int, ...]  # tokens that are never written
  kind: str = "forward_kl"  # forward_kl | reverse_kl | jsd | sampled
  beta: float = 0.5  # of jsd
  top_k: int = 0  # of the teacher's distributions; 0: all of them

  @property
  def model(self) -> TransformerConfig:
    return self.policy.model

  def prepare(self, key: Key[Array, ""], batch: Batch) -> tuple[Batch, Float[Array, ""]]:
    """Nothing is drawn; counts the generated tokens."""
    del key
    return batch, batch["length"].sum().astype(jnp.float32)

  def loss(
    self, params: Params, batch: Batch, shared: Batch, target_count: Float[Array, ""], row_count: int
  ) -> tuple[Float[Array, ""], Metrics]:
    """The mean divergence of a token, in nats. The batch has the teacher's `teacher_log_probs` (see `score`)."""
    del shared, row_count
    model = bind(self.model, params)
    logits = model.logits(self.policy.states(model, batch))
    student = log_probabilities(logits, banned_rows(self.model, self.banned))
    here = self.policy.are_read(batch)
    count = jnp.maximum(target_count, 1.0)
    tokens = generated(batch["tokens"], batch["start"], self.policy.room)
    of_token = jnp.take_along_axis(student, tokens[..., None], axis=-1)[..., 0]
    if self.kind == SAMPLED:
      of_token = jnp.where(here, of_token, 0.0)
      gap = jax.lax.stop_gradient(of_token) - jnp.where(here, batch["teacher_log_prob"], 0.0)
      each, watched = gap * of_token, gap
    else:
      same = buckets(student, batch["teacher_ids"]) if self.top_k else student
      each = watched = divergence(self.kind, batch["teacher_log_probs"], same, self.beta)
    mean = lambda x: jnp.where(here, x, 0.0).sum() / count
    loss = mean(each)
    return loss, {"loss": mean(watched), "student_log_prob": mean(of_token)}


def banned_rows(model: TransformerConfig, banned: tuple[int, ...]) -> Bool[Array, "V"]:
  """The tokens that are never written, as a mask of the vocabulary."""
  return jnp.zeros(model.vocab_size, bool).at[jnp.asarray(banned, jnp.int32)].set(True)


@functools.partial(jax.jit, static_argnames=("teacher", "banned", "kind", "top_k", "temperature", "slow"))
def score(
  params: Params,
  batch: Batch,
  *,
  teacher: Policy,
  banned: tuple[int, ...],
  kind: str,
  top_k: int = 0,
  temperature: float = 1.0,
  slow: bool = False,
) -> Batch:
  """What a frozen teacher says of each generated token: read once a trajectory, and kept with it.

  Args:
    params: the teacher's.
    batch: trajectories. With `slow`, `copy` is as wide as a trajectory has tokens, at least.
    teacher: its model; a block model is read by the step map.
    banned: tokens that are never written.
    kind: the divergence; `sampled` keeps the log-probability of each token alone.
    top_k: 0: the whole vocabulary is kept.
    temperature: of the teacher's distributions.
    slow: a block model is asked token after token, in the order of the passes, the surest of a pass first.
  """
  model = bind(teacher.model, params)
  batch = batch | {"step": one_a_pass(batch)} if slow else batch
  log_probs = log_probabilities(model.logits(teacher.states(model, batch)), banned_rows(teacher.model, banned))
  log_probs = log_probs if temperature == 1 else jax.nn.log_softmax(log_probs / temperature)
  tokens = generated(batch["tokens"], batch["start"], teacher.room)
  found = {"teacher_log_prob": jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]}
  if kind == SAMPLED:
    return found
  if not top_k:
    return found | {"teacher_log_probs": log_probs}
  ids = jax.lax.top_k(log_probs, top_k)[1]
  return found | {"teacher_ids": ids, "teacher_log_probs": buckets(log_probs, ids)}


def doubted_passes(
  step: Int[np.ndarray, "B G"],
  length: Int[np.ndarray, "B"],
  teacher_log_prob: Float[np.ndarray, "B G"],
  count: int,
) -> Int[np.ndarray, "B C"]:
  """The passes of each rollout that wrote what the teacher finds least likely: `copy` of a shorter replay.

  Where the teacher agrees there is nearly nothing to learn, and most passes are of that kind (docs/experiments.md).

  Args:
    step: the pass of each token.
    length: generated tokens of a rollout; what is behind them is not looked at.
    teacher_log_prob: of each token.
    count: how many; rollouts of fewer passes are filled up with passes that wrote nothing.
  """
  row, token = np.nonzero(np.arange(step.shape[1])[None] < length[:, None])
  least = np.full((len(step), max(count, int(step.max(initial=0)) + 1)), np.inf)
  np.minimum.at(least, (row, step[row, token]), teacher_log_prob[row, token])
  return np.sort(np.argsort(least, axis=1, kind="stable")[:, :count], axis=1).astype(np.int32)


def one_a_pass(batch: Batch) -> Int[Array, "B T"]:
  """A step map that writes one token a pass, and the same tokens before each other: by pass, then by probability."""
  step = batch["step"]
  written = step >= 0
  order = jnp.lexsort((-batch["log_prob"], jnp.where(written, step, jnp.iinfo(jnp.int32).max)), axis=1)
  return jnp.where(written, jnp.argsort(order, axis=1), -1).astype(jnp.int32)
