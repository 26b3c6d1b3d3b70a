"""The schedule by counting; that the decoders agree with the references is held by evaluation/parity_test.py."""

from pathlib import Path

import numpy as np
import pytest

from diffgr_jax.decoding.greedy import decode_autoregressive, decode_llada, llada_schedule
from diffgr_jax.models.hf_weights import load_hf

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("steps", [1, 3, 5, 8])
def test_the_schedule_commits_every_mask_evenly_and_early(steps):
  masks = np.arange(9)
  counts = llada_schedule(masks, steps)
  assert counts.shape == (steps, 9)
  np.testing.assert_array_equal(counts.sum(axis=0), masks)
  assert (counts.max(axis=0) - counts.min(axis=0) <= 1).all()
  assert (np.diff(counts, axis=0) <= 0).all()


def test_a_row_decodes_alone_as_in_company():
  spec, params = load_hf(GOLDEN / "qwen3_tied")
  rng = np.random.default_rng(0)
  prompt = rng.integers(0, 100, (3, 5), dtype=np.int32)
  valid = np.arange(5)[None, :] >= np.array([[0], [2], [1]])
  both, _ = decode_autoregressive(params, spec.config, prompt, valid, max_new_tokens=6, pad_id=0)
  alone, _ = decode_autoregressive(params, spec.config, prompt[1:2, 2:], valid[1:2, 2:], max_new_tokens=6, pad_id=0)
  np.testing.assert_array_equal(both[1, 5:], alone[0, 3:])


def test_padding_rows_of_the_embedding_are_never_chosen():
  spec, params = load_hf(GOLDEN / "llada_sharded_padvocab")
  loud = np.asarray(params["unembed"]["embedding"]).copy()
  loud[spec.vocab_size :] = 40 * loud[:28]
  params = {**params, "unembed": {"embedding": loud}}
  prompt = np.arange(8, dtype=np.int32)[None]
  settings = dict(mask_id=spec.mask_id, gen_length=8, block_length=8, steps=2)
  everything = decode_llada(params, spec.config, prompt, prompt >= 0, **settings)[-1]
  allowed = decode_llada(params, spec.config, prompt, prompt >= 0, vocab_size=spec.vocab_size, **settings)[-1]
  assert everything.max() >= spec.vocab_size > allowed.max()
  tokens, logits = decode_autoregressive(
    params, spec.config, prompt, prompt >= 0, max_new_tokens=2, pad_id=0, vocab_size=spec.vocab_size
  )
  assert logits.argmax(axis=-1).max() >= spec.vocab_size > tokens.max()


def test_steps_that_do_not_divide_are_refused():
  spec, params = load_hf(GOLDEN / "llada")
  prompt = np.zeros((1, 4), np.int32)
  for block_length, steps in ((5, 4), (4, 3)):
    with pytest.raises(ValueError, match=f"multiple of block_length {block_length}, and steps {steps} of the blocks"):
      decode_llada(
        params,
        spec.config,
        prompt,
        prompt == 0,
        mask_id=119,
        gen_length=16,
        block_length=block_length,
        steps=steps,
      )
