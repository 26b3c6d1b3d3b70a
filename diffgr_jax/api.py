"""The public interface, as `import diffgr_jax as dg` has it: a trained run by its workdir, and what it can be asked.

    retriever = dg.load("workdir/quickstart")
    retriever.retrieve(["join path components"], k=5)          documents and scores, one list a query
    retriever.trace("join path components").draw("steps.png")  how a DocID was denoised, step by step
    retriever.decoding(policy="margin", decode_steps=8)        the same model, decoded in another way

    reranker = dg.load("workdir/cft")
    reranker.rerank(reranker.lists("test")[:8])                rankings, what was written, and whether it was valid

    dg.load(dg.shipped("student"))                             a small one that comes with the project
    dg.load("checkpoint").write("Once upon a time").text       a converted Hugging Face checkpoint

    config = dg.config("docid/folder.py:path=DIR,steps=800")   a config of configs/
    retriever = dg.train(config, "workdir/mine")               trained, or gone on with, and loaded

Everything else of the package may be imported too, and may change between versions.
"""

from collections.abc import Sequence
import copy
from dataclasses import dataclass, replace
import importlib
from pathlib import Path
import sys
from typing import Any, TypeVar

import numpy as np

from diffgr_jax.data.pipeline import encode_prompts
from diffgr_jax.evaluation.answers import Asked, Beam, OnePass
from diffgr_jax.evaluation.rerank_answers import parse_answers, ranked, write_answers
from diffgr_jax.generation.options import GenerationOptions, make_plan
from diffgr_jax.generation.text import Generated, TextGenerator, find_tokenizer
from diffgr_jax.models.transformer import Params
from diffgr_jax.rerank.answer import Verdict
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.averaging import answering_params
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.loop import train_and_evaluate
from diffgr_jax.training.pretrained import load_pretrained, read_spec
from diffgr_jax.training.rerank_run import RerankRun, open_rerank, task_of
from diffgr_jax.training.run import Run, open_run
from diffgr_jax.training.shipped import is_shipped, ship_run
from diffgr_jax.viz.worked import Answer, Denoising, answer_query

_PACKAGE = Path(__file__).parent
_TOGETHER = 32  # queries or lists that are decoded at once


@dataclass(frozen=True)
class Hit:
  """A document of a ranking."""

  doc_id: str
  title: str
  score: float


@dataclass(frozen=True)
class Ranking:
  """What a re-ranker made of a list.

  Attributes:
    items: the candidates' IDs in the shop, best first; the input order where what was written is not valid.
    text: what was written, reasoning and ranking.
    verdict: ok, or the class of its fault.
    forwards: passes that it took.
    pieces: the text's tokens.
    passes: the pass, from 0, that committed each of them.
  """

  items: tuple[str, ...]
  text: str
  verdict: str
  forwards: int
  pieces: tuple[str, ...]
  passes: tuple[int, ...]


_Same = TypeVar("_Same", bound="_Trained")  # typing.Self is not understood by what checks types in tests


@dataclass(frozen=True, eq=False)
class _Trained:
  """What every trained run can do."""

  run: Any
  params: Params
  step: int

  def decoding(self: _Same, **fields: str | int | float) -> _Same:
    """The same model, decoded in another way: `policy`, `threshold`, `decode_steps`, `block_size`, ... of its config.

    What was read for the run, such as lists, is shared.

    Raises:
      ValueError: a field that is not about decoding, or a value of another type.
    """
    other = copy.copy(self.run)
    object.__setattr__(other, "config", copy.deepcopy(self.run.config))  # the copy is nobody else's yet
    other.set_decoding([f"{name}={value}" for name, value in fields.items()])
    return replace(self, run=other)

  def ship(self, out: str | Path) -> Path:
    """Writes what answers, in bfloat16, to a small folder that `load` reads (training/shipped.py).

    Raises:
      FileExistsError: `out` is there already.
    """
    return ship_run(Path(self.run.workdir), self.run.config, self.params, self.step, out)


@dataclass(frozen=True, eq=False)
class Retriever(_Trained):
  """A trained run of DocID retrieval."""

  run: Run

  def retrieve(self, queries: Sequence[str], k: int = 10) -> list[list[Hit]]:
    """The best documents of each query: by one-pass scores, or an autoregressive run's beam search of width k."""
    asked = Asked(self.run, self.params, self.run.index)
    decoding = Beam(k, self.run.renormalises) if self.run.autoregressive else OnePass(self.run.config.prior_weight)
    k, found = min(k, len(self.run.index.doc_ids)), []
    for begin in range(0, len(queries), _TOGETHER):
      texts = [*queries[begin : begin + _TOGETHER]]
      prompts = encode_prompts(texts, self.run.vocab, self.run.config.prompt_length)
      answer = decoding.answer(asked, np.resize(prompts, (_TOGETHER, prompts.shape[1])), np.arange(_TOGETHER))
      for row in range(len(texts)):
        order = np.argsort(-answer.score[row], kind="stable")[:k]
        documents = order if answer.document is None else answer.document[row][order]
        found.append(self._hits(documents.tolist(), answer.score[row][order].tolist()))
    return found

  def trace(self, query: str, *, constrained: bool = True, **how: Any) -> Answer:
    """One query in full: its ranking, and every step of denoising a DocID. See `viz.worked.Denoising` for `how`."""
    return answer_query(self.run, self.params, query, constrained=constrained, denoising=Denoising(**how))

  def _hits(self, documents: list[int], scores: list[float]) -> list[Hit]:
    index = self.run.index
    pairs = zip(documents, scores, strict=True)
    return [Hit(index.doc_ids[at], index.titles[at], score) for at, score in pairs if at >= 0]


@dataclass(frozen=True, eq=False)
class Reranker(_Trained):
  """A trained run of re-ranking: a teacher, or a model converted from one."""

  run: RerankRun

  def lists(self, split: str = "test") -> Sequence[RankingTask]:
    """The shop's own lists of a split: train, valid or test."""
    return self.run.lists(split).tasks

  def rerank(self, tasks: Sequence[RankingTask], *, seed: int = 0) -> list[Ranking]:
    """Writes an answer to each list, as the run's config decodes."""
    if not tasks:
      return []
    written = write_answers(self.run, self.params, tasks, batch_size=min(_TOGETHER, len(tasks)), seed=seed, quiet=True)
    answers = parse_answers(self.run, written, tasks)
    items, vocab = self.run.shop.items, self.run.vocab
    return [
      Ranking(
        tuple(items[at].item_id for at in order),
        vocab.decode(tokens[:length].tolist()),
        Verdict(verdict).name.lower(),
        int(forwards),
        tuple(vocab.piece(token) for token in tokens[:length].tolist()),
        tuple(passes[:length].tolist()),
      )
      for order, tokens, length, verdict, forwards, passes in zip(
        ranked(answers, tasks, self.run.config.invalid), written.tokens, written.length, answers.verdict.tolist(),
        written.forwards, written.passes, strict=True,
      )
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Writer:
  """A converted checkpoint that writes text."""

  folder: Path
  params: Params

  def write(self, prompt: str, *, trace: bool = False, **how: Any) -> Generated:
    """Continues a prompt; with `trace`, every step is kept. See `generation.options.GenerationOptions` for `how`."""
    plan = make_plan(GenerationOptions(**how), read_spec(self.folder))
    return TextGenerator(plan, self.params, find_tokenizer(self.folder))(prompt, trace=trace)


def load(folder: str | Path, step: int | None = None) -> Retriever | Reranker | Writer:
  """What a folder holds: a run's workdir, what `ship` made of one, or a checkpoint of `convert`.

  Args:
    folder: the folder.
    step: of a run's checkpoint; None: the newest.

  Raises:
    FileNotFoundError: it holds neither.
    ValueError: a step of a checkpoint that is no run's.
  """
  folder = Path(folder)
  if not (folder / "checkpoints").is_dir() and not is_shipped(folder):
    if step is not None:
      raise ValueError(f"{folder} is no run's workdir (it has no checkpoints): step applies to runs only")
    return Writer(folder, load_pretrained(folder)[1])
  if task_of(folder) == "rerank":
    own = open_rerank(folder)
    return Reranker(own, *restore_params(folder, own.model, step))
  run = open_run(folder)
  return Retriever(run, *answering_params(run, step))


def config(name: str) -> Any:
  """A config of configs/, as `--config=configs/NAME` gives it to the commands; its fields may be set.

  Args:
    name: its file and arguments, such as `docid/folder.py:path=DIR,steps=800`.

  Raises:
    ValueError: no such file, or an argument that it does not take.
  """
  file, _, arguments = name.partition(":")
  folder = _comes_with("configs")
  if not (folder / file).is_file():
    there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    raise ValueError(f"no config {file!r} in {folder}; there are {', '.join(there)}")
  if "configs" not in sys.modules:  # configs import one another by this name
    if folder.parent == _PACKAGE:
      sys.modules["configs"] = importlib.import_module("diffgr_jax.configs")
    else:
      sys.path.append(str(folder.parent))
  module = importlib.import_module("configs." + file.removesuffix(".py").replace("/", "."))
  return module.get_config(arguments)


def shipped(name: str) -> Path:
  """The folder of a small re-ranker of the made-up shop that comes with the project: `teacher` or `student`.

  Raises:
    ValueError: there is none of this name.
  """
  folder = _comes_with("colabs/models")
  if not (folder / name / "config.json").is_file():
    there = sorted(path.parent.name for path in folder.glob("*/config.json"))
    raise ValueError(f"no model {name!r} in {folder}; there are {', '.join(there)}")
  return folder / name


def _comes_with(name: str) -> Path:
  """A folder of the project: beside the package in the repository, inside it where it is installed."""
  beside = _PACKAGE.parent / name
  return beside if beside.is_dir() else _PACKAGE / name


def train(config: Any, workdir: str | Path) -> Retriever | Reranker:
  """Trains what a config describes in `workdir`, from its last checkpoint where there is one, and loads it.

  Raises:
    ValueError: a config or data that cannot work; one line that names the field.
  """
  train_and_evaluate(config, workdir)
  trained = load(workdir)
  assert not isinstance(trained, Writer)
  return trained
