"""The training stream: what a batch is, that it resumes exactly, is shared without loss and visits all evenly."""

import dataclasses
import functools
import itertools

import numpy as np
import pytest

from diffgr_jax.data import pipeline
from diffgr_jax.data.records import Collection, Document, Query
from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.docid.linguistic import build_linguistic_index

COUNT, P = 7, 12


@functools.cache
def setting():
  """A collection whose every document and query holds a word of its own, its vocabulary and index."""
  words = ["amber", "basil", "cedar", "dune", "ember", "fjord", "grove"]
  text = "In {0} there is a {0}. The {0} of {0} was {0}, and more {0} is to come!\n\nAll {0} is {0}"
  documents = tuple(Document(f"d{i}", word, text.format(word)) for i, word in enumerate(words))
  train = tuple(Query(f"q{i}", f"where is {words[i]} {words[i + 1]}", (f"d{i}", f"d{i + 1}")) for i in range(5))
  collection = Collection("toy", documents, {"train": train, "test": ()}, "0", {})
  vocab = train_vocabulary([document.text for document in documents] * 3, 400)
  return collection, vocab, build_linguistic_index(documents, vocab)


def stream(mixture, collection=None, **options):
  toy, vocab, index = setting()
  options = {"batch_size": 4, "prompt_length": P, "seed": 3, **options}
  return pipeline.make_train_iterator(collection or toy, vocab, index, mixture=mixture, **options)


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def examples(batches):
  return [
    (batch["prompt"][i].tobytes(), batch["docid"][i].tobytes(), int(batch["doc_index"][i]))
    for batch in batches
    for i in range(len(batch["doc_index"]))
  ]


ALL = {"indexing": 0.4, "queries": 0.3, "pseudo": 0.3}


def test_the_shares_of_documents_are_those_of_the_stream():
  counts = np.zeros(COUNT)
  for batch in take(stream(ALL), 5000):
    np.add.at(counts, batch["doc_index"], 1)
  shares = pipeline.document_shares(setting()[0], ALL)
  np.testing.assert_allclose(shares.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(counts / counts.sum(), shares, atol=0.01)
  assert shares.max() > 1.2 * shares.min()
  np.testing.assert_allclose(pipeline.document_shares(setting()[0], {"pseudo": 2.0}), np.full(COUNT, 1 / COUNT))


def test_a_batch_keeps_the_contract():
  _, vocab, index = setting()
  for batch in take(stream(ALL), 10):
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == {
      "prompt": ((4, P), np.dtype(np.int32)),
      "docid": ((4, index.canvas_length), np.dtype(np.int32)),
      "doc_index": ((4,), np.dtype(np.int32)),
      "asked": ((4,), np.dtype(bool)),
    }
    assert (batch["docid"] == index.codes[batch["doc_index"]]).all()
    for prompt in batch["prompt"]:
      begin = int((prompt == vocab.bos_id).argmax())
      assert (prompt[:begin] == vocab.pad_id).all()
      assert prompt[-1] == vocab.sep_id
      assert begin < P - 2
      assert (prompt[begin + 1 : -1] > vocab.mask_id).all()


@pytest.mark.parametrize("source", pipeline.SOURCES)
def test_a_prompt_leads_to_its_own_document(source):
  collection, vocab, _ = setting()
  own = 0
  for batch in take(stream({source: 1.0}, word_dropout=0.0), 30):
    for prompt, row in zip(batch["prompt"], batch["doc_index"], strict=True):
      text = vocab.decode(prompt)
      others = {document.title for document in collection.documents} - {collection.documents[row].title}
      own += collection.documents[row].title in text
      assert sum(title in text for title in others) <= (source == "queries")
  assert own > 90


@pytest.mark.parametrize("source, size", [("indexing", COUNT), ("pseudo", COUNT), ("queries", 5)])
def test_an_epoch_visits_all_once_with_fresh_draws(source, size):
  batches = take(stream({source: 1.0}, batch_size=size), 6)
  collection, vocab, _ = setting()
  for batch in batches:
    if source == "queries":
      seen = {vocab.decode(prompt) for prompt in batch["prompt"]}
      assert seen == {query.query for query in collection.queries["train"]}
    else:
      assert sorted(batch["doc_index"]) == list(range(size))
  assert len({batch["doc_index"].tobytes() for batch in batches}) > 1  # another order each epoch
  if source != "queries":
    assert len({prompt for prompt, _, _ in examples(batches)}) > 2 * size  # other words, too
  else:
    assert len({(prompt, row) for prompt, _, row in examples(batches)}) > size  # each of several answers


@pytest.mark.parametrize("threads", [1, 3])
def test_resumed_is_uninterrupted(threads):
  whole = stream(ALL, num_threads=threads)
  expected = examples(take(whole, 12))
  first = stream(ALL, num_threads=threads)
  head = examples(take(first, 5))
  state = first.get_state()
  take(first, 2)  # what is drawn after the state was taken does not matter
  resumed = stream(ALL)
  resumed.set_state(state)
  assert head + examples(take(resumed, 7)) == expected


def test_the_stream_depends_on_the_seed_and_on_nothing_else():
  a, b, other = (examples(take(stream(ALL, seed=seed), 6)) for seed in (3, 3, 4))
  assert a == b != other
  reordered = dict(reversed(ALL.items())) | {"pseudo": 0.3}
  assert examples(take(stream(reordered), 6)) == a


@pytest.mark.parametrize("shares", [[[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]], [[0], range(1, 8)]])
def test_processes_make_the_rows_of_what_one_would_make(shares):
  together = take(stream(ALL, batch_size=8), 5)
  for rows in shares:
    for whole, share in zip(together, take(stream(ALL, batch_size=8, rows=rows), 5), strict=True):
      for name in whole:
        np.testing.assert_array_equal(share[name], whole[name][list(rows)])


@pytest.mark.parametrize("before, after", [(1, 2), (2, 4), (4, 1)])
def test_any_number_of_processes_goes_on_from_a_position(before, after):
  split = lambda processes: np.split(np.arange(8), processes)
  first = [stream(ALL, batch_size=8, rows=rows, num_threads=2) for rows in split(before)]
  for part in first:
    take(part, 3)
  positions = {pipeline.examples_taken(part, 8) for part in first}
  assert positions == {24}
  resumed = [stream(ALL, batch_size=8, rows=rows) for rows in split(after)]
  for part in resumed:
    pipeline.skip_to(part, 24, 8)
  parts = [take(part, 2) for part in resumed]
  for step, batch in enumerate(take(stream(ALL, batch_size=8), 5)[3:]):
    assert [x for part in parts for x in examples([part[step]])] == examples([batch])
  with pytest.raises(ValueError, match="has no position 20"):
    pipeline.skip_to(resumed[0], 20, 8)


def test_weights_are_shares():
  collection, vocab, _ = setting()
  asked = {query.query for query in collection.queries["train"]}
  batches = take(stream({"indexing": 3.0, "queries": 1.0}, batch_size=40), 10)
  from_queries = [vocab.decode(prompt) in asked for batch in batches for prompt in batch["prompt"]]
  assert abs(np.mean(from_queries) - 0.25) < 0.02


def test_a_collection_without_training_queries_trains_on_the_rest():
  toy, _, _ = setting()
  bare = Collection("bare", toy.documents, {}, "0", {})
  assert len(take(stream({"indexing": 1.0, "pseudo": 1.0, "queries": 0.0}, bare), 2)) == 2
  with pytest.raises(ValueError, match=r"bare has no queries in the split 'train' \(splits: none\)"):
    stream(ALL, bare)


@pytest.mark.parametrize(
  "options, error",
  [
    ({"mixture": {"indexing": 1.0, "answers": 1.0}}, "no source 'answers'; there are indexing, queries, pseudo"),
    ({"mixture": {"indexing": -1.0}}, r"mixture\['indexing'\] is a weight of 0 or more, not -1"),
    ({"mixture": {"indexing": float("nan")}}, "not nan"),
    ({"mixture": {"indexing": 0.0}}, "gives no source a weight"),
    ({"mixture": {}}, "gives no source a weight"),
    ({"mixture": ALL, "batch_size": 4, "rows": [2, 4]}, r"rows are some of the 4 of a batch, not \[2, 4\]"),
    ({"mixture": ALL, "prompt_length": 2}, "prompt_length 2 is too short"),
    ({"mixture": ALL, "train_split": "test"}, r"split 'test' \(splits: train\)"),
  ],
)
def test_what_cannot_be_streamed_is_said(options, error):
  with pytest.raises(ValueError, match=error):
    stream(**options)


def test_the_index_must_be_of_the_corpus():
  toy, _, _ = setting()
  with pytest.raises(ValueError, match="build the index anew"):
    stream(ALL, Collection("less", toy.documents[:-1], toy.queries, "0", {}))


def test_prompts_are_left_padded_and_cut_at_their_end():
  _, vocab, _ = setting()
  texts = ["amber", "", "where is amber and basil and cedar and dune and ember and fjord"]
  prompts = pipeline.encode_prompts(texts, vocab, P)
  short, long = vocab.encode(texts[0]), vocab.encode(texts[2])
  pad, bos, sep = vocab.pad_id, vocab.bos_id, vocab.sep_id
  assert len(long) > P
  assert prompts.dtype == np.int32
  assert prompts.tolist() == [
    [pad] * (P - len(short) - 2) + [bos, *short, sep],
    [pad] * (P - 2) + [bos, sep],
    [bos, *long[: P - 2], sep],
  ]
  assert pipeline.encode_prompts([], vocab, P).shape == (0, P)


def test_generated_queries_stand_in_for_spans_where_a_document_has_some():
  collection, vocab, _ = setting()
  generated = [[f"ask {row} once", f"ask {row} twice"] if row % 2 else [] for row in range(COUNT)]
  seen = {row: set() for row in range(COUNT)}
  for batch in take(stream({"pseudo": 1.0}, generated=generated, word_dropout=0.0), 60):
    for prompt, row in zip(batch["prompt"], batch["doc_index"], strict=True):
      begin = int((prompt == vocab.bos_id).argmax())
      seen[int(row)].add(vocab.decode(prompt[begin + 1 : -1]).strip())
  for row in range(COUNT):
    if generated[row]:
      assert seen[row] == set(generated[row])
    else:
      assert len(seen[row]) > 2
      assert not any(text.startswith("ask") for text in seen[row])
  assert len(collection.documents) == COUNT
  with pytest.raises(ValueError, match="1 lists of queries for 7 documents"):
    stream({"pseudo": 1.0}, generated=[["x"]])


def test_a_document_without_text_is_asked_for_by_its_title():
  collection, vocab, _ = setting()
  bare = dataclasses.replace(collection, documents=tuple(dataclasses.replace(d, text="") for d in collection.documents))
  for batch in take(stream({"pseudo": 0.5, "indexing": 0.5}, bare, word_dropout=0.0), 10):
    for prompt, row in zip(batch["prompt"], batch["doc_index"], strict=True):
      begin = int((prompt == vocab.bos_id).argmax())
      assert vocab.decode(prompt[begin + 1 : -1]).strip() == collection.documents[row].title
