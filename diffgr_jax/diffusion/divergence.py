"""How far a student's distribution is from its teacher's, token by token, over a vocabulary or its best part.

    teacher, vocabulary of V        .5  .3  .1  .04 .03 .03
    best k = 2, and one bucket      .5  .3  [.2]                 `buckets`: the same for the student, at the same ids

Bucketing lets two distributions over k + 1 outcomes be compared in place of V: it never exceeds the divergence over the
vocabulary (data processing), and keeps the student from parking mass outside the teacher's best k.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
_LEAST = -30.0  # log-probability of a bucket, at least: below float32's rounding of 1 - p
_IMPOSSIBLE = -1e4  # in place of -inf, whose differences and gradients are not numbers


def buckets(log_probs: Float[Array, "*B V"], ids: Int[Array, "*B K"]) -> Float[Array, "*B K1"]:
  """Log-probabilities of K tokens, and of all others together."""
  best = jnp.take_along_axis(log_probs, ids, axis=-1)
  inside = jnp.minimum(jax.nn.logsumexp(best, axis=-1), -1e-7)
  tail = jnp.maximum(jnp.log(-jnp.expm1(inside)), _LEAST)
  return jnp.concatenate([best, tail[..., None]], axis=-1)


def divergence(
  kind: str, teacher: Float[Array, "*B V"], student: Float[Array, "*B V"], beta: float = 0.5
) -> Float[Array, "*B"]:
  """In nats. Outcomes that are impossible for both (-inf) count nothing.

  Args:
    kind: forward_kl is KL(teacher || student), reverse_kl KL(student || teacher), jsd the generalised Jensen-Shannon
      divergence beta KL(teacher || M) + (1 - beta) KL(student || M), M = beta teacher + (1 - beta) student (GKD, arXiv
      2306.13649).
    teacher: log-probabilities.
    student: log-probabilities of the same outcomes.
    beta: of jsd.

  Raises:
    ValueError: another kind.
  """
  teacher, student = (jnp.maximum(x, _IMPOSSIBLE) for x in (teacher, student))
  kl = lambda p, q: (jnp.exp(p) * (p - q)).sum(axis=-1)
  if kind == "forward_kl":
    return kl(teacher, student)
  if kind == "reverse_kl":
    return kl(student, teacher)
  if kind == "jsd":
    middle = jnp.logaddexp(teacher + jnp.log(beta), student + jnp.log1p(-beta))
    return beta * kl(teacher, middle) + (1.0 - beta) * kl(student, middle)
  raise ValueError(f"the divergence is one of {', '.join(DIVERGENCES)}, not {kind!r}")
