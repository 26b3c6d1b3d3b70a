"""Sampled traces, with a made-up sampler: rejection, tries, resumption to the same bytes, shards, foreign files."""

from dataclasses import replace
import functools
import json

import numpy as np
import pytest

from diffgr_jax.data.records import BadRow
from diffgr_jax.rerank import model_traces as m
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank import reasoning as r
from diffgr_jax.rerank.chat import Part, count_tokens, encode_message
from diffgr_jax.rerank.trace_files import read_traces


class Interrupted(Exception):
  pass


class Sampler:
  """Draws a random ranking and a reasoning that may cite a stranger, be short, or not end; fails after some calls."""

  def __init__(self, tasks, shop, codes, size, calls=10**9):
    self.options, self.vocab, self.shop, self.codes = *size, shop, codes
    self.calls, self.batches = calls, []
    self.tasks = {tuple(self.encode(p.render_prompt(task, shop, self.options)).tokens.tolist()): task for task in tasks}

  def encode(self, message):
    return encode_message(message, self.vocab, self.codes, self.options.template)

  def __call__(self, prompts, seed):
    if len(self.batches) >= self.calls:
      raise Interrupted
    self.batches.append((len(prompts), seed))
    return [
      self.answer(self.tasks[tuple(prompt)], np.random.default_rng([seed, i])) for i, prompt in enumerate(prompts)
    ]

  def answer(self, task, rng):
    ranking = tuple(rng.permutation(task.candidates).tolist())
    stranger = int(rng.choice([i for i in range(60) if i not in r.given_items(task)]))
    kind = rng.random()
    reasoning = ("soap " * (20 if kind < 0.1 else 120), stranger if kind > 0.9 else ranking[0], " is best")
    encoded = self.encode(p.render(task, self.shop, self.options, reasoning, ranking))
    generated = encoded.tokens[encoded.parts != Part.PROMPT].tolist()
    cut = generated[:-3] if 0.1 < kind < 0.2 else generated
    return cut + [self.vocab.pad_id] * 4


@pytest.fixture
def tasks(make_task):
  rng = np.random.default_rng()
  return [replace(make_task(rng, candidates=3), user=f"U{i}") for i in range(23)]


@pytest.fixture
def make_source(size, shop, codes, tmp_path):
  def make(sample, folder="run", **changes):
    options, vocab = size
    rules = r.TraceRules(functools.partial(count_tokens, vocab=vocab))
    settings = {"tries": 3, "batch_size": 4, "model": "made-up", **changes}
    return m.ModelTraces(shop, codes, vocab, options, rules, sample, folder=tmp_path / folder, **settings)

  return make


def test_right_traces_are_kept_and_wrong_ones_tried_again(make_source, tasks, shop, codes, size):
  sampler = Sampler(tasks, shop, codes, size)
  source = make_source(sampler, tries=5)
  outcomes = list(source.traces(tasks))
  assert [outcome.task for outcome in outcomes] == tasks
  rows = [json.loads(line) for line in source.file.read_text(encoding="utf-8").splitlines()]
  for place, outcome in enumerate(outcomes):
    own = [row for row in rows if row["task"] == place]
    assert [row["try"] for row in own] == list(range(len(own)))
    assert all("dropped" in row for row in own[:-1])
    assert len(own) == 5 or outcome.trace is not None
    assert own[-1].get("dropped", "") == outcome.dropped
    if outcome.trace is not None:
      assert outcome.trace.ranking[0] == outcome.task.target
      assert r.cited_items(outcome.trace.reasoning) == [outcome.task.target]
      assert source.rules.count_tokens(outcome.trace.reasoning) >= 100
  reasons = {row["dropped"] for row in rows if "dropped" in row}
  assert {r.NOT_FIRST} < reasons <= {r.NOT_FIRST, r.SHORT, r.FOREIGN_ITEM, "truncated"}
  assert len({seed for _, seed in sampler.batches}) == len(sampler.batches)
  manifest = json.loads(source.manifest.read_text())
  assert manifest["finished"] == r.count_outcomes(outcomes)
  assert list(source.traces(tasks)) == outcomes  # finished: nothing is sampled again
  assert sum(count for count, _ in sampler.batches) == len(rows)
  again, _ = read_traces([source.file], shop, source.rules)
  assert [outcome.trace for outcome in again.traces(tasks)] == [outcome.trace for outcome in outcomes]


def test_a_stopped_shard_comes_to_the_same_bytes(make_source, tasks, shop, codes, size):
  whole = make_source(Sampler(tasks, shop, codes, size), "whole")
  expected = list(whole.traces(tasks))
  content = whole.file.read_bytes()
  rng = np.random.default_rng()
  stopped = make_source(Sampler(tasks, shop, codes, size, calls=3), "stopped")
  with pytest.raises(Interrupted):
    list(stopped.traces(tasks))
  lines = stopped.file.read_bytes().splitlines(keepends=True)
  assert len(lines) == 12
  for cut in (
    len(b"".join(lines)),
    len(b"".join(lines[:9])),
    len(b"".join(lines[:8])),
    0,
    int(rng.integers(len(content))),
  ):
    stopped.file.write_bytes(content[:cut])  # in the middle of a line, of a batch, or between two
    sampler = Sampler(tasks, shop, codes, size)
    assert list(replace(stopped, sample=sampler).traces(tasks)) == expected
    assert stopped.file.read_bytes() == content
    assert sampler.batches  # something was left to do
    assert stopped.manifest.read_text() == whole.manifest.read_text()


def test_a_half_written_last_line_is_dropped(tmp_path):
  path = tmp_path / "j.jsonl"
  path.write_bytes(b'{"task": 0, "try": 0}\n{"task": 1, "try": 0}\n{"task": 2, "tr')
  journal = m.Journal(path)
  assert journal.take([(0, 0), (1, 0)]) == [{"task": 0, "try": 0}, {"task": 1, "try": 0}]
  journal.append([{"task": 2, "try": 0, "é": "\u2028\r\n"}])
  journal = m.Journal(path)
  assert len(path.read_bytes().splitlines()) == 3
  assert journal.take([(0, 0), (1, 0), (2, 0), (3, 0)]) is None  # not whole: cut off
  assert path.read_bytes() == b""
  path.write_bytes(b'{"task": 0, "try": 0}\n{"task": 1, "tr\n{"task": 2, "try": 0}\n')
  with pytest.raises(BadRow, match=r"j\.jsonl:2: broken JSON"):
    m.Journal(path)


def test_shards_share_the_tasks(make_source, tasks, shop, codes, size):
  outcomes = {}
  for shard in range(3):
    source = make_source(Sampler(tasks, shop, codes, size), shard=shard, shards=3)
    outcomes[shard] = list(source.traces(tasks))
    assert [outcome.task for outcome in outcomes[shard]] == tasks[shard::3]
  files = sorted(source.folder.glob("*.jsonl"))
  assert [path.name for path in files] == [f"traces-0000{i}-of-00003.jsonl" for i in range(3)]
  together, _ = read_traces(files, shop, source.rules)
  kept = [outcome for shard in outcomes.values() for outcome in shard if outcome.trace]
  assert len(together.rows) == len(kept)


def test_a_task_whose_target_is_no_candidate_is_not_sampled(make_source, tasks, shop, codes, size):
  sampler = Sampler(tasks, shop, codes, size)
  blind = [replace(task, target=-1) for task in tasks]
  assert {outcome.dropped for outcome in make_source(sampler).traces(blind)} == {r.NO_TARGET}
  assert not sampler.batches


def test_another_models_files_are_refused(make_source, tasks, shop, codes, size):
  sampler = Sampler(tasks, shop, codes, size)
  source = make_source(sampler)
  list(source.traces(tasks))
  for changes, message in (
    ({"model": "other"}, "model 'made-up' instead of 'other'"),
    ({"seed": 1}, "seed 0 instead of 1"),
    ({"tries": 4}, "tries 3 instead of 4"),
  ):
    with pytest.raises(ValueError, match=message):
      list(make_source(sampler, **changes).traces(tasks))
  with pytest.raises(ValueError, match="tasks 23 instead of 22, content"):
    list(source.traces(tasks[1:]))
  source.manifest.write_text("[]")
  with pytest.raises(ValueError, match="is no manifest of traces"):
    list(source.traces(tasks))
  source.manifest.unlink()
  with pytest.raises(ValueError, match="has no manifest"):
    list(source.traces(tasks))


def test_any_answer_is_read_without_a_crash(make_source, tasks, size):
  options, vocab = size
  rng = np.random.default_rng()
  marker = [vocab.sep_id] if options is p.COMPACT else vocab.encode("</think>")
  tokens = [*range(5, 40), *marker, vocab.eos_id, vocab.size, -1, *range(vocab.docid_token(0, 0), vocab.size)]

  def sample(prompts, seed):
    return [rng.choice(tokens, rng.integers(0, 60)).tolist() for _ in prompts]

  reasons = r.count_outcomes(make_source(sample).traces(tasks))
  assert reasons.keys() <= {"truncated", "unparsable", "out_of_set", "duplicate", "omission", r.FOREIGN_ITEM, r.SHORT}
  with pytest.raises(ValueError, match="sample gave 0 answers to 4 prompts"):
    list(make_source(lambda prompts, seed: [], "other").traces(tasks))


@pytest.mark.parametrize(
  "changes, message",
  [({"tries": 0}, "at least 1"), ({"shard": 2, "shards": 2}, "from 0 to shards - 1 = 1, not 2")],
)
def test_settings_that_make_no_sense(changes, message, make_source):
  with pytest.raises(ValueError, match=message):
    make_source(lambda prompts, seed: [], **changes)
