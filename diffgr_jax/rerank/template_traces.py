"""Traces written from evidence, in GR2's three steps.

    pattern   Mostly nail polish was taken, with opi as a brand that returns. The last items are <h9> (nails), <h8> ...
    need      What goes with that is top coats: other users took <c4> together with <h9>.
    choice    <c4> comes first: after many, with <h9>, popular, kind few. Next is <c1>: after some, liked. ...

The writer sees the task without its target. Its ranking is that of a score of the evidence: a hand-made one, or that
of boosted trees. Candidates are held against each other from the first rank on, until the trace is long enough. The
wording varies with the seed, the user and the list. What is not moved to the front may stay in the retriever's order: a
small model then has few choices to make, and the rest of its answer to copy.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
import random
import re

from diffgr_jax.rerank.prompt import PromptOptions, supporters_words
from diffgr_jax.rerank.reasoning import Outcome, Trace, TraceRules, evidence_scores, order_by_scores
from diffgr_jax.rerank.records import RankingTask, Shop
from diffgr_jax.rerank.wording import (
  COUNTS,
  Content,
  describe_evidence,
  first_words,
  interleave,
  item_category,
  joined,
)

_LAST_ITEMS = 3
_LEAST_COMPARED = 1  # candidates beside the first one

_MOSTLY = (
  "Mostly {kind} was taken",
  "The history leans to {kind}",
  "This user keeps returning to {kind}",
  "The pattern is {kind}",
)
_MIXED = (
  "The history is mixed, with {kind} most often",
  "There is no single pattern; {kind} leads",
  "Several kinds were taken, {kind} most often",
)
_BRAND = (", with {brand} as a brand that returns", ", often by {brand}", "; {brand} is a brand that comes again")
_LATELY = (". The last items are {items}. ", ", and lately {items}. ", "; most recent are {items}. ")
_NO_HISTORY = ("Nothing is known of this user. ", "The history is empty. ")
_COMPLEMENT = (
  "What goes with that is {kind}: other users took {item} together with {supporter}. ",
  "{kind} is missing yet, and {item} goes with {supporter}. ",
  "So {kind} is the complement: {supporter} and {item} are taken together. ",
)
_MORE = (
  "More {kind} is the likely need, as {count} of the items are, and {item} goes with {supporter}. ",
  "The need is again {kind}, seen {count} times; {supporter} and {item} are taken together. ",
)
_ALONE = (
  "Nothing was taken together with the last items, so {kind} such as {item} has to go by the rest. ",
  "No candidate is tied to the last items better than {item}, of {kind}. ",
)
_FIRST = ("{item} comes first: {evidence}. ", "The choice is {item}: {evidence}. ", "Best is {item}: {evidence}. ")
_NEXT = (
  "Next is {item}: {evidence}. ",
  "Then {item}: {evidence}. ",
  "Behind it {item}: {evidence}. ",
  "{item} follows: {evidence}. ",
)
_LAST = ("Last is {item}: {evidence}.", "{item} stays behind: {evidence}.")
_NO_EVIDENCE = "no evidence"
_NO_KIND = "other items"
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class TemplateTraces:
  """Writes traces.

  Attributes:
    shop: of the tasks.
    options: of the prompts that the traces answer; evidence is worded alike.
    rules: which are kept.
    score: of each candidate of a task, the greater the better. It is never given a target.
    seed: of the wording.
    moved: so many of the best candidates are moved to the front, and the others stay in the retriever's order; 0: all
      stand by their scores.
  """

  shop: Shop
  options: PromptOptions
  rules: TraceRules
  score: Callable[[RankingTask], Sequence[int | float]] = evidence_scores
  seed: int = 0
  moved: int = 0

  def __post_init__(self):
    if self.moved < 0:
      raise ValueError(f"moved is a number of candidates, 0 for all, not {self.moved}")

  def traces(self, tasks: Sequence[RankingTask]) -> Iterator[Outcome]:
    """Yields an outcome for each task."""
    for task in tasks:
      blind = replace(task, target=-1)
      ranking = order_by_scores(task.candidates, self.score(blind))
      if self.moved:
        best = ranking[: self.moved]
        ranking = (*best, *(item for item in task.candidates if item not in best))
      fault = self.rules.ranking_fault(task, ranking)  # before anything is written: most are dropped for it
      yield Outcome(task, None, fault) if fault else self.rules.judge(task, self.write(blind, ranking))

  def write(self, task: RankingTask, ranking: Sequence[int]) -> Trace:
    """Writes the reasoning that leads to a ranking, as long as the rules ask."""
    rng = random.Random(f"{self.seed} {task.user} {task.history} {task.candidates}")
    reasoning = joined([*self._pattern(task, rng), *self._need(task, ranking[0], rng)])
    for rank, item in enumerate(ranking):
      phrases = _FIRST if rank == 0 else _LAST if rank == len(ranking) - 1 else _NEXT
      named = self._name(task, item)
      reasoning = joined([*reasoning, *fill(rng.choice(phrases), item=named, evidence=self._evidence(task, item))])
      if rank >= _LEAST_COMPARED and self.rules.count_tokens(_ended(reasoning)) >= self.rules.least_tokens:
        break
    return Trace(_ended(reasoning), tuple(ranking))

  def _pattern(self, task: RankingTask, rng: random.Random) -> tuple[Content, ...]:
    if not task.history:
      return (rng.choice(_NO_HISTORY),)
    kind, times = Counter(map(self._kind, task.history)).most_common(1)[0]
    contents = [*fill(rng.choice(_MOSTLY if 2 * times > len(task.history) else _MIXED), kind=kind)]
    brands = Counter(brand for item in task.history if (brand := self._brand(item)))
    if brands and brands.most_common(1)[0][1] > 1:
      contents += fill(rng.choice(_BRAND), brand=brands.most_common(1)[0][0])
    last: list[tuple[Content, ...]] = [
      (item, f" ({self._kind(item)})") for item in dict.fromkeys(reversed(task.history[-_LAST_ITEMS:]))
    ]
    items = tuple(content for part in interleave(last, (", ",)) for content in part)
    return (*contents, *fill(rng.choice(_LATELY), items=items))

  def _need(self, task: RankingTask, choice: int, rng: random.Random) -> tuple[Content, ...]:
    evidence, kind = task.evidence[task.candidates.index(choice)], self._kind(choice)
    supporters = self._supporters(task, choice)
    if not supporters:
      return fill(rng.choice(_ALONE), kind=kind, item=self._name(task, choice))
    count = COUNTS.word(evidence.same_category)
    phrases = _MORE if count else _COMPLEMENT
    named = self._name(task, choice)
    return fill(rng.choice(phrases), kind=kind, item=named, supporter=supporters[0], count=count)

  def _evidence(self, task: RankingTask, item: int) -> tuple[Content, ...]:
    evidence = task.evidence[task.candidates.index(item)]
    supporters = self._supporters(task, item)
    return describe_evidence(evidence, self.options.wording.labels, ", ", supporters) or (_NO_EVIDENCE,)

  def _supporters(self, task: RankingTask, item: int) -> tuple[Content, ...]:
    shown = task.history[-self.options.history_items :] if self.options.history_items else ()
    return supporters_words(task.evidence[task.candidates.index(item)], shown, self.options, by_id=True)

  def _name(self, task: RankingTask, item: int) -> tuple[Content, ...]:
    """A candidate as a sentence names it: the space before its label is the sentence's."""
    label = self.options.template.label(task.candidates.index(item)).lstrip()
    return (label, item) if label else (item,)

  def _kind(self, item: int) -> str:
    return first_words(item_category(self.shop.items[item]), self.options.name_words) or _NO_KIND

  def _brand(self, item: int) -> str:
    return first_words(self.shop.items[item].brand, self.options.name_words)


def fill(phrase: str, **values: Content | Sequence[Content]) -> tuple[Content, ...]:
  """A phrase with its {fields} filled: by a text, an item, or several of them."""
  contents: list[Content] = []
  for place, part in enumerate(_FIELD.split(phrase)):
    value = values[part] if place % 2 else part
    contents += [value] if isinstance(value, str | int) else value
  return joined(contents)


def _ended(reasoning: tuple[Content, ...]) -> tuple[Content, ...]:
  last = reasoning[-1]
  return (*reasoning[:-1], last.rstrip()) if isinstance(last, str) else reasoning
