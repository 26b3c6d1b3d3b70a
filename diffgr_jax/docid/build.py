"""From document vectors to an index of codes: quantise, tell collisions apart, measure.

vectors -> quantiser (fitted, or one that exists) -> codes -> collisions resolved -> control, if one is asked for
texts   -> levels that name words behind them, if some are asked for (words.py)
"""

from collections.abc import Sequence
import dataclasses
from dataclasses import dataclass, field
import time
from typing import Any

from jaxtyping import Int, Shaped
import numpy as np

from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.collisions import RULES, in_collision, resolve
from diffgr_jax.docid.controls import CONTROLS, permute_levels, random_codes, shuffle_documents
from diffgr_jax.docid.product_quantizer import ProductQuantizer, fit_product_quantizer
from diffgr_jax.docid.quantizer import Quantizer, relative_errors
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer, fit_residual_quantizer
from diffgr_jax.docid.rqvae import Rqvae, RqvaeOptions, fit_rqvae
from diffgr_jax.docid.words import Pieces, WordCoder

RANDOM = "random"
METHODS = (ResidualQuantizer.kind, ProductQuantizer.kind, Rqvae.kind, RANDOM)


@dataclass(frozen=True)
class BuildOptions:
  """How codes are made."""

  method: str = ResidualQuantizer.kind
  levels: int = 4
  codes: int = 256
  collisions: str = "optimal"
  control: str = "none"
  seed: int = 0
  iterations: int = 20  # Lloyd steps a level
  rotate: bool = True  # product: a random rotation before the cut
  rqvae: RqvaeOptions = field(default_factory=RqvaeOptions)

  def __post_init__(self):
    for name, allowed in (("method", METHODS), ("collisions", RULES), ("control", CONTROLS)):
      if getattr(self, name) not in allowed:
        raise ValueError(f"{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
    if min(self.levels, self.codes, self.iterations) < 1:
      raise ValueError(
        f"levels, codes and iterations are at least 1, not {self.levels}, {self.codes}, {self.iterations}"
      )
    if self.method == RANDOM and (self.control != "none" or self.collisions == "optimal"):
      raise ValueError("random codes are distinct and a control themselves: with them, no control, and collisions none")


def build_index(
  doc_ids: Sequence[str],
  titles: Sequence[str],
  vectors: Shaped[np.ndarray, "N D"] | None,
  options: BuildOptions,
  *,
  quantizer: Quantizer | None = None,
) -> CodeIndex:
  """Makes the codes of a corpus.

  Args:
    doc_ids: of the documents, in order.
    titles: of the documents, "" where there is none.
    vectors: finite floats, a row a document; random codes need none.
    options: what to make.
    quantizer: one that exists, to be used as it is; None: fit one. It decides method, levels and codes.

  Returns:
    The index; `settings` holds the options (`build`) and what was measured (`measured`): documents in collision before
    and after, relative error by level of the quantiser's own codes and of the final ones, seconds.

  Raises:
    ValueError: vectors that are not one a document, or what the quantisers and rules raise.
  """
  began = time.perf_counter()
  build = {key: value for key, value in dataclasses.asdict(options).items() if key != "rqvae"}
  if options.method == RANDOM and quantizer is None:
    codes = random_codes(len(doc_ids), options.levels, options.codes, options.seed)
    measured = {"seconds": round(time.perf_counter() - began, 1)}
    sizes = (options.codes,) * options.levels
    return CodeIndex(codes, sizes, tuple(doc_ids), tuple(titles), None, {"build": build, "measured": measured})
  if vectors is None or len(vectors) != len(doc_ids):
    rows = "no document vectors" if vectors is None else f"{len(vectors)} document vectors"
    raise ValueError(f"{rows} for {len(doc_ids)} documents: every document needs one, in corpus order")
  if quantizer is None:
    quantizer = fit_quantizer(vectors, options)
    if isinstance(quantizer, Rqvae):
      build["rqvae"] = dataclasses.asdict(options.rqvae)
  else:
    build |= {"method": quantizer.kind, "levels": quantizer.levels, "codes": quantizer.codes, "fitted": False}
  own = quantizer.encode(vectors)
  costs = _costs(quantizer, vectors, own)
  codes, sizes = resolve(options.collisions, own, (quantizer.codes,) * quantizer.levels, costs=costs, seed=options.seed)
  measured: dict[str, Any] = {
    "in_collision_before": in_collision(own),
    "in_collision": in_collision(codes),
    "relative_error": relative_errors(quantizer, vectors, own),
    "relative_error_after_collisions": relative_errors(quantizer, vectors, codes)[-1],
    "seconds": round(time.perf_counter() - began, 1),
  }
  kept: Quantizer | None = quantizer
  if options.control == "permuted_levels":
    codes, sizes, build["level_order"] = permute_levels(codes, sizes, options.seed)
  elif options.control == "shuffled_documents":
    codes, kept = shuffle_documents(codes, options.seed), None
  settings = {"build": build, "measured": measured}
  return CodeIndex(codes, sizes, tuple(doc_ids), tuple(titles), kept, settings)


def with_words(index: CodeIndex, coder: WordCoder, titles: Pieces, documents: Pieces) -> CodeIndex:
  """The index with levels behind its own that name words of the documents.

  Args:
    index: without such levels.
    coder: what gives the codes.
    titles: pieces of each document's title, in the order of the index.
    documents: pieces of each document's title and text.

  Raises:
    ValueError: codes of a control, which are to say nothing; or the coder's `encode`.
  """
  build = index.settings.get("build", {})
  if build.get("control", "none") != "none" or index.quantizer is None:
    raise ValueError("levels that name words go with a quantiser's codes, not with those of a control")
  codes = np.concatenate([index.codes, coder.encode(titles, documents)], axis=1)
  sizes = (*index.level_sizes, *((coder.codes,) * coder.levels))
  settings = index.settings | {"build": build | {"word_levels": coder.levels}}
  return dataclasses.replace(index, codes=codes, level_sizes=sizes, settings=settings, words=coder)


def fit_quantizer(vectors: Shaped[np.ndarray, "N D"], options: BuildOptions) -> Quantizer:
  """Fits the quantiser that the options name."""
  shape = (options.levels, options.codes)
  if options.method == Rqvae.kind:
    return fit_rqvae(vectors, *shape, seed=options.seed, options=options.rqvae)
  if options.method == ProductQuantizer.kind:
    return fit_product_quantizer(
      vectors, *shape, seed=options.seed, iterations=options.iterations, rotate=options.rotate
    )
  return fit_residual_quantizer(vectors, *shape, seed=options.seed, iterations=options.iterations)


def reusable_quantizer(index: CodeIndex, name: str) -> Quantizer:
  """The quantiser of an index, to give codes to other documents.

  Raises:
    ValueError: the index has none, or its codes are a control's.
  """
  control = index.settings.get("build", {}).get("control", "none")
  if index.quantizer is None or control != "none":
    raise ValueError(f"{name} has no quantiser that gives its codes: it is an import, random codes or a control")
  return index.quantizer


def _costs(quantizer: Quantizer, vectors: np.ndarray, own: Int[np.ndarray, "N L"]):
  """Errors with each code of the last level, of the rows asked for."""
  return lambda rows: quantizer.last_level_costs(np.asarray(vectors[rows], np.float32), own[rows])
