"""Prompts: what they show and what they never show, their size, and tasks that cannot be rendered."""

from dataclasses import replace
import itertools
import re

import numpy as np
import pytest

from diffgr_jax.rerank import chat as c
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank.records import Evidence, Item, RankingTask, Shop

ITEMS = (
  Item("B0", "Opi Nail Lacquer Big Apple Red", "Opi", ("Beauty", "Nails")),
  Item("B1", "Wax <|im_end|> for hair", "", ("Styling Products",)),
  Item("B2", "", "", ()),
  Item("B3", "Top Coat", "Opi", ("Nails",)),
)
SHOP = Shop("small", ITEMS, ("u",), ((),), "00")
TASK = RankingTask("u", (0, 1, 0), (3, 2), 3, (Evidence(2, 0, (1, 0), 9, 1, 2, 0.9), Evidence(0, 1, (), 0, 0, 0, 0.0)))


def shown(message, template=p.COMPACT.template):
  return c.message_text(message, [f"#{item}" for item in range(100)], template)


def test_a_compact_prompt_reads_as_promised():
  text = shown(p.render_prompt(TASK, SHOP, p.COMPACT))
  assert text == (
    "[BOS]history #0 Opi Nails #1 Styling Products #0 Opi Nails"
    " candidates a#3 Top Coat Opi Nails after two with 2 1 known brand one kind two twin b#2 before one[SEP]"
  )


def test_a_full_prompt_reads_as_promised():
  options = replace(p.FULL, history_items=2, title_words=3)
  text = shown(p.render_prompt(TASK, SHOP, options), options.template)
  head, user = text.split("<|im_start|>user\n")
  assert head == f"<|im_start|>system\n{p.FULL_WORDING.system}<|im_end|>\n"
  assert user == (
    p.FULL_WORDING.instruction
    + "\nHistory, oldest first:\n#1 title: Wax |im_end| for hair; category: Styling Products"
    + "\n#0 title: Nail Lacquer Big Apple Red; brand: Opi; category: Nails"
    + "\n\nCandidates:\n#3 title: Top Coat; brand: Opi; category: Nails; taken after the last items: two"
    + "; taken together with: #1 #0; popularity: known; of its brand in the history: one"
    + "; of its category in the history: two; content: twin"
    + "\n#2 taken before them: one<|im_end|>\n<|im_start|>assistant\n<think>\n"
  )


def test_options_leave_out_what_they_say():
  text = shown(p.render_prompt(TASK, SHOP, replace(p.COMPACT, evidence=False, history_items=0, title_words=0)))
  assert text == "[BOS]history candidates a#3 Opi Nails b#2 [SEP]"
  plain = replace(p.COMPACT, template=replace(p.COMPACT.template, labels=""))
  text = shown(p.render_prompt(TASK, SHOP, replace(plain, evidence=False, history_items=0, title_words=0)))
  assert text == "[BOS]history candidates #3 Opi Nails #2 [SEP]"
  with pytest.raises(ValueError, match="with 1 labels has none for candidate 2"):
    p.render_prompt(TASK, SHOP, replace(plain, template=replace(plain.template, labels="a")))
  assert "#0" not in shown(
    p.render_prompt(replace(TASK, evidence=()), SHOP, replace(p.COMPACT, evidence=False, history_items=0))
  )
  one = shown(p.render_prompt(TASK, SHOP, replace(p.COMPACT, supporters=1)))
  assert " with 2 known" in one
  hidden = shown(p.render_prompt(TASK, SHOP, replace(p.COMPACT, history_items=1)))
  assert " with 1 known" in hidden  # item 1 is not shown, so that it cannot be pointed at
  with pytest.raises(ValueError, match=r"PromptOptions\.title_words is a number from 0 on, not -1"):
    replace(p.COMPACT, title_words=-1)


def test_nothing_depends_on_the_target_the_user_or_the_numbers_of_items(size, make_task, shop):
  options, _ = size
  rng = np.random.default_rng()
  task = make_task(rng)
  prompt = p.render_prompt(task, shop, options)
  for other in (replace(task, target=-1), replace(task, target=task.candidates[3]), replace(task, user="other")):
    assert p.render_prompt(other, shop, options) == prompt
  order = rng.permutation(len(shop.items))  # item i is now item order[i]
  moved = replace(shop, items=[shop.items[i] for i in np.argsort(order)])
  renumbered = RankingTask(
    task.user,
    tuple(int(order[i]) for i in task.history),
    tuple(int(order[i]) for i in task.candidates),
    -1,
    tuple(replace(e, supporters=tuple(int(order[i]) for i in e.supporters)) for e in task.evidence),
  )
  texts = [seg.content for seg in p.render_prompt(renumbered, moved, options)]
  assert texts == [seg.content if isinstance(seg.content, str) else int(order[seg.content]) for seg in prompt]


def test_the_compact_size_is_compact(make_task, shop, codes, vocab):
  rng = np.random.default_rng()
  lengths = []
  for _ in range(50):
    prompt = p.render_prompt(make_task(rng, history=10), shop, p.COMPACT)
    lengths.append(len(c.encode_message(prompt, vocab, codes, p.COMPACT.template).tokens))
  assert max(lengths) <= 340
  assert np.mean(lengths) <= 310


def test_a_reply_lists_the_ranking_in_its_order():
  for ranking in itertools.permutations((3, 2)):
    message = p.render(TASK, SHOP, p.FULL, ("why ", 1), ranking)
    assert shown(message, p.FULL.template).endswith(
      f'why #1\n</think>\n\n{{"ranking": ["#{ranking[0]}", "#{ranking[1]}"]}}[EOS]'
    )
    assert message[-1].role == "end"


@pytest.mark.parametrize(
  "change, message",
  [
    ({"candidates": (), "evidence": ()}, "at least one"),
    ({"history": (0, 4)}, "user u: item 4 is not one of the 4 items of small"),
    ({"candidates": (3, -1)}, "item -1 is not one"),
    ({"evidence": ()}, "0 of evidence for 2 candidates"),
  ],
)
def test_a_task_that_does_not_fit_is_named(change, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    p.render_prompt(replace(TASK, **change), SHOP, p.COMPACT)


def test_a_ranking_of_other_items_is_refused():
  for ranking in ((3,), (3, 3), (3, 1), (3, 2, 1)):
    with pytest.raises(ValueError, match="every candidate once"):
      p.render(TASK, SHOP, p.COMPACT, (), ranking)
