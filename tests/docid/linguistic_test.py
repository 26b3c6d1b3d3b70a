"""Linguistic DocIDs: what a row is, and that no two are alike."""

import functools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.data.records import Document
from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.docid.linguistic import build_linguistic_index


@functools.cache
def vocab():
  return train_vocabulary(["Kafka on the shore (2) (3) of a river and a lake, 0123456789."] * 4, 330)


def corpus(*titles):
  return [Document(f"d{i}", title, "words") for i, title in enumerate(titles)]


def shown(index):
  return [vocab().decode(row) for row in index.codes]


def test_a_row_is_title_eos_pad():
  index = build_linguistic_index(corpus("kafka", "kafka on the shore of a river"), vocab())
  longest = vocab().encode("kafka on the shore of a river")
  assert index.canvas_length == len(longest) + 1
  assert index.codes[1].tolist() == [*longest, vocab().eos_id]
  short = vocab().encode("kafka")
  rest = index.canvas_length - len(short) - 1
  assert index.codes[0].tolist() == [*short, vocab().eos_id] + [vocab().pad_id] * rest
  assert index.scored[0].tolist() == [True] * (len(short) + 1) + [False] * rest
  assert (index.doc_ids, index.told_apart) == (("d0", "d1"), 0)


def test_documents_of_one_title_get_ordinals_in_corpus_order():
  titles = ("Kafka", "a lake and a river and the shore", "kafka", "Kafka", "KAFKA")
  index = build_linguistic_index(corpus(*titles), vocab())
  assert shown(index) == ["kafka", "a lake and a river and the shore", "kafka (2)", "kafka (3)", "kafka (4)"]
  assert index.titles == titles
  assert index.told_apart == 3


def test_a_title_that_looks_like_an_ordinal_keeps_its_name():
  index = build_linguistic_index(corpus("kafka", "kafka", "kafka (2)", "a lake and a river and the shore"), vocab())
  assert shown(index)[:3] == ["kafka", "kafka (3)", "kafka (2)"]


def test_titles_are_cut_to_the_canvas_and_told_apart_within_it():
  ordinal = vocab().encode("(2)")
  length = len(ordinal) + 3
  index = build_linguistic_index(corpus(*["a river and a lake"] * 3), vocab(), max_length=length)
  stem = vocab().encode("a river and a lake")
  assert index.canvas_length == length
  assert index.codes[0].tolist() == [*stem[: length - 1], vocab().eos_id]
  assert index.codes[1].tolist() == [*stem[:2], *ordinal, vocab().eos_id]
  assert len(np.unique(index.codes, axis=0)) == 3


def test_without_a_cap_the_canvas_grows_for_an_ordinal():
  index = build_linguistic_index(corpus("a", "a"), vocab())
  assert len(np.unique(index.codes, axis=0)) == 2
  assert index.codes[1].tolist()[-1] == vocab().eos_id


TITLES = st.lists(st.text(st.sampled_from("ab (2)3.K"), min_size=1, max_size=8), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(TITLES, st.one_of(st.none(), st.integers(9, 14)))
def test_rows_are_distinct_and_well_formed(titles, max_length):
  index = build_linguistic_index(corpus(*titles), vocab(), max_length)
  assert len(np.unique(index.codes, axis=0)) == len(titles)
  assert max_length is None or index.canvas_length <= max_length
  ends = (index.codes == vocab().eos_id).argmax(axis=1)
  for row, end, title in zip(index.codes, ends, titles, strict=True):
    assert (row[:end] > vocab().mask_id).all()
    assert row[end] == vocab().eos_id
    assert (row[end + 1 :] == vocab().pad_id).all()
    if titles.count(title) == len(titles) == 1 and max_length is None:
      assert row[:end].tolist() == vocab().encode(title)
  assert (index.scored.sum(axis=1) == ends + 1).all()


def test_leading_tokens_are_as_many_as_tell_the_texts_apart():
  texts = ["a river of stone", "a river of lakes", "the shore", "the shore", ""]
  documents = [Document(f"d{i}", f"kafka {i}", text) for i, text in enumerate(texts)]
  index = build_linguistic_index(documents, vocab(), source="leading")
  tokens = [vocab().encode(text) for text in texts[:2]]
  shared = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
  assert index.codes[0][: shared + 1].tolist() == tokens[0][: shared + 1]
  assert index.scored[0].sum() == shared + 2  # the first token that differs, and EOS
  assert shown(index)[2] == "the shore"[: len(shown(index)[2])]
  assert shown(index)[3].endswith("(2)")
  assert shown(index)[4].startswith("kafka")
  assert index.told_apart == 1
  assert index.titles[0] == "kafka 0"
  assert len(np.unique(index.codes, axis=0)) == 5


@settings(max_examples=60, deadline=None)
@given(TITLES, st.one_of(st.none(), st.integers(9, 14)))
def test_leading_rows_are_distinct_within_the_canvas(texts, max_length):
  documents = [Document(f"d{i}", "a", text) for i, text in enumerate(texts)]
  index = build_linguistic_index(documents, vocab(), max_length, source="leading")
  assert len(np.unique(index.codes, axis=0)) == len(texts)
  assert max_length is None or index.canvas_length <= max_length


def test_what_cannot_be_built_is_said():
  with pytest.raises(ValueError, match="one of title, leading, not 'text'"):
    build_linguistic_index(corpus("a"), vocab(), source="text")
  with pytest.raises(ValueError, match="no documents"):
    build_linguistic_index([], vocab())
  with pytest.raises(ValueError, match="at least 2"):
    build_linguistic_index(corpus("a"), vocab(), max_length=1)
  needed = len(vocab().encode("(2)")) + 1
  with pytest.raises(ValueError, match=f"documents called 'a'; it must be at least {needed}"):
    build_linguistic_index(corpus("a", "a"), vocab(), max_length=2)
