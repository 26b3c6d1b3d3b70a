"""Messages as tokens: prompts are beginnings, parts are labelled, markers are single tokens."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.rerank import chat as c
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank.answer import split_citations
from diffgr_jax.rerank.chat import Part, Segment
from diffgr_jax.rerank.wording import joined


def whole(seed, make_task, shop, options):
  rng = np.random.default_rng(seed)
  task = make_task(rng)
  reasoning = ("Mostly soap; ", task.history[-1], " goes with ", task.candidates[0], ".")
  return p.render(task, shop, options, reasoning, tuple(rng.permutation(task.candidates).tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_is_the_beginning_and_parts_follow_each_other(seed, size, make_task, shop, codes):
  options, vocab = size
  message = whole(seed, make_task, shop, options)
  encoded = c.encode_message(message, vocab, codes, options.template)
  given_part = tuple(segment for segment in message if segment.role in ("system", "user"))
  prompt = c.encode_message(given_part, vocab, codes, options.template)
  length = len(prompt.tokens)
  assert (encoded.tokens[:length] == prompt.tokens).all()
  assert (prompt.parts == Part.PROMPT).all()
  assert (np.diff(encoded.parts) >= 0).all()
  assert set(encoded.parts.tolist()) == set(Part)
  assert (encoded.parts == Part.PROMPT).sum() == length
  assert encoded.tokens[encoded.parts == Part.EOS].tolist() == [vocab.eos_id]
  for stop in range(len(given_part), len(message)):  # whatever is written of it, nothing that came before changes
    part = c.encode_message(message[:stop], vocab, codes, options.template)
    assert (encoded.tokens[: len(part.tokens)] == part.tokens).all()


def test_an_answer_is_its_marker_and_a_list_of_ids(size, make_task, shop, codes):
  options, vocab = size
  message = whole(9, make_task, shop, options)
  encoded = c.encode_message(message, vocab, codes, options.template)
  answer = encoded.tokens[encoded.parts == Part.ANSWER].tolist()
  ranked = [segment.content for segment in message if segment.role == "answer" and isinstance(segment.content, int)]
  ids = [[vocab.docid_token(level, int(code)) for level, code in enumerate(codes[item])] for item in ranked]
  assert [token for token in answer if token >= vocab.docid_token(0, 0)] == [token for item in ids for token in item]
  if options is p.COMPACT:
    assert len(answer) == 1 + 2 + 10 * 5
    assert answer[0] == vocab.sep_id
  else:
    assert vocab.piece(answer[0]) == "</think>"
    assert "".join(vocab.decode(answer[1:]).split()).startswith('{"ranking":["<d0_')


def test_markers_of_a_chat_model_stand_where_qwen3_has_them(chat_vocab, make_task, shop, codes):
  message = whole(3, make_task, shop, p.FULL)
  encoded = c.encode_message(message, chat_vocab, codes, p.FULL.template)
  text = chat_vocab.tokenizer.decode([t - 5 for t in encoded.tokens.tolist() if 5 <= t < chat_vocab.docid_token(0, 0)])
  assert text.startswith(f"<|im_start|>system\n{p.FULL_WORDING.system}<|im_end|>\n<|im_start|>user\nHere are")
  assert "<|im_end|>\n<|im_start|>assistant\n<think>\nMostly soap;" in text
  assert '.\n</think>\n\n{"ranking": ["' in text
  pieces = [chat_vocab.piece(token) for token in encoded.tokens]
  assert [pieces.count(m) for m in ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "[EOS]")] == [3, 2, 1, 1, 1]


def test_a_tokenizer_without_the_markers_is_refused(vocab, make_task, shop, codes):
  message = whole(3, make_task, shop, p.FULL)
  with pytest.raises(ValueError, match=r"no token '(<\|im_start\|>|<\|im_end\|>|</?think>)'.*compact template"):
    c.encode_message(message, vocab, codes, p.FULL.template)


@pytest.mark.parametrize("seed", range(20))
def test_what_tokens_say_is_read_as_the_same_tokens(seed, size, codes):
  options, vocab = size
  rng = np.random.default_rng(seed)
  texts = ["So ", " follows", ".", "; next is ", ", known, ", " (soap)", " . ", ", with "]
  drawn = [texts[at] if at < len(texts) else int(rng.integers(len(codes))) for at in rng.integers(0, 12, 30).tolist()]
  contents = joined(drawn)
  encode = lambda reasoning: c.encode_message(
    (Segment("user", "x"), *(Segment("reasoning", content) for content in reasoning)), vocab, codes, options.template
  )
  message = encode(contents)
  tokens = message.tokens[message.parts == Part.REASONING].tolist()
  items = {tuple(code): at for at, code in enumerate(codes.tolist())}
  read = split_citations(c.tokens_text(tokens, vocab), items, codes.shape[1])
  assert encode(read).tokens.tolist() == message.tokens.tolist()


def test_without_reasoning_the_answer_follows_at_once(size, make_task, shop, codes):
  options, vocab = size
  task = make_task(np.random.default_rng(0))
  encoded = c.encode_message(p.render(task, shop, options, (), task.candidates), vocab, codes, options.template)
  assert (encoded.parts == Part.REASONING).sum() == len(options.template.reasoning_close)


def test_many_are_as_one_by_one(size, make_task, shop, codes):
  options, vocab = size
  messages = [whole(seed, make_task, shop, options) for seed in range(4)]
  for message, encoded in zip(messages, c.encode_messages(messages, vocab, codes, options.template), strict=True):
    alone = c.encode_message(message, vocab, codes, options.template)
    assert encoded.tokens.tolist() == alone.tokens.tolist()
    assert encoded.parts.tolist() == alone.parts.tolist()
  assert c.encode_messages([], vocab, codes, options.template) == []


def test_counted_tokens_are_those_of_the_message(size, make_task, shop, codes):
  options, vocab = size
  task = make_task(np.random.default_rng(1))
  reasoning = ("After ", task.history[0], ", then ", "more ", task.history[1], task.history[2], " and so on")
  encoded = c.encode_message(p.render(task, shop, options, reasoning, task.candidates), vocab, codes, options.template)
  close = len(c.markers_tokens(options.template.reasoning_close, vocab))
  assert c.count_tokens(reasoning, vocab) == (encoded.parts == Part.REASONING).sum() - close


@settings(max_examples=50, deadline=None)
@given(st.text('[],{}":ab ', min_size=1, max_size=6))
def test_a_bracket_is_no_word(vocab, text):
  rows = c.text_tokens([text], vocab)[0]
  assert vocab.decode(rows).split() == vocab.decode(vocab.encode(text)).split()
  if not text[0].isspace() and rows:
    assert vocab.piece(rows[0]) != "▁"


def test_what_cannot_be_encoded_is_said(vocab, codes):
  template = p.COMPACT.template
  with pytest.raises(ValueError, match="user stands after answer"):
    c.encode_message((Segment("answer", "x"), Segment("user", "y")), vocab, codes, template)
  for item in (-1, 60):
    with pytest.raises(ValueError, match=f"item {item}: there are codes for 60 items"):
      c.encode_message((Segment("user", item),), vocab, codes, template)
  for other in (
    train_vocabulary(["some words"], 300),
    train_vocabulary(["some words"], 300, docid_levels=4, docid_codes=8),
  ):
    with pytest.raises(ValueError, match="items have 4 levels of codes up to"):
      c.encode_message((Segment("user", 0),), other, codes, template)
