"""Diffusion-based generative retrieval and re-ranking in JAX. `diffgr_jax.api` is its interface, loaded when used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from diffgr_jax.api import Hit, Ranking, Reranker, Retriever, Writer, config, load, shipped, train

__all__ = ["Hit", "Ranking", "Reranker", "Retriever", "Writer", "config", "load", "shipped", "train"]


def __getattr__(name: str):
  if name not in __all__:
    raise AttributeError(f"module 'diffgr_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
  return getattr(importlib.import_module("diffgr_jax.api"), name)


def __dir__() -> list[str]:
  return __all__
