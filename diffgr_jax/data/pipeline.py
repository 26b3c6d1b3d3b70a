"""From a collection to batches of the DocID stage, by grain.

    documents --shuffle--repeat--random span----\\
    train queries --shuffle--repeat--a document--- mix by weight -- every k-th to process k -- batch
    documents --shuffle--repeat--pseudo-query---/

Each source goes over all of its elements once an epoch, in an order of that epoch, forever. Example i of the mixture is
a function of the seed and i alone: the position in the stream is the whole state, resuming is exact, and k processes
that take every k-th example see together what one would.

A batch is {"prompt": Int32[B, P], "docid": Int32[B, L], "doc_index": Int32[B]}; a prompt is padded at the left:

    PAD PAD PAD [BOS] pieces of the query [SEP]
"""

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import grain
from jaxtyping import Int32
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
  process_index: int = 0,
  process_count: int = 1,
  num_threads: int = 1,
  generated: Sequence[Sequence[str]] = (),
) -> grain.DatasetIterator:
  """Returns an endless iterator of batches, with get_state and set_state.

  Args:
    collection: the corpus and its queries.
    vocab: encodes them.
    index: the DocIDs of the same corpus.
    batch_size: the examples of one batch over all processes; this process gets its part.
    prompt_length: P.
    mixture: weights of the sources "indexing" (a random span of a document), "queries" (a query of `train_split`) and
      "pseudo" (a sentence or short span of a document, words dropped). A source with weight 0 is not used.
    seed: decides order and draws.
    train_split: the split of training queries.
    word_dropout: the share of words that a pseudo-query loses.
    process_index: which process this is.
    process_count: how many there are.
    num_threads: threads that make examples ahead of time; it does not change them.
    generated: queries generated for each document (`pseudo_queries.read_generated`), which "pseudo" then draws from; a
      document without any, and every document without the list, gives sentences and spans.

  Raises:
    ValueError: an unknown or empty source, weights that are no weights, a batch that the processes cannot share
      equally, a prompt too short, or a corpus whose documents are not those of the index.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {process_count} processes")
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
  sources = [_make_source(*drawers[name], to_example, seed, SOURCES.index(name)) for name in weights]
  own = grain.MapDataset.mix(sources, weights=list(weights.values()))[process_index::process_count]
  batches = own.batch(batch_size // process_count, batch_fn=_stack)
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, 2 * num_threads))
  return iter(batches.to_iter_dataset(options))


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


def _make_source(
  size: int, draw: Draw, to_example: Callable[..., Example], seed: int, number: int
) -> grain.MapDataset[Example]:
  """All rows of a source, shuffled anew each epoch, each turned into an example by draws of its place in the stream."""
  own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
  rows = grain.MapDataset.range(size).seed(own_seed).shuffle().repeat()
  return rows.random_map(lambda row, rng: to_example(*draw(row, rng)))


def _make_example(
  pieces: Sequence[int] | np.ndarray, row: int, vocab: Vocabulary, index: DocIdIndex, prompt_length: int
) -> Example:
  prompt = frame_prompt(pieces, vocab, prompt_length)
  return {"prompt": prompt, "docid": index.codes[row], "doc_index": np.int32(row)}


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
