"""Which traces a re-ranker learns from."""

import numpy as np
import pytest

from diffgr_jax.rerank.reasoning import Outcome, Trace
from diffgr_jax.rerank.records import RankingTask
from diffgr_jax.training.rerank_examples import agreeing_at_most, permute_codes, read_examples, training_examples
from diffgr_jax.training.rerank_run import prepare_rerank
from tests.training.tiny_rerank import tiny


def outcomes(agreeing, others, dropped):
  rng = np.random.default_rng(0)
  firsts = rng.permutation([0] * agreeing + [1] * others + [-1] * dropped)
  for user, first in enumerate(firsts.tolist()):
    task = RankingTask(f"u{user}", (9,), (3, 4), target=-1, evidence=())
    ranking = (3, 4) if first == 0 else (4, 3)
    yield Outcome(task, None, "target not first") if first < 0 else Outcome(task, Trace(("so",), ranking))


@pytest.mark.parametrize(("share", "agreeing"), [(1.0, 70), (0.9, 70), (0.5, 30), (0.4, 20), (0.0, 0)])
def test_the_surplus_of_what_the_retriever_knew_is_drawn_out(share, agreeing):
  made = list(outcomes(70, 30, 40))
  kept = agreeing_at_most(made, share, seed=0)
  first = [one.trace.ranking[0] for one in kept]
  assert (first.count(3), first.count(4)) == (agreeing, 30)
  assert [one.task.user for one in kept] == [one.task.user for one in made if one in kept]  # in their order
  assert kept == agreeing_at_most(made, share, seed=0)
  if share == 0.5:
    assert kept != agreeing_at_most(made, share, seed=1)


def ids(tokens, vocab):
  """Level and code of each token of an ID."""
  first = vocab.docid_token(0, 0)
  return [divmod(token - first, vocab.docid_codes) for token in tokens.tolist() if token >= first]


def test_permuted_codes_are_the_same_lists_of_other_items(tmp_path):
  mixture = {"next_item": 0.0, "caption": 0.0, "lists": 1.0, "text": 0.0}
  made = {}
  for share in (0.0, 1.0, 0.5):
    run = prepare_rerank(tiny("mid_training", mixture=mixture, permuted_codes=share), tmp_path / str(share))
    made[share] = training_examples(run)
  vocab, mappings = run.vocab, set()
  for plain, permuted in zip(made[0.0], made[1.0], strict=True):
    np.testing.assert_array_equal(plain.parts, permuted.parts)
    first = vocab.docid_token(0, 0)
    words = plain.tokens < first
    np.testing.assert_array_equal(plain.tokens[words], permuted.tokens[words])
    pairs = set(zip(ids(plain.tokens, vocab), ids(permuted.tokens, vocab), strict=True))
    assert all(a[0] == b[0] for a, b in pairs), "a code stays on its level"
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs), (
      "prompt and answer by one permutation"
    )
    mappings.add(tuple(sorted(pairs)))
  assert len(mappings) > 0.9 * len(made[1.0]), "another one in each example, as far as short lists can tell"
  same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(made[0.0], made[0.5], strict=True)]
  assert 0.3 < np.mean(same) < 0.7


def test_a_share_of_what_another_run_learned_is_permuted(rerank_runs, tmp_path):
  before = read_examples(rerank_runs[0] / "sft" / "examples.npz")
  run = prepare_rerank(tiny("cft", rerank_runs[0] / "sft", traces="start", permuted_codes=0.5), tmp_path)
  same = [np.array_equal(a.tokens, b.tokens) for a, b in zip(before, training_examples(run), strict=True)]
  assert 0.2 < np.mean(same) < 0.8


def test_what_an_item_is_called_is_not_permuted(tmp_path):
  made = {}
  for share in (0.0, 1.0):
    mixture = {"next_item": 0.5, "caption": 0.5, "lists": 0.0, "text": 0.0}
    run = prepare_rerank(tiny("mid_training", mixture=mixture, permuted_codes=share), tmp_path / str(share))
    made[share] = [example.tokens.tolist() for example in training_examples(run)]
  assert made[0.0] == made[1.0]


def test_every_code_of_a_level_becomes_each_other_one(tmp_path):
  run = prepare_rerank(tiny("sft"), tmp_path)
  vocab, rng = run.vocab, np.random.default_rng(0)
  every = np.arange(vocab.size, dtype=np.int32)
  first = vocab.docid_token(0, 0)
  seen = [permute_codes(every, vocab, rng) for _ in range(200)]
  for tokens in seen:
    np.testing.assert_array_equal(np.sort(tokens), every)
    np.testing.assert_array_equal(tokens[:first], every[:first])
  assert {int(tokens[first]) for tokens in seen} == set(range(first, first + vocab.docid_codes))
