"""Files of codes: what is written is read, the published form, tokens of a vocabulary, and broken files."""

import json

import numpy as np
import pytest

from diffgr_jax.data.records import Document
from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.docid import codes as c
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer


def example(quantizer=None):
  rows = np.array([[1, 0, 2], [0, 3, 1], [1, 1, 0]], np.int32)
  return c.CodeIndex(rows, (2, 4, 3), ("x", "é", "2"), ("X", "É", ""), quantizer, {"build": {"seed": 3}})


def test_what_is_saved_is_loaded(tmp_path):
  quantizer = ResidualQuantizer(np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32))
  for own in (None, quantizer):
    example(own).save(tmp_path / "deep" / "i.npz")
    again = c.CodeIndex.load(tmp_path / "deep" / "i.npz")
    np.testing.assert_array_equal(again.codes, example().codes)
    for name in ("level_sizes", "doc_ids", "titles", "settings"):
      assert getattr(again, name) == getattr(example(), name)
    if own is None:
      assert again.quantizer is None
    else:
      np.testing.assert_array_equal(again.quantizer.codebooks, quantizer.codebooks)
  assert [path.name for path in (tmp_path / "deep").iterdir()] == ["i.npz"]
  assert np.load(tmp_path / "deep" / "i.npz")["codes"].tolist() == example().codes.tolist()  # any numpy reads it


def test_the_published_form_goes_out_and_in(tmp_path):
  c.export_json(example(), tmp_path / "i.json")
  assert json.loads((tmp_path / "i.json").read_text(encoding="utf-8"))["x"] == ["<a_1>", "<b_0>", "<c_2>"]
  again = c.import_json(tmp_path / "i.json")
  np.testing.assert_array_equal(again.codes, example().codes)
  assert (again.doc_ids, again.level_sizes) == (("x", "é", "2"), (2, 4, 3))


def test_items_called_by_their_place_get_the_names_of_their_documents(tmp_path):
  documents = [Document("B7", "Seven", ""), Document("B3", "Three", ""), Document("B9", "Nine", "")]
  (tmp_path / "i.json").write_text('{"2": ["<a_5>", "<b_0>"], "0": ["<a_1>", "<b_2>"], "1": ["<a_0>", "<b_4>"]}')
  index = c.named_by_place(c.import_json(tmp_path / "i.json"), documents, "i.json")
  assert dict(zip(index.doc_ids, index.codes.tolist(), strict=True)) == {"B7": [1, 2], "B3": [0, 4], "B9": [5, 0]}
  assert index.titles == ("Seven", "Three", "Nine")
  for wrong in (documents[:2], [*documents, Document("B0", "", "")]):
    with pytest.raises(ValueError, match=f"i.json has 3 items, such as '2'; .* called 0 to {len(wrong) - 1}"):
      c.named_by_place(c.import_json(tmp_path / "i.json"), wrong, "i.json")
  with pytest.raises(ValueError, match="such as 'x'; by place"):
    c.named_by_place(example(), documents, "i")


def test_levels_are_named_as_columns_of_a_sheet():
  assert [c.level_name(level) for level in (0, 25, 26, 27, 51, 52, 701, 702)] == [
    "a", "z", "aa", "ab", "az", "ba", "zz", "aaa",
  ]  # fmt: skip


@pytest.mark.parametrize(
  "content, message",
  [
    ("{", "is no JSON"),
    ("[]", "an index is an object"),
    ("{}", "an index is an object"),
    ('{"x": []}', "item 'x' has no list of codes"),
    ('{"x": ["<a_1>", "<c_1>"]}', "code 1 is <b_NUMBER>, not '<c_1>'"),
    ('{"x": ["<a_-1>"]}', "code 0 is <a_NUMBER>, not '<a_-1>'"),
    ('{"x": [7]}', "code 0 is <a_NUMBER>, not 7"),
    ('{"x": ["<a_1>"], "y": ["<a_1>", "<b_1>"]}', "item 'y' has 2 codes, the items before it 1"),
    ('{"x": ["<a_99999999999>"]}', "code 0 is"),
  ],
)
def test_a_broken_published_index_is_named_with_its_item(content, message, tmp_path):
  (tmp_path / "i.json").write_text(content)
  with pytest.raises(ValueError, match=message) as error:
    c.import_json(tmp_path / "i.json")
  assert str(tmp_path / "i.json") in str(error.value)


def test_a_file_that_is_none_or_is_cut_is_one_line(tmp_path):
  path = tmp_path / "i.npz"
  example().save(path)
  whole = path.read_bytes()
  np.savez(tmp_path / "other.npz", a=np.ones(3))
  for content in (b"", whole[:100], whole[: len(whole) // 2], (tmp_path / "other.npz").read_bytes()):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"i.npz is no DocID index of codes \(python -m") as error:
      c.CodeIndex.load(path)
    assert "\n" not in str(error.value)
  with pytest.raises(FileNotFoundError, match="no such DocID index of codes; python -m"):
    c.CodeIndex.load(tmp_path / "gone.npz")


def test_rows_that_make_no_index_are_refused():
  rows = np.array([[0, 4]], np.int32)
  for sizes, ids, message in (((2, 4), ("x",), "outside"), ((2,), ("x",), "levels"), ((2, 5), ("x", "y"), "one row")):
    with pytest.raises(ValueError, match=message):
      c.CodeIndex(rows, sizes, ids, ids)
  with pytest.raises(ValueError, match="names a document twice"):
    c.CodeIndex(np.zeros((2, 1), np.int32), (1,), ("x", "x"), ("", ""))


def test_codes_become_tokens_in_the_order_of_the_corpus():
  levels, size = c.vocabulary_size(example())
  vocab = train_vocabulary(["some words of a small text"], 320, docid_levels=levels, docid_codes=size)
  documents = [Document("2", "Two", "t"), Document("x", "Ex", "t")]
  index = c.docid_index(example(), documents, vocab, "i.npz")
  assert index.codes.tolist() == [[1, 1, 0], [1, 0, 2]]
  assert [[vocab.piece(token) for token in row] for row in c.code_tokens(index.codes, vocab)] == [
    ["<d0_1>", "<d1_1>", "<d2_0>"],
    ["<d0_1>", "<d1_0>", "<d2_2>"],
  ]
  assert (index.doc_ids, index.titles) == (("2", "x"), ("Two", "Ex"))
  assert index.scored.all()
  with pytest.raises(ValueError, match=r"i.npz has no codes for 1 of 3 documents, such as 'gone'"):
    c.docid_index(example(), [*documents, Document("gone", "", "t")], vocab, "i.npz")
  small = train_vocabulary(["some words of a small text"], 320, docid_levels=3, docid_codes=3)
  with pytest.raises(ValueError, match="3 levels of up to 4 codes, but the vocabulary has 3 levels of 3 codes"):
    c.docid_index(example(), documents, small, "i.npz")
