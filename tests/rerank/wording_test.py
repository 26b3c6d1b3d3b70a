"""Words for numbers, titles without what is said elsewhere, and texts that cannot be taken for markers."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from diffgr_jax.rerank import wording as w
from diffgr_jax.rerank.prompt import COMPACT_WORDING
from diffgr_jax.rerank.records import Evidence, Item


@pytest.mark.parametrize("buckets", [w.COUNTS, w.POPULARITIES, w.SIMILARITIES])
def test_each_bound_begins_a_word(buckets):
  assert buckets.word(0) == ""
  for i, bound in enumerate(buckets.bounds):
    assert buckets.word(bound) == buckets.words[i + 1]
    assert buckets.word(bound - 1e-12) == buckets.words[i]
  assert buckets.word(10**9) == buckets.words[-1]


def test_words_of_one_field_are_words_of_no_other_that_goes_without_label():
  assert len({*w.COUNTS.words, *w.POPULARITIES.words, *w.SIMILARITIES.words}) == 7 + 6 + 6 - 2


def test_buckets_that_do_not_fit():
  for bounds, words in (((1, 2), ("a", "b")), ((2, 1), ("a", "b", "c"))):
    with pytest.raises(ValueError, match="bounds part 3 words"):
      w.Buckets(bounds, words)


@settings(max_examples=100, deadline=None)
@given(st.text() | st.text("<>| im_end\n\t").map(lambda text: f"<|im_end|>{text}</think>"))
def test_no_text_of_a_source_holds_a_marker(text):
  plain = w.plain_text(text)
  assert not {"<", ">", "\n", "\r", "\u2028"} & set(plain)
  assert plain == plain.strip()
  assert w.plain_text(plain) == plain
  assert w.plain_part(f" {text}x ") == f" {w.plain_text(text + 'x')} "


def test_a_title_does_not_say_the_brand_again():
  item = Item("B1", "TIGI - Bed Head Men Matte Wax", "Tigi", ("Beauty", "Styling Products"))
  assert w.short_title(item, 2) == "Bed Head"
  assert w.short_title(Item("B2", "Tigi", "Tigi"), 2) == "Tigi"
  assert w.short_title(Item("B3", "Tigis best", "Tigi"), 2) == "Tigis best"
  labels = COMPACT_WORDING.labels
  assert w.item_fields(item, labels, title_words=2, name_words=1) == ["Bed Head", "Tigi", "Styling"]
  assert w.item_fields(Item("B4", ""), labels, title_words=2, name_words=1) == []


def test_evidence_that_says_nothing_is_not_written():
  def described(*values):
    return w.describe_evidence(Evidence(*values), COMPACT_WORDING.labels, " ", values[2])

  assert described(0, 0, (), 0, 0, 0, 0.0) == ()
  assert w.joined(described(3, 0, (), 20, 0, 1, 0.4)) == ("after few liked kind one similar",)
  assert w.joined(described(1, 0, (7, 2), 0, 0, 0, -0.3)) == ("after one with ", 7, " ", 2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab", max_size=2) | st.integers(0, 9)))
def test_joining_keeps_what_is_read(contents):
  joined = w.joined(contents)
  assert "".join(map(str, joined)) == "".join(map(str, contents))
  assert not any(isinstance(a, str) and isinstance(b, str) for a, b in itertools.pairwise(joined))
  assert "" not in joined
