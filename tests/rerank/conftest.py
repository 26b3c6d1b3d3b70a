"""A small made-up shop, random tasks on it, and vocabularies of both sizes."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from diffgr_jax.data.pretrained_vocab import pretrained_vocabulary
from diffgr_jax.data.vocab import train_vocabulary
from diffgr_jax.rerank import prompt as p
from diffgr_jax.rerank.chat import message_text
from diffgr_jax.rerank.records import Evidence, Item, RankingTask, Shop
from diffgr_jax.rerank.wording import COUNTS, POPULARITIES, SIMILARITIES

ITEMS, LEVELS, CODES = 60, 4, 16
BRANDS = ("Opi", "Tigi", "Pre de Provence", "", "Bundle Monster", "uYES")
KINDS = (("Beauty", "Nails"), ("Beauty", "Hair Care", "Styling Products"), ("Beauty", "Soaps"), (), ("Eyeliner",))
WORDS = [
  "matte",
  "wax",
  "shadow",
  "polish",
  "soap",
  "giftset",
  "brush",
  "liner",
  "conditioner",
  "cream",
  "blue",
  "silver",
  "rose",
  "mini",
]


@pytest.fixture(scope="session")
def shop():
  rng = np.random.default_rng(5)
  items = []
  for number in range(ITEMS):
    brand = BRANDS[rng.integers(len(BRANDS))]
    title = " ".join([brand, *rng.choice(WORDS, 6)]) if number % 9 else ""
    items.append(Item(f"B{number:03d}", title, brand, KINDS[rng.integers(len(KINDS))]))
  return Shop("made_up", tuple(items), (), (), "f00d")


@pytest.fixture(scope="session")
def codes():
  """Codes of the items, all different."""
  return np.stack(np.unravel_index(np.random.default_rng(6).choice(CODES**LEVELS, ITEMS, False), (CODES,) * LEVELS), 1)


@pytest.fixture(scope="session")
def make_task(shop):
  """A random task; with `target`, one whose target is a candidate."""

  def make(rng, *, candidates=10, history=8, target=True):
    chosen = rng.choice(ITEMS, candidates, False)
    past = tuple(rng.integers(0, ITEMS, history).tolist())
    evidence = []
    for _ in range(candidates):
      supporters = rng.choice(past[-5:], min(2, len(past)), False).tolist() if past and rng.random() < 0.7 else []
      counts = rng.geometric(0.3, 5) - 1
      evidence.append(
        Evidence(
          *map(int, counts[:2]), tuple(dict.fromkeys(supporters)), *map(int, counts[2:]), float(rng.uniform(-0.2, 1))
        )
      )
    aim = int(rng.choice(chosen)) if target else -1
    return RankingTask(f"U{rng.integers(10**6)}", past, tuple(chosen.tolist()), aim, tuple(evidence))

  return make


@pytest.fixture(scope="session")
def vocab(shop, make_task):
  """The compact size: sentencepiece, trained on prompts."""
  rng = np.random.default_rng(7)
  messages = [p.render_prompt(make_task(rng), shop, p.COMPACT) for _ in range(60)]
  texts = [message_text(message, [""] * ITEMS, p.COMPACT.template) for message in messages]
  words = " ".join((*COUNTS.words, *POPULARITIES.words, *SIMILARITIES.words))
  return train_vocabulary([*texts, words, words], 600, docid_levels=LEVELS, docid_codes=CODES)


@pytest.fixture(scope="session")
def chat_vocab(tmp_path_factory):
  """The full size: a byte-level tokenizer with the markers of Qwen3."""
  folder = tmp_path_factory.mktemp("chat")
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=700,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
  )
  tokenizer.train_from_iterator([p.FULL_WORDING.instruction, '{"ranking": ["", ""]}', *WORDS] * 3, trainer)
  tokenizer.add_tokens([tokenizers.AddedToken(text, special=False) for text in ("<think>", "</think>")])
  tokenizer.save(str(folder / "tokenizer.json"))
  names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(names))
  return pretrained_vocabulary(folder, LEVELS, CODES)


@pytest.fixture(params=["compact", "full"])
def size(request, vocab, chat_vocab):
  """Options of prompts, and the vocabulary that goes with them."""
  return (p.COMPACT, vocab) if request.param == "compact" else (p.FULL, chat_vocab)
