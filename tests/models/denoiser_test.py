"""What decoders ask of a transformer: prompts that do not see the canvas, and canvases of codes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding.scoring import one_pass_log_probs, score_documents
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.denoiser import LOWEST_LOGIT, CanvasDenoiser, CodeDenoiser
from diffgr_jax.models.transformer import bind, init_params

LEVELS, SIZE, FIRST, MASK_TOKEN = 3, 5, 8, 4
CONFIG = TransformerConfig(vocab_size=24, d_model=16, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=8, d_ff=16)
BERT = dataclasses.replace(
  CONFIG, norm="layernorm", norm_position="post", mlp="gelu", position_encoding="learned", max_positions=16, head="mlm"
)
PROMPT = jnp.asarray([[0, 0, 1, 6, 7, 3], [1, 5, 6, 6, 5, 3]])


def canvases(seed):
  return jnp.asarray(np.random.default_rng(seed).integers(0, SIZE + 1, (2, LEVELS)), jnp.int32)


def code_denoiser(config, pattern="prefix"):
  return CodeDenoiser(CanvasDenoiser(config, pad_id=0, pattern=pattern), MASK_TOKEN, FIRST, SIZE)


@pytest.mark.parametrize("config", [CONFIG, BERT], ids=["rotary", "learned"])
def test_behind_a_prefix_the_prompt_does_not_depend_on_the_canvas(config):
  params = init_params(config, jax.random.key(0))
  one, other = (code_denoiser(config).tokens(canvases(seed)) for seed in (0, 1))
  for pattern, same in (("prefix", True), ("prefix_causal", True), ("bidirectional", False)):
    denoiser = CanvasDenoiser(config, pad_id=0, pattern=pattern)
    prompts = [denoiser.read(bind(config, params), PROMPT, canvas)[0] for canvas in (one, other)]
    assert np.allclose(*prompts, atol=1e-6) == same
    seen = [denoiser(params, PROMPT, canvas) for canvas in (one, one.at[:, -1].set(MASK_TOKEN))]
    assert np.allclose(seen[0][:, 0], seen[1][:, 0], atol=1e-6) == (pattern == "prefix_causal")


@pytest.mark.parametrize("config", [CONFIG, BERT], ids=["linear", "mlm"])
def test_a_canvas_of_codes_reads_and_predicts_the_tokens_of_its_levels(config):
  params, canvas = init_params(config, jax.random.key(1)), canvases(2).at[0, 1].set(SIZE)
  denoiser = code_denoiser(config)
  tokens = np.asarray(denoiser.tokens(canvas))
  for row, level in np.ndindex(2, LEVELS):
    code = int(canvas[row, level])
    assert tokens[row, level] == (MASK_TOKEN if code == SIZE else FIRST + level * SIZE + code)
  everything = np.asarray(denoiser.canvas(params, PROMPT, jnp.asarray(tokens)))
  logits = np.asarray(denoiser(params, PROMPT, canvas))
  assert logits.shape == (2, LEVELS, SIZE + 1)
  for level in range(LEVELS):
    of_level = slice(FIRST + level * SIZE, FIRST + (level + 1) * SIZE)
    np.testing.assert_allclose(logits[:, level, :SIZE], everything[:, level, of_level], atol=1e-5)
  assert (logits[..., SIZE] == np.float32(LOWEST_LOGIT)).all()


def test_an_untrained_code_head_ranks_as_dense_retrieval_by_quantised_vectors():
  config = dataclasses.replace(BERT, head="none", code_levels=LEVELS, code_size=SIZE)
  params, rng = init_params(config, jax.random.key(2)), np.random.default_rng(3)
  centroids = rng.normal(size=(LEVELS, SIZE, 16)).astype(np.float32)
  params["code_head"]["centroids"] = jnp.asarray(centroids)
  codes = rng.integers(0, SIZE, (40, LEVELS))
  logits = code_denoiser(config)(params, PROMPT, jnp.full((2, LEVELS), SIZE))
  log_probs = jax.nn.log_softmax(logits)
  scores = np.asarray(score_documents(log_probs, jnp.asarray(codes, jnp.int32), jnp.ones(codes.shape, bool)))
  hidden, _ = code_denoiser(config).canvas.read(bind(config, params), PROMPT, jnp.full((2, LEVELS), MASK_TOKEN))
  valid = np.asarray(PROMPT != 0)
  for row in range(2):
    query = np.asarray(hidden[row], np.float64)[valid[row]].mean(axis=0)
    query /= np.linalg.norm(query)
    dense = 20.0 * centroids[np.arange(LEVELS), codes].sum(axis=1) @ query
    np.testing.assert_allclose(scores[row] - scores[row, 0], dense - dense[0], atol=1e-3)


@pytest.mark.parametrize("config", [CONFIG, BERT], ids=["rotary", "learned"])
def test_where_one_pass_reads_the_prompt_alone_a_masked_canvas_says_nothing(config):
  config = dataclasses.replace(config, head="none", code_levels=LEVELS, code_size=SIZE)
  params = init_params(config, jax.random.key(2))
  draws = {
    name: jax.random.normal(jax.random.key(n), (LEVELS, SIZE, 16)) for n, name in enumerate(("centroids", "rows"))
  }
  params["code_head"] |= draws
  silent = params | {"code_head": params["code_head"] | {"rows": jnp.zeros((LEVELS, SIZE, 16))}}
  reads = code_denoiser(config)
  alone = code_denoiser(dataclasses.replace(config, first_pass="prompt"))
  masked = jnp.full((2, LEVELS), SIZE)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  close(alone.all_masked(params, PROMPT, LEVELS), reads(silent, PROMPT, masked))
  close(alone(params, PROMPT, masked), reads(silent, PROMPT, masked))
  close(reads.all_masked(params, PROMPT, LEVELS), reads(params, PROMPT, masked))
  assert np.abs(np.asarray(reads(params, PROMPT, masked) - alone(params, PROMPT, masked))[..., :SIZE]).max() > 0.1
  half = jnp.stack([masked[0], masked[0].at[1].set(2)])  # a row's own canvas decides
  close(alone(params, PROMPT, half)[0], alone(params, PROMPT, masked)[0])
  close(alone(params, PROMPT, half)[1], reads(params, PROMPT, half)[1])
  banned = jnp.zeros(SIZE + 1, bool)
  by_scoring = one_pass_log_probs(params, PROMPT, banned, denoise=alone, mask_id=SIZE, length=LEVELS)
  close(by_scoring[..., :SIZE], jax.nn.log_softmax(reads(silent, PROMPT, masked)[..., :SIZE]))


def test_one_pass_on_the_prompt_alone_is_a_code_heads():
  with pytest.raises(ValueError, match=r"model\.first_pass 'prompt' is read by a code head"):
    dataclasses.replace(CONFIG, first_pass="prompt")


def test_levels_that_name_words_add_the_terms_of_the_prompts_pieces_once():
  words, pieces = 2, range(5, 8)  # of the levels the last two; the rows 5, 6 and 7 are text
  config = dataclasses.replace(
    BERT, head="none", code_levels=LEVELS, code_size=SIZE, word_levels=words, word_rows=(pieces.start, pieces.stop)
  )
  params = init_params(config, jax.random.key(4))
  terms = np.random.default_rng(5).normal(size=len(pieces)).astype(np.float32)
  plain = code_denoiser(config)(params, PROMPT, jnp.full((2, LEVELS), SIZE))
  params["code_head"]["terms"] = jnp.asarray(terms)
  logits = np.asarray(code_denoiser(config)(params, PROMPT, jnp.full((2, LEVELS), SIZE)) - plain)
  expected = np.zeros_like(logits)
  for row in range(2):
    for token in set(np.asarray(PROMPT[row]).tolist()) & set(pieces):  # the second prompt has one of them twice
      piece = token - pieces.start
      expected[row, LEVELS - words + piece % words, 1 + piece // words % (SIZE - 1)] += 20.0 * terms[piece]
  np.testing.assert_allclose(logits, expected, atol=1e-4)
  assert (expected != 0).sum() == 4


def test_rows_of_words_lie_in_the_vocabulary():
  levels = dict(code_levels=3, code_size=4)
  for wrong in (dict(word_levels=4, word_rows=(5, 9)), dict(word_levels=1), dict(word_levels=1, word_rows=(5, 25))):
    with pytest.raises(ValueError, match=r"model\.word_levels is at most model\.code_levels \(3\)"):
      dataclasses.replace(CONFIG, **levels, **wrong)
