"""The generative retriever: what it reads, that it learns, that it is trained once, and that it never sees a target."""

import dataclasses
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.rerank.candidates import ListOptions, make_lists
from diffgr_jax.rerank.records import Shop
from diffgr_jax.rerank.retrievers import Requests, Retriever
from diffgr_jax.rerank.splits import leave_one_out
from diffgr_jax.training import item_retriever
from diffgr_jax.training.item_retriever import ItemModel, RetrieverRecipe, generative
from diffgr_jax.training.rerank_run import open_rerank, prepare_rerank
from tests.rerank import shops
from tests.training.tiny_rerank import tiny

SMALL = RetrieverRecipe(history=3, d_model=16, n_layers=1, n_heads=2, d_ff=32, steps=3, batch_size=8)


@dataclass(frozen=True)
class Spy:
  """A retriever that keeps what it was asked and what it answered."""

  retriever: Retriever
  answers: list[tuple[Requests, np.ndarray]]

  @property
  def name(self):
    return self.retriever.name

  def rank(self, requests, k):
    self.answers.append((requests, self.retriever.rank(requests, k)))
    return self.answers[-1][1]


def random_codes(rng, items, levels=3, size=5):
  """Distinct codes."""
  every = rng.permutation(size**levels)[:items]
  return np.stack([every // size**level % size for level in range(levels)], axis=1)


def test_a_prompt_holds_the_codes_of_the_last_items():
  codes = np.array([[0, 1], [2, 0], [1, 1], [2, 2]])
  model = ItemModel(codes, dataclasses.replace(SMALL, history=2))
  # PAD 0, BOS 1, SEP 3, then the three codes of level 0 from 4 on, and those of level 1 from 7 on
  assert model.prompts([(3, 0, 1), (2,), ()]).tolist() == [
    [1, 4, 8, 6, 7, 3],
    [0, 0, 1, 5, 8, 3],
    [0, 0, 0, 0, 1, 3],
  ]


def test_scores_are_the_sum_of_the_levels_log_probabilities():
  rng = np.random.default_rng()
  model = ItemModel(random_codes(rng, 30), SMALL)
  histories = [(1, 2, 3, 4), (5,), (7, 9)]
  params = model.fit([(1, 2, 3), (4, 5)], seed=int(rng.integers(1000)))
  prompts, masks = jnp.asarray(model.prompts(histories)), jnp.full((3, 3), model.size)
  logits = np.asarray(model.denoiser(params, prompts, masks), np.float64)[..., : model.size]
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = [[sum(row[level, code] for level, code in enumerate(item)) for item in model.codes] for row in log_probs]
  np.testing.assert_allclose(model.scores(params, histories), expected, rtol=1e-4, atol=1e-4)


def test_it_learns_what_follows_what(tmp_path):
  rng = np.random.default_rng()
  items, users = 24, 200
  after = rng.permutation(items)  # whoever takes i takes after[i] next
  histories = []
  for start in rng.integers(items, size=users).tolist():
    history = [start]
    while len(history) < 4:
      history.append(int(after[history[-1]]))
    histories.append(tuple(history))
  recipe = dataclasses.replace(SMALL, d_model=32, steps=200, batch_size=64, learning_rate=1e-2)
  retriever = generative(histories[:150], items, codes=random_codes(rng, items), folder=tmp_path, recipe=recipe)
  asked = Requests(histories, np.arange(150, users), np.full(50, 2))
  found = retriever.rank(asked, 3)
  expected = np.array([history[2] for history in histories[150:]])
  new = np.array([history[2] not in history[:2] for history in histories[150:]])  # what was taken is never listed
  assert np.mean(found[new, 0] == expected[new]) > 0.9


def test_it_is_trained_once_for_what_it_follows_from(tmp_path, monkeypatch):
  trained = []
  fit = ItemModel.fit
  monkeypatch.setattr(ItemModel, "fit", lambda self, *given: trained.append(self) or fit(self, *given))
  rng = np.random.default_rng()
  codes, histories = random_codes(rng, 20), [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9)]
  asked = Requests(histories, np.arange(3), np.array([2, 2, 3]))
  made = lambda histories=histories, **how: generative(
    histories, 20, folder=tmp_path, **({"codes": codes, "recipe": SMALL} | how)
  ).rank(asked, 5)
  first = made()
  np.testing.assert_array_equal(made(), first)
  assert len(trained) == 1
  made(recipe=dataclasses.replace(SMALL, steps=4))
  made(codes=codes[::-1])
  made(histories=[(0, 1, 2), (3, 4, 5), (6, 7, 8)])
  made(seed=1)
  assert len(trained) == len(list(tmp_path.iterdir())) == 5


def test_a_large_shop_is_compared_with_a_pool(tmp_path, monkeypatch):
  monkeypatch.setattr(item_retriever, "_ALL_ITEMS", 8)
  codes = random_codes(np.random.default_rng(), 20)
  assert ItemModel(codes, SMALL).stage.document_negatives == 8
  assert ItemModel(codes[:8], SMALL).stage.document_negatives == 0
  retriever = generative([(0, 1, 2)], 20, codes=codes, folder=tmp_path, recipe=SMALL)
  assert retriever.rank(Requests([(0, 1, 2)], np.array([0]), np.array([2])), 5).shape == (1, 5)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_what_a_user_took_from_the_target_on_changes_no_list(tmp_path, split):
  rng = np.random.default_rng()
  shop = shops.random_shop(rng, users=20, items=40)
  codes, options = random_codes(rng, 40), ListOptions(size=10, pool=10, folds=2)
  number = next(n for n, history in enumerate(shop.histories) if len(history) > 3)
  place = {"train": 1, "valid": len(shop.histories[number]) - 2, "test": len(shop.histories[number]) - 1}[split]
  rest = rng.permutation([item for item in range(40) if item not in shop.histories[number][:place]])

  def pool(own):
    """The retriever's list for the place, had the user taken `own`."""
    histories = tuple(own if n == number else history for n, history in enumerate(shop.histories))
    lists = []
    spied = lambda known, items: Spy(generative(known, items, codes=codes, folder=tmp_path, recipe=SMALL), lists)
    changed = Shop(shop.name, shop.items, shop.users, histories, "")
    make_lists(leave_one_out(changed), split, spied, options)
    return next(
      found[row].tolist()
      for requests, found in lists
      for row in range(len(requests))
      if (requests.users[row], requests.places[row]) == (number, place)
    )

  history = shop.histories[number]
  other = history[:place] + tuple(int(item) for item in rest[: len(history) - place])
  assert pool(other) == pool(history)


def test_histories_and_codes_that_cannot_be_learned_from_are_refused(tmp_path):
  codes = random_codes(np.random.default_rng(), 20)
  with pytest.raises(ValueError, match="no history that it may know has two items"):
    generative([(1,), ()], 20, codes=codes, folder=tmp_path, recipe=SMALL)
  with pytest.raises(ValueError, match="the shop has 21 items, and 20 semantic IDs are given"):
    generative([(1, 2)], 21, codes=codes, folder=tmp_path, recipe=SMALL)


def test_a_next_stage_has_the_retriever_of_its_start(tmp_path, monkeypatch):
  fields = {"retriever": "generative", "retriever_steps": 2, "retriever_width": 16}
  first = prepare_rerank(tiny("sft", **fields), tmp_path / "sft")
  tasks = first.lists("test").tasks
  kept = {file.name for file in (tmp_path / "sft" / "retriever").iterdir()}
  assert len(kept) == 3  # of two folds, and for test lists
  monkeypatch.setattr(ItemModel, "fit", None)
  second = prepare_rerank(tiny("convert", tmp_path / "sft", **fields), tmp_path / "convert")
  assert second.lists("test").tasks == tasks
  assert open_rerank(tmp_path / "convert").lists("test").tasks == tasks
