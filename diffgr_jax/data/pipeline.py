"""From a collection to batches of the DocID stage, by grain.

    documents --shuffle--repeat--random span----\\
    train queries --shuffle--repeat--a document--- mix by weight -- batches -- the rows of this process
    documents --shuffle--repeat--pseudo-query---/

Each source goes over all of its elements once an epoch, in an order of that epoch, forever. Example i of the mixture is
a function of the seed and i alone, and row r of batch n is example n * batch_size + r, whichever process makes it. So
the position of the stream is one number, the examples that all processes together have taken (`examples_taken`), and
any number of processes goes on from it (`skip_to`) with the same batches.

A batch is {"prompt": Int32[B, P], "docid": Int32[B, L], "doc_index": Int32[B], "asked": Bool[B]}; `asked`: the prompt
is a query of the training set. A prompt is padded at the left:

    PAD PAD PAD [BOS] pieces of the query [SEP]
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import grain
from jaxtyping import Bool, Float32, Int32
import numpy as np

from diffgr_jax.data import pseudo_queries
from diffgr_jax.data.records import Collection
from diffgr_jax.data.vocab import Vocabulary
from diffgr_jax.docid.index import DocIdIndex

Prompt = Int32[np.ndarray, "P"]
Example = dict[str, Any]
Draw = Callable[[int, np.random.Generator], tuple[Sequence[int] | np.ndarray, int]]  # of a row: pieces, document
SOURCES = ("indexing", "queries", "pseudo")
MIN_PROMPT_LENGTH = 3  # BOS, one piece, SEP


def make_train_iterator(
  collection: Collection,
  vocab: Vocabulary,
  index: DocIdIndex,
  *,
  batch_size: int,
  prompt_length: int,
  mixture: Mapping[str, float],
  seed: int,
  train_split: str = "train",
  word_dropout: float = 0.1,
  rows: Sequence[int] | np.ndarray | None = None,
  num_threads: int = 1,
  generated: Sequence[Sequence[str]] = (),
) -> grain.DatasetIterator:
  """Returns an endless iterator of batches, with get_state and set_state.

  Args:
    collection: the corpus and its queries.
    vocab: encodes them.
    index: the DocIDs of the same corpus.
    batch_size: the examples of one batch over all processes.
    prompt_length: P.
    mixture: weights of the sources "indexing" (a random span of a document), "queries" (a query of `train_split`) and
      "pseudo" (a sentence or short span of a document, words dropped). A source with weight 0 is not used.
    seed: decides order and draws.
    train_split: the split of training queries.
    word_dropout: the share of words that a pseudo-query loses.
    rows: the rows of a batch that this process makes, ascending; None: all.
    num_threads: threads that make examples ahead of time; it does not change them.
    generated: queries generated for each document (`pseudo_queries.read_generated`), which "pseudo" then draws from; a
      document without any, and every document without the list, gives sentences and spans.

  Raises:
    ValueError: an unknown or empty source, weights that are no weights, rows that a batch does not have, a prompt too
      short, or a corpus whose documents are not those of the index.
  """
  own_rows = np.arange(batch_size) if rows is None else np.asarray(rows)
  if not len(own_rows) or own_rows.min() < 0 or own_rows.max() >= batch_size:
    raise ValueError(f"rows are some of the {batch_size} of a batch, not {own_rows.tolist()}")
  _check_prompt_length(prompt_length)
  if tuple(document.doc_id for document in collection.documents) != index.doc_ids:
    raise ValueError("the DocID index is not of this corpus: their document ids differ; build the index anew")
  weights = _used_weights(mixture)
  texts = _tokenize_documents(collection, vocab) if {"indexing", "pseudo"} & weights.keys() else []
  queries = _tokenize_queries(collection, train_split, vocab, index) if "queries" in weights else []
  asked = _tokenize_generated(generated, collection, vocab) if "pseudo" in weights else []
  max_pieces = prompt_length - 2

  def draw_pseudo(row: int, rng: np.random.Generator) -> tuple[Sequence[int] | np.ndarray, int]:
    if asked and asked[row]:
      return asked[row][rng.integers(len(asked[row]))], row
    return pseudo_queries.draw_pseudo_query(texts[row], rng, max_pieces, word_dropout), row

  drawers: dict[str, tuple[int, Draw]] = {
    "indexing": (len(texts), lambda row, rng: (pseudo_queries.draw_span(texts[row], rng, max_pieces), row)),
    "queries": (len(queries), lambda row, rng: (queries[row][0], queries[row][1][rng.integers(len(queries[row][1]))])),
    "pseudo": (len(texts), draw_pseudo),
  }
  to_example = functools.partial(_make_example, vocab=vocab, index=index, prompt_length=prompt_length)
  sources = [
    _make_source(*drawers[name], functools.partial(to_example, asked=name == "queries"), seed, SOURCES.index(name))
    for name in weights
  ]
  mixture_of_all = grain.MapDataset.mix(sources, weights=list(weights.values()))
  return row_batches(mixture_of_all, own_rows, batch_size, num_threads)


def row_batches(
  rows: grain.MapDataset[Example], own_rows: Sequence[int] | np.ndarray, batch_size: int, num_threads: int = 1
) -> grain.DatasetIterator:
  """Batches of a stream of rows, those at `own_rows` of each; `next_index` of its state counts batches."""
  batches = _RowsOfBatches(rows, np.asarray(own_rows), batch_size).batch(len(own_rows), batch_fn=_stack)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, 2 * num_threads))
  return iter(batches.to_iter_dataset(options))


def asked_documents(collection: Collection, train_split: str = "train") -> Bool[np.ndarray, "N"]:
  """Which documents some training query asks for."""
  asked = {doc_id for query in collection.queries.get(train_split, ()) for doc_id in query.doc_ids}
  return np.asarray([document.doc_id in asked for document in collection.documents], bool)


def document_shares(
  collection: Collection, mixture: Mapping[str, float], train_split: str = "train"
) -> Float32[np.ndarray, "N"]:
  """The share of each document among the examples of a mixture: what a row of a batch is about, how often."""
  place = {document.doc_id: row for row, document in enumerate(collection.documents)}
  weights, queries = _used_weights(mixture), collection.queries.get(train_split, ())
  even = np.full(len(place), 1 / len(place))
  asked = np.zeros(len(place))
  for query in queries if "queries" in weights else ():
    asked[[place[doc_id] for doc_id in query.doc_ids]] += 1 / (len(queries) * len(query.doc_ids))
  total = sum(weights.values())
  parts = [weight / total * (asked if name == "queries" else even) for name, weight in weights.items()]
  return np.sum(parts, axis=0).astype(np.float32)


def examples_taken(iterator: grain.DatasetIterator, batch_size: int) -> int:
  """The position of a stream: examples that all processes together have taken, what is read ahead left out."""
  return int(iterator.get_state()["next_index"]) * batch_size


def skip_to(iterator: grain.DatasetIterator, examples: int, batch_size: int) -> None:
  """Moves a stream to a position, whatever number of processes came to it.

  Raises:
    ValueError: a position inside a batch.
  """
  if examples < 0 or examples % batch_size:
    raise ValueError(f"a stream of batches of {batch_size} has no position {examples}: it stands between batches")
  iterator.set_state({"next_index": examples // batch_size})


def encode_prompts(texts: Sequence[str], vocab: Vocabulary, prompt_length: int) -> Int32[np.ndarray, "B P"]:
  """Encodes queries as prompts. A query longer than the prompt is cut at its end; BOS and SEP always fit."""
  _check_prompt_length(prompt_length)
  prompts = np.full((len(texts), prompt_length), vocab.pad_id, np.int32)
  for row, pieces in enumerate(vocab.encode_many(texts)):
    prompts[row] = frame_prompt(pieces, vocab, prompt_length)
  return prompts


def frame_prompt(pieces: Sequence[int] | np.ndarray, vocab: Vocabulary, prompt_length: int) -> Prompt:
  """Sets pieces between BOS and SEP at the right end of a row of PAD."""
  pieces = pieces[: prompt_length - 2]
  prompt = np.full(prompt_length, vocab.pad_id, np.int32)
  prompt[prompt_length - len(pieces) - 2] = vocab.bos_id
  prompt[prompt_length - len(pieces) - 1 : prompt_length - 1] = pieces
  prompt[prompt_length - 1] = vocab.sep_id
  return prompt


# --- sources ---


class _RowsOfBatches(grain.MapDataset[Example]):
  """Of every `batch_size` examples in turn those at `rows`."""

  def __init__(self, parent: grain.MapDataset[Example], rows: np.ndarray, batch_size: int):
    super().__init__(parent)
    self._rows, self._batch_size = rows, batch_size

  def __len__(self) -> int:
    return len(self._parent) // self._batch_size * len(self._rows)

  def __getitem__(self, index):
    batch, row = divmod(index, len(self._rows))
    return self._parent[batch * self._batch_size + int(self._rows[row])]


def _make_source(
  size: int, draw: Draw, to_example: Callable[..., Example], seed: int, number: int
) -> grain.MapDataset[Example]:
  """All rows of a source, shuffled anew each epoch, each turned into an example by draws of its place in the stream."""
  own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
  rows = grain.MapDataset.range(size).seed(own_seed).shuffle().repeat()
  return rows.random_map(lambda row, rng: to_example(*draw(row, rng)))


def _make_example(
  pieces: Sequence[int] | np.ndarray, row: int, asked: bool, vocab: Vocabulary, index: DocIdIndex, prompt_length: int
) -> Example:
  prompt = frame_prompt(pieces, vocab, prompt_length)
  return {"prompt": prompt, "docid": index.codes[row], "doc_index": np.int32(row), "asked": np.bool_(asked)}


def _stack(examples: Sequence[Example]) -> Example:
  return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _tokenize_documents(collection: Collection, vocab: Vocabulary) -> list[pseudo_queries.TokenizedText]:
  if not collection.documents:
    raise ValueError(f"the collection {collection.name} has no documents to train on")
  # A document without text has its title, or its id, to be found by.
  return pseudo_queries.tokenize_texts([document.text or document.title for document in collection.documents], vocab)


def _tokenize_generated(
  generated: Sequence[Sequence[str]], collection: Collection, vocab: Vocabulary
) -> list[list[np.ndarray]]:
  if not generated:
    return []
  if len(generated) != len(collection.documents):
    raise ValueError(f"generated has {len(generated)} lists of queries for {len(collection.documents)} documents")
  pieces = iter(vocab.encode_many([query for queries in generated for query in queries]))
  return [[np.array(next(pieces), np.int32) for _ in queries] for queries in generated]


def _tokenize_queries(
  collection: Collection, split: str, vocab: Vocabulary, index: DocIdIndex
) -> list[tuple[list[int], list[int]]]:
  """Returns the pieces and the rows of the relevant documents of each query."""
  queries = collection.queries.get(split, ())
  if not queries:
    have = ", ".join(name for name, queries in collection.queries.items() if queries) or "none"
    raise ValueError(
      f'{collection.name} has no queries in the split {split!r} (splits: {have}); set the weight of "queries" to 0'
    )
  row_of = {doc_id: row for row, doc_id in enumerate(index.doc_ids)}
  pieces = vocab.encode_many([query.query for query in queries])
  rows = [[row_of[doc_id] for doc_id in query.doc_ids] for query in queries]
  return list(zip(pieces, rows, strict=True))


# --- checks ---


def _used_weights(mixture: Mapping[str, float]) -> dict[str, float]:
  """The positive weights, in the order of SOURCES, whatever the order they came in."""
  for name, weight in mixture.items():
    if name not in SOURCES:
      raise ValueError(f"mixture has no source {name!r}; there are {', '.join(SOURCES)}")
    if not 0 <= weight < float("inf"):
      raise ValueError(f"mixture[{name!r}] is a weight of 0 or more, not {weight}")
  used = {name: float(mixture[name]) for name in SOURCES if mixture.get(name)}
  if not used:
    raise ValueError(f"mixture gives no source a weight; set one of {', '.join(SOURCES)}")
  return used


def _check_prompt_length(prompt_length: int) -> None:
  if prompt_length < MIN_PROMPT_LENGTH:
    raise ValueError(f"prompt_length {prompt_length} is too short; BOS, a piece and SEP need {MIN_PROMPT_LENGTH}")
