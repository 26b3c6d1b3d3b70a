"""Which job a config's task is, and who checks its fields."""

from collections.abc import Callable
from pathlib import Path

from diffgr_jax.training import options, rerank_options
from diffgr_jax.training.docid_job import docid_job
from diffgr_jax.training.fields import Config
from diffgr_jax.training.job import Job
from diffgr_jax.training.rerank_job import rerank_job
from diffgr_jax.training.rerank_options import OPD, RL
from diffgr_jax.training.rerank_rollouts import rollout_job

_JOBS: dict[str, tuple[Callable[[Config], None], Callable[[Config, Path], Job]]] = {
  "docid": (options.check_config, docid_job),
  "rerank": (rerank_options.check_config, rerank_job),
}


def check_config(config: Config) -> None:
  """Raises ValueError with one line that names the field, its value and what it may be."""
  if config.task not in _JOBS:
    raise ValueError(f"config.task is one of {', '.join(_JOBS)}, not {config.task!r}")
  _JOBS[config.task][0](config)


def make_job(config: Config, workdir: Path) -> Job:
  """Builds, or reads, what the run needs."""
  if config.task == "rerank" and config.stage in (OPD, RL):
    return rollout_job(config, workdir)
  return _JOBS[config.task][1](config, workdir)
