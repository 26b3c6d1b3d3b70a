"""The weights that answer: a checkpoint's, or their average with what they were trained from.

    share of the start    0 ------------------------- 1
                          what training questions     what the pretrained model knew of documents
                          asked for                   that no question asks for

Training on questions of some documents costs the others. In weights that were trained a little from a pretrained model,
the straight line between the two holds models that keep most of both (WiSE-FT, arXiv 2109.01903), at no cost in
decoding. Its place on the line is a decoding field, `start_share`: choose it on validation questions.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.models.transformer import Params
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.options import CODES, head_scale
from diffgr_jax.training.run import CODES_FILE, Run
from diffgr_jax.training.start import pretrained_folder, start_at_pretrained


def answering_params(run: Run, step: int | None = None) -> tuple[Params, int]:
  """The weights of a checkpoint as the run's config wants them to answer, and the checkpoint's step.

  Raises:
    FileNotFoundError, ValueError: see `restore_params`.
  """
  params, step = restore_params(run.workdir, run.model, step)
  return average_with_start(run, params), step


def average_with_start(run: Run, params: Params) -> Params:
  """(1 - start_share) of these weights and start_share of the pretrained ones; these themselves where it is 0."""
  if not run.config.start_share:
    return params
  codes = CodeIndex.load(Path(run.workdir) / CODES_FILE) if run.config.docid == CODES else None
  start = start_at_pretrained(
    pretrained_folder(run.config.pretrained),
    run.vocab,
    run.docid_tokens,
    jax.tree.map(lambda leaf: leaf.sharding, params),
    codes,
    head_scale(run.config),
  )
  return _average(params, start, jnp.float32(run.config.start_share))


@functools.partial(jax.jit, donate_argnums=1)
def _average(trained: Params, start: Params, share: Float[Array, ""]) -> Params:
  def leaf(trained, start):
    return ((1 - share) * trained.astype(jnp.float32) + share * start.astype(jnp.float32)).astype(trained.dtype)

  return jax.tree.map(leaf, trained, start)
