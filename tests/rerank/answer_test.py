"""The parser: what was rendered is read back, every fault has its name, no input breaks it, repairs are counted."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.rerank import answer as a
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank.answer import Verdict
from diffgr_jax.rerank.chat import Part, encode_message, message_text, text_tokens

SEEDS = st.integers(0, 2**32 - 1)
LEVELS, CODES = 4, 16


def pad(rows, width=None):
  width = width or max(map(len, rows), default=0)
  return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32).reshape(len(rows), width)


def written(rows, size, candidates):
  """Rows of candidates' places as tokens of answers; codes go by a table, places beyond it are strangers."""
  options, vocab = size
  template = options.template
  opening, comma, closing = text_tokens([template.list_open, template.list_separator, template.list_close], vocab)
  form = a.answer_form(vocab, template)
  marker, label = form.marker, lambda place: [form.labels[place]] if form.labels else []
  ids = [
    [[vocab.docid_token(level, int(code)) for level, code in enumerate(item)] for item in row] for row in candidates
  ]
  result = []
  for places, own in zip(rows, ids, strict=True):
    listed = [token for place in places for token in (*comma, *label(place), *own[place])][len(comma) :]
    result.append([*marker, *opening, *listed, *closing, vocab.eos_id])
  return result


def random_candidates(rng, rows, candidates=10):
  """Codes of `candidates` items and of two strangers behind them, all different."""
  numbers = np.stack([rng.choice(CODES**LEVELS, candidates + 2, False) for _ in range(rows)])
  return np.stack(np.unravel_index(numbers, (CODES,) * LEVELS), axis=-1)


def reference_verdict(row, form, candidates):
  """The grammar and the precedence once more, token by token."""
  row = list(row)
  if form.eos_id not in row:
    return Verdict.TRUNCATED, None
  row = row[: row.index(form.eos_id)]
  starts = [i for i in range(len(row)) if tuple(row[i : i + len(form.marker)]) == form.marker]
  if not starts:
    return Verdict.UNPARSABLE, None
  rest = tuple(row[starts[-1] + len(form.marker) :])

  def eat(word):
    nonlocal rest
    if rest[: len(word)] != word:
      return False
    rest = rest[len(word) :]
    return True

  def eat_id():
    nonlocal rest
    if form.labels and not any(eat((label,)) for label in form.labels):
      return None
    numbers = [token - form.first_code for token in rest[: form.levels]]
    levels = [number // form.level_codes for number in numbers]
    if levels != list(range(form.levels)):
      return None
    rest = rest[form.levels :]
    return tuple(number % form.level_codes for number in numbers)

  if not eat(form.list_open):
    return Verdict.UNPARSABLE, None
  ids = []
  if rest != form.list_close:
    while True:
      ids.append(eat_id())
      if ids[-1] is None:
        return Verdict.UNPARSABLE, None
      if rest == form.list_close or not eat(form.separator):
        break
    if rest != form.list_close:
      return Verdict.UNPARSABLE, None
  known = [tuple(item) for item in candidates.tolist()]
  if any(item not in known for item in ids):
    return Verdict.OUT_OF_SET, ids
  if any(ids.count(item) > known.count(item) for item in ids):
    return Verdict.DUPLICATE, ids
  return (Verdict.OMISSION if len(ids) < len(known) else Verdict.OK), ids


# --- the identity ---


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 10))
def test_what_was_rendered_is_read_back(seed, count, vocab, chat_vocab, shop, codes, make_task):
  rng = np.random.default_rng(seed)
  task = make_task(rng, candidates=count)
  order = rng.permutation(count)
  own = a.candidate_codes(codes, [task.candidates])
  for options, words in ((p.COMPACT, vocab), (p.FULL, chat_vocab)):
    form = a.answer_form(words, options.template)
    message = p.render(task, shop, options, ("because ", task.history[0]), [task.candidates[i] for i in order])
    encoded = encode_message(message, words, codes, options.template)
    generated = encoded.tokens[encoded.parts != Part.PROMPT]
    answers = a.parse_tokens(generated[None], form, own)
    assert answers.verdict.tolist() == [Verdict.OK]
    assert answers.entries.tolist() == [order.tolist()]
    assert a.rankings(answers, "input_order").tolist() == [order.tolist()]
    for names in ("abcd", ("d0", "d1", "d2", "d3")):
      ids = ["".join(f"<{name}_{code}>" for name, code in zip(names, row, strict=True)) for row in codes]
      text = message_text(message, ids, options.template).removesuffix("[EOS]")
      assert a.parse_texts([text], [True], own).entries.tolist() == [order.tolist()]
    decoded = a.parse_texts([words.decode(generated)], [True], own)
    assert decoded.verdict.tolist() == [Verdict.OK]
    assert decoded.entries.tolist() == [order.tolist()]


# --- faults ---


@pytest.mark.parametrize(
  "places, verdict, duplicates, strangers, omitted",
  [
    ([2, 0, 1], Verdict.OK, 0, 0, 0),
    ([2, 0], Verdict.OMISSION, 0, 0, 1),
    ([], Verdict.OMISSION, 0, 0, 3),
    ([2, 0, 2], Verdict.DUPLICATE, 1, 0, 1),
    ([2, 0, 1, 2, 2], Verdict.DUPLICATE, 2, 0, 0),
    ([2, 3, 1], Verdict.OUT_OF_SET, 0, 1, 1),
    ([2, 3, 1, 2, 0, 4], Verdict.OUT_OF_SET, 1, 2, 0),
  ],
)
def test_faults_of_whole_lists(places, verdict, duplicates, strangers, omitted, size):
  options, vocab = size
  known = random_candidates(np.random.default_rng(), 1, 3)
  answers = a.parse_tokens(pad(written([places], size, known)), a.answer_form(vocab, options.template), known[:, :3])
  assert answers.verdict.tolist() == [verdict]
  counts = (answers.duplicates, answers.strangers, answers.omitted, answers.candidates)
  assert [int(count[0]) for count in counts] == [duplicates, strangers, omitted, 3]
  assert answers.entries[0].tolist() == [place if place < 3 else a.STRANGER for place in places]


def test_faults_of_form(size):
  options, vocab = size
  form = a.answer_form(vocab, options.template)
  known = random_candidates(np.random.default_rng(), 1, 3)
  (good,) = written([[2, 0, 1]], size, known)
  marker, comma = list(form.marker), list(form.separator)
  lead = 1 if form.labels else 0
  third = len(marker) + len(form.list_open) + 2 * (lead + LEVELS + len(comma))
  closing = len(form.list_close) + 1
  cases = {
    "no end": (good[:-1], Verdict.TRUNCATED, 3),
    "cut inside an ID": (good[: third + lead + 2], Verdict.TRUNCATED, 2),
    "nothing": ([], Verdict.TRUNCATED, 0),
    "an end alone": ([form.eos_id], Verdict.UNPARSABLE, 0),
    "no marker": (good[len(marker) :], Verdict.UNPARSABLE, 0),
    "a marker behind": ([*good[:-1], *marker, form.eos_id], Verdict.UNPARSABLE, 0),
    "not closed": ([*good[:-closing], form.eos_id], Verdict.UNPARSABLE, 3),
    "something before the end": ([*good[:-closing], *(comma or [9]), *good[-closing:]], Verdict.UNPARSABLE, 3),
    "a code too few": (good[: third - len(comma) - 1] + good[third - len(comma) :], Verdict.UNPARSABLE, 1),
    "levels in another order": (
      [*good[: third + lead], *reversed(good[third + lead :][:LEVELS]), *good[third + lead + LEVELS :]],
      Verdict.UNPARSABLE, 2,
    ),
    "words behind": ([*good[:-1], 9, form.eos_id], Verdict.UNPARSABLE, 3),
    "a second answer": (good[:-1] + good, Verdict.OK, 3),
    "something behind the end": ([*good, 7, *good], Verdict.OK, 3),
  }  # fmt: skip
  for name, (row, verdict, read) in cases.items():
    answers = a.parse_tokens(pad([row]), form, known[:, :3])
    assert (name, answers.verdict[0], answers.entries.shape[1]) == (name, verdict, read)
  rows = [row for row, _, _ in cases.values()]
  together = a.parse_tokens(pad(rows), form, np.repeat(known[:, :3], len(rows), axis=0))
  assert together.verdict.tolist() == [verdict for _, verdict, _ in cases.values()]
  expected = a.count_verdicts(together)
  assert expected == {"ok": 2, "omission": 0, "duplicate": 0, "out_of_set": 0, "unparsable": 8, "truncated": 3}


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_mutated_answers_are_judged_as_the_grammar_says(seed, vocab, chat_vocab):
  rng = np.random.default_rng(seed)
  for size in ((p.COMPACT, vocab), (p.FULL, chat_vocab)):
    form = a.answer_form(size[1], size[0].template)
    known = random_candidates(rng, 12, 5)
    rows = []
    for row in written([rng.integers(0, 5 + (rng.random() < 0.2), 5 - rng.integers(2)) if rng.random() < 0.5
                        else rng.permutation(5) for _ in known], size, known):  # fmt: skip
      for _ in range(rng.integers(0, 3)):
        at = rng.integers(len(row))
        other = int(rng.choice([*row, int(rng.integers(0, size[1].size)), *form.marker]))
        row[at : at + rng.integers(0, 2)] = [other] * rng.integers(0, 2)
        row = row or [0]
      rows.append(row)
    answers = a.parse_tokens(pad(rows), form, known[:, :5])
    for place, row in enumerate(pad(rows).tolist()):
      verdict, ids = reference_verdict(row, form, known[place, :5])
      assert answers.verdict[place] == verdict
      if ids is not None:
        places = [known[place, :5].tolist().index(list(i)) if list(i) in known[place, :5].tolist() else -1 for i in ids]
        assert answers.entries[place][: len(ids)].tolist() == places


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, rows=st.integers(0, 5), width=st.integers(0, 80))
def test_random_tokens_break_nothing(seed, rows, width, vocab):
  rng = np.random.default_rng(seed)
  form = a.answer_form(vocab, p.COMPACT.template)
  likely = [*form.marker, *form.list_open, *form.separator, *form.list_close, form.eos_id]
  tokens = rng.choice([*likely, *range(form.first_code, form.first_code + 64), -1, 2**31 - 1, -(2**31)], (rows, width))
  known = rng.integers(0, 3, (rows, 4, LEVELS))  # with IDs that several candidates have
  answers = a.parse_tokens(tokens, form, known)
  assert_sane(answers, rows, 4)
  for row in range(rows):
    assert answers.verdict[row] == reference_verdict(tokens[row].tolist(), form, known[row])[0]


ID_PIECES = ("<a_1>", "<b_2>", "<c_3>", "<d_4>", "<d0_1>", "<d3_4>", "<z_1>", "<a_99999999>")


@settings(max_examples=100, deadline=None)
@given(
  text=st.text() | st.lists(st.sampled_from([*'[]{}", x', '"ranking":', "</think>", *ID_PIECES])).map("".join),
  finished=st.booleans(),
)
def test_random_texts_break_nothing(text, finished):
  known = np.array([[[1, 2, 3, 4], [1, 2, 3, 5]]])
  answers = a.parse_texts([text], [finished], known)
  assert_sane(answers, 1, 2)
  assert (answers.verdict[0] == Verdict.TRUNCATED) == (not finished)
  a.split_citations(text, {(1, 2, 3, 4): 7}, 4)


def assert_sane(answers, rows, candidates):
  assert answers.verdict.shape == (rows,)
  for invalid in ("repair", "input_order"):
    ranked = a.rankings(answers, invalid)
    assert (np.sort(ranked, axis=1) == np.arange(candidates)[None, : ranked.shape[1]]).all()
  bad = answers.verdict >= Verdict.UNPARSABLE
  assert ((answers.duplicates + answers.strangers + answers.omitted == 0) | ~answers.ok).all()
  assert (answers.ok | bad | (answers.duplicates + answers.strangers + answers.omitted > 0)).all()


TEXT = '"<a_1><b_2><c_3><d_4>"'


@pytest.mark.parametrize(
  "text, verdict, read",
  [
    (f'{{"ranking": [{TEXT}, "<a_1><b_2><c_3><d_5>"]}}', Verdict.OK, 2),
    ("I think [so]. [<d0_1> <d1_2> <d2_3> <d3_4> , <a_1><b_2><c_3><d_5> ]\n", Verdict.OK, 2),
    (f"why [1]</think>[{TEXT}]", Verdict.OMISSION, 1),
    (f"[{TEXT}</think>]", Verdict.UNPARSABLE, 0),
    (f"[{TEXT}, {TEXT}]", Verdict.DUPLICATE, 2),
    (f'[{TEXT}, "<a_1><b_2><c_3><d_6>"]', Verdict.OUT_OF_SET, 2),
    (f"[{TEXT} {TEXT}]", Verdict.UNPARSABLE, 0),
    ("[<a_1><b_2><c_3><d_4><a_1><b_2><c_3><d_5>]", Verdict.OK, 2),
    ("[<a_1><b_2><c_3><d_4><a_1><b_2><c_3>]", Verdict.UNPARSABLE, 0),
    (f"[{TEXT}, <a_1><b_2><c_3>]", Verdict.UNPARSABLE, 1),
    (f"[{TEXT}, <b_2><a_1><c_3><d_4>]", Verdict.UNPARSABLE, 1),
    (f"[{TEXT},]", Verdict.UNPARSABLE, 1),
    (f"[{TEXT}", Verdict.UNPARSABLE, 1),
    (f"[{TEXT}] so it is", Verdict.UNPARSABLE, 1),
    ("[]", Verdict.OMISSION, 0),
    ("", Verdict.UNPARSABLE, 0),
  ],
)
def test_answers_as_texts(text, verdict, read):
  known = np.array([[[1, 2, 3, 4], [1, 2, 3, 5]]])
  answers = a.parse_texts([text], [True], known)
  assert (answers.verdict[0], answers.entries.shape[1]) == (verdict, read)
  assert a.parse_texts([text], [False], known).verdict[0] == Verdict.TRUNCATED


def test_texts_come_with_their_candidates():
  with pytest.raises(ValueError, match="2 texts, 1 times finished, 1 lists"):
    a.parse_texts(["[]", "[]"], [True], np.zeros((1, 2, 4), int))
  with pytest.raises(ValueError, match="at least one candidate"):
    a.parse_texts(["[]"], [True], np.zeros((1, 0, 4), int))


def test_equal_ids_are_taken_in_the_input_order(size):
  options, vocab = size
  form = a.answer_form(vocab, options.template)
  known = random_candidates(np.random.default_rng(), 1, 4)
  known[0, 3] = known[0, 1]
  rows = [[3, 0, 1, 2], [1, 0, 3, 2], [1, 0, 1, 1, 2], [2, 1, 0]]
  answers = a.parse_tokens(pad(written(rows, size, known.repeat(4, 0))), form, known[:, :4].repeat(4, 0))
  assert answers.verdict.tolist() == [Verdict.OK, Verdict.OK, Verdict.DUPLICATE, Verdict.OMISSION]
  assert answers.entries[:2, :4].tolist() == [[1, 0, 3, 2], [1, 0, 3, 2]]
  assert a.rankings(answers, "repair").tolist() == [[1, 0, 3, 2], [1, 0, 3, 2], [1, 0, 3, 2], [2, 1, 0, 3]]


# --- repairs ---


def test_repairs_keep_what_can_be_read(size):
  options, vocab = size
  form = a.answer_form(vocab, options.template)
  known = random_candidates(np.random.default_rng(), 1, 5)
  rows = [[4, 2, 0, 1, 3], [4, 4, 2], [6, 3, 5, 3, 0], [], [2, 1, 0, 4, 3]]
  tokens = written(rows, size, known.repeat(5, 0))
  tokens[4] = tokens[4][
    : len(form.marker) + len(form.list_open) + 2 * (len(form.labels[:1]) + LEVELS + len(form.separator)) + 1
  ]
  answers = a.parse_tokens(pad(tokens), form, known[:, :5].repeat(5, 0))
  assert a.rankings(answers, "repair").tolist() == [
    [4, 2, 0, 1, 3], [4, 2, 0, 1, 3], [3, 0, 1, 2, 4], [0, 1, 2, 3, 4], [2, 1, 0, 3, 4],
  ]  # fmt: skip
  assert a.rankings(answers, "input_order").tolist() == [[4, 2, 0, 1, 3]] + [[0, 1, 2, 3, 4]] * 4
  assert a.count_repairs(answers) == {
    "answers": 5, "repaired": 4, "duplicates dropped": 2, "strangers dropped": 2, "missing appended": 3 + 3 + 5 + 3,
  }  # fmt: skip


def test_lists_of_several_lengths(size, codes):
  options, vocab = size
  form = a.answer_form(vocab, options.template)
  lists = [(5, 9, 2), (7, 1), (4,)]
  known = a.candidate_codes(codes, lists)
  assert known.shape == (3, 3, LEVELS)
  rows = written([[2, 1, 0], [1], [0]], size, known.clip(0))
  answers = a.parse_tokens(pad(rows), form, known)
  assert answers.verdict.tolist() == [Verdict.OK, Verdict.OMISSION, Verdict.OK]
  assert answers.candidates.tolist() == [3, 2, 1]
  assert a.rankings(answers, "repair").tolist() == [[2, 1, 0], [1, 0, 2], [0, 1, 2]]
  assert a.rankings(answers, "input_order").tolist() == [[2, 1, 0], [0, 1, 2], [0, 1, 2]]


def test_thousands_a_second(vocab):
  rng = np.random.default_rng(0)
  size = (p.COMPACT, vocab)
  form = a.answer_form(vocab, p.COMPACT.template)
  known = random_candidates(rng, 4000)
  rows = written([rng.permutation(10) for _ in known], size, known)
  tokens = np.concatenate([rng.integers(5, form.first_code, (4000, 130)), pad(rows)], axis=1)
  began = time.process_time()
  answers = a.parse_tokens(tokens, form, known[:, :10])
  assert time.process_time() - began < 4.0  # about 0.3 s on one core
  assert answers.ok.all()


# --- citations ---


def test_citations_become_items():
  items = {(1, 2): 7, (3, 4): 8}
  assert a.split_citations("so <a_1><b_2> and <d0_3> <d1_4>  <a_1><b_2>, yes", items, 2) == (
    "so ", 7, " and ", 8, 7, ", yes",
  )  # fmt: skip
  assert a.split_citations("nothing cited", items, 2) == ("nothing cited",)
  assert a.split_citations("", items, 2) == ()
  for text in ("<a_1>", "<a_1><b_2><a_3>", "<b_2><a_1>", "<a_1><b_4>", "<a_1> then <b_2>", "<q_1><b_2>"):
    assert a.split_citations(text, items, 2) is None


def test_a_vocabulary_without_ids_is_refused(vocab):
  with pytest.raises(ValueError, match="no DocID token"):
    a.answer_form(train_vocabulary(["some words"], 300), p.COMPACT.template)
