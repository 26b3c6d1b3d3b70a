"""The one renderer: a task, a reasoning and a ranking as a chat message.

    role        content
    system      who is asked for what
    user        instruction, history, candidates in the retriever's order
    reasoning   why
    answer      [ID, ID, ...]
    end

There are two sizes: `FULL`, for a chat model such as Qwen3, and `COMPACT`, for a small model with a sentencepiece
vocabulary of ours. <x> are the DocID tokens of an item, [SEP] the chat template's (chat.py):

    [BOS] history <h1> hair care tigi <h2> ... candidates a<c1> bed head tigi styling products after few with 1 liked
    b<c2> ... [SEP] reasoning [SEP] [c<c3> a<c1> ...] [EOS]

Supporters are named by their DocID in a full prompt; in a compact one by their place in the history, counted back from
the last, which is 1. Evidence comes in words (wording.py); what says nothing is not written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffgr_jax.rerank.chat import CHATML, COMPACT_CHAT, ChatTemplate, Message, Segment, segments
from diffgr_jax.rerank.records import Evidence, RankingTask, Shop
from diffgr_jax.rerank.wording import Content, Labels, describe_evidence, interleave, item_fields


@dataclass(frozen=True)
class Wording:
  """The texts of a prompt.

  Attributes:
    system: what the system says; "" leaves it out.
    instruction: the beginning of the user's message.
    history: before the history.
    candidates: before the candidates.
    before_item: before each item.
    after_item: behind each item's ID.
    separator: between two fields of an item.
    labels: of the fields.
    names_supporters: whether supporters are named by their IDs, or by places in the history counted from its end.
  """

  system: str
  instruction: str
  history: str
  candidates: str
  before_item: str
  after_item: str
  separator: str
  labels: Labels
  names_supporters: bool


# What GR2 asks of the model that writes its traces: a pattern in the history, the complementary need, a choice; IDs
# cited; JSON at the end. It is never told what was taken.
FULL_WORDING = Wording(
  system="You put the items of a shop in order for one user: first what the user takes next.",
  instruction=(
    "Here are a user's history and candidates for the next item. An item is written as its ID, a row of tokens such as"
    " <a_1><b_2><c_3><d_4>. Reason in three steps: the pattern in the history; the complementary need that follows from"
    " it; the choice among the candidates, held against each other. Cite items by their IDs, and rely on what is given"
    " here alone. The order of the candidates is a retriever's, and may be wrong. Then answer with nothing but JSON"
    ' that ranks every candidate once, the likeliest first: {"ranking": ["ID", "ID", ...]}\n'
  ),
  history="\nHistory, oldest first:",
  candidates="\n\nCandidates:",
  before_item="\n",
  after_item=" ",
  separator="; ",
  labels=Labels(
    title="title: ", brand="brand: ", category="category: ", followed="taken after the last items: ",
    followed_last="of these after the very last: ", directly="taken as the next after them: ",
    directly_last="as the next after the very last: ",
    preceded="taken before them: ", supporters="taken together with: ", popularity="popularity: ",
    same_brand="of its brand in the history: ", same_category="of its category in the history: ",
    similarity="content: ",
  ),
  names_supporters=True,
)  # fmt: skip

COMPACT_WORDING = Wording(
  system="",
  instruction="",
  history="history",
  candidates=" candidates",
  before_item=" ",
  after_item=" ",
  separator=" ",
  labels=Labels(
    title="", brand="", category="", followed="after ", followed_last="last ", directly="next ",
    directly_last="then ", preceded="before ", supporters="with ", popularity="",
    same_brand="brand ", same_category="kind ", similarity="",
  ),
  names_supporters=False,
)  # fmt: skip


@dataclass(frozen=True)
class PromptOptions:
  """How tasks are rendered.

  Attributes:
    template: markers and the form of a ranking.
    wording: the texts.
    history_items: so many of the last items are shown.
    history_title_words: a title of the history is cut to so many words; 0 leaves titles out.
    title_words: the same for candidates.
    name_words: the same for brands and categories.
    evidence: whether candidates carry their evidence.
    supporters: so many supporters are named at most.
  """

  template: ChatTemplate
  wording: Wording
  history_items: int
  history_title_words: int
  title_words: int
  name_words: int
  evidence: bool = True
  supporters: int = 2

  def __post_init__(self):
    for name in ("history_items", "history_title_words", "title_words", "name_words", "supporters"):
      if getattr(self, name) < 0:
        raise ValueError(f"PromptOptions.{name} is a number from 0 on, not {getattr(self, name)}")


FULL = PromptOptions(
  CHATML, FULL_WORDING, history_items=20, history_title_words=12, title_words=20, name_words=6, supporters=3
)
COMPACT = PromptOptions(
  COMPACT_CHAT, COMPACT_WORDING, history_items=10, history_title_words=0, title_words=2, name_words=2
)


def render(
  task: RankingTask, shop: Shop, options: PromptOptions, reasoning: Sequence[Content], ranking: Sequence[int]
) -> Message:
  """A whole message: what a model is asked, and what it is to write.

  Args:
    task: what is asked. Its target is not looked at.
    shop: of the task's items.
    options: how it is rendered.
    reasoning: texts and cited items.
    ranking: the candidates, best first.

  Raises:
    ValueError: a ranking of other items than the candidates, or a task that does not fit the shop.
  """
  if sorted(ranking) != sorted(task.candidates):
    raise ValueError(f"user {task.user}: a ranking has every candidate once; got {tuple(ranking)}")
  return render_prompt(task, shop, options) + render_reply(reasoning, ranking, task.candidates, options.template)


def render_prompt(task: RankingTask, shop: Shop, options: PromptOptions) -> Message:
  """What a model is asked: the message without the assistant's part."""
  _check_task(task, shop, options.evidence)
  words = options.wording
  shown = task.history[-options.history_items :] if options.history_items else ()
  contents: list[Content] = [words.instruction, words.history]
  for item in shown:
    contents += _item(item, (), shop, options, options.history_title_words)
  contents.append(words.candidates)
  for place, item in enumerate(task.candidates):
    known = _evidence(task.evidence[place], shown, options) if options.evidence else ()
    contents += _item(item, known, shop, options, options.title_words, options.template.label(place))
  system = segments("system", [words.system])
  return system + segments("user", contents)


def render_reply(
  reasoning: Sequence[Content], ranking: Sequence[int], candidates: Sequence[int], template: ChatTemplate
) -> Message:
  """The assistant's part of a message; `candidates` in their order, by which they have their labels."""
  entries = [name_candidate(item, candidates, template) for item in ranking]
  listed = [content for part in interleave(entries, (template.list_separator,)) for content in part]
  answer = segments("answer", [template.list_open, *listed, template.list_close])
  return segments("reasoning", reasoning) + answer + (Segment("end", ""),)


def name_candidate(item: int, candidates: Sequence[int], template: ChatTemplate) -> tuple[Content, ...]:
  """How a candidate is named: by its label, where the template has labels, and its ID."""
  return (label, item) if (label := template.label(candidates.index(item))) else (item,)


def supporters_words(
  evidence: Evidence, shown: Sequence[int], options: PromptOptions, *, by_id: bool
) -> tuple[Content, ...]:
  """The first supporters that the prompt shows: as items, or as places in the history counted back from the last."""
  places = {item: len(shown) - place for place, item in enumerate(shown)}  # of an item taken twice: the later one
  named = [item for item in evidence.supporters if item in places][: options.supporters]
  return tuple(named) if by_id else tuple(str(places[item]) for item in named)


def _item(
  item: int, known: Sequence[Content], shop: Shop, options: PromptOptions, title_words: int, label: str = ""
) -> tuple[Content, ...]:
  words = options.wording
  fields = item_fields(shop.items[item], words.labels, title_words=title_words, name_words=options.name_words)
  between = words.separator if fields and known else ""
  return label or words.before_item, item, words.after_item, words.separator.join(fields) + between, *known


def _evidence(evidence: Evidence, shown: Sequence[int], options: PromptOptions) -> tuple[Content, ...]:
  words = options.wording
  named = supporters_words(evidence, shown, options, by_id=words.names_supporters)
  return describe_evidence(evidence, words.labels, words.separator, named)


def _check_task(task: RankingTask, shop: Shop, evidence: bool) -> None:
  where = f"user {task.user}"
  if len(set(task.candidates)) < len(task.candidates) or not task.candidates:
    raise ValueError(f"{where}: candidates are distinct, and at least one; got {task.candidates}")
  if strange := [item for item in (*task.history, *task.candidates) if not 0 <= item < len(shop.items)]:
    raise ValueError(f"{where}: item {strange[0]} is not one of the {len(shop.items)} items of {shop.name}")
  if evidence and len(task.evidence) != len(task.candidates):
    counts = f"{len(task.evidence)} of evidence for {len(task.candidates)} candidates"
    raise ValueError(f"{where}: {counts}; every candidate has its own, or evidence=False leaves it out")
