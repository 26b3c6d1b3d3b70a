"""Text from the tiny recorded checkpoints, by every decoder: what the decoders give, cut at its stop."""

import dataclasses
from pathlib import Path
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from diffgr_jax.decoding.autoregressive import decode_autoregressive
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.denoiser import banned_tokens
from diffgr_jax.decoding.policies import Confidence
from diffgr_jax.generation.options import GenerationOptions, make_plan
from diffgr_jax.generation.text import TextGenerator, find_tokenizer
from diffgr_jax.models.attention import padded_layout
from diffgr_jax.models.denoiser import CanvasDenoiser
from diffgr_jax.models.transformer import bind
from diffgr_jax.training.pretrained import load_pretrained, read_spec

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
  """Tiny programs: leave out the optimisations, which take most of the time."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def write_tokenizer(folder, size=120):
  """A word a token: `w0 w1 ...`, joined by nothing, so that stop strings cross the tokens' borders."""
  model = tokenizers.models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0")
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  tokenizer.decoder = tokenizers.decoders.Fuse()
  tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
  def copy(name):
    folder = tmp_path_factory.mktemp(name)
    for file in (GOLDEN / name).iterdir():
      shutil.copy(file, folder)
    write_tokenizer(folder)
    return folder

  return copy


def generator(folder, **how):
  plan = make_plan(GenerationOptions(**how), read_spec(folder))
  return TextGenerator(plan, load_pretrained(folder)[1], find_tokenizer(folder))


PROMPT, IDS = "w5 w9 w33 w2", [5, 9, 33, 2]


def test_autoregressive_text_and_a_stop_string_across_tokens(folder_of):
  folder = folder_of("qwen2")
  generate = generator(folder, max_new_tokens=8)
  free = generate(PROMPT)
  spec, params = load_pretrained(folder)
  rows = decode_autoregressive(
    params, np.array([IDS]), np.ones((1, 4), bool), np.zeros(1, int), banned_tokens(spec.config.vocab_size, 120, []),
    config=spec.config, max_new_tokens=8, pad_id=0, stops=[(spec.eos_id,)],
  )  # fmt: skip
  assert list(free.tokens) == np.asarray(rows.tokens)[0, : int(rows.length[0])].tolist()
  assert free.text == "".join(f"w{t}" for t in free.tokens)
  assert free.finish == "length"
  cut = len("".join(f"w{t}" for t in free.tokens[:2])) - 1
  stop = free.text[cut : cut + 3]  # the end of one token and the beginning of the next
  stopped = dataclasses.replace(generate, plan=make_plan(GenerationOptions(max_new_tokens=8, stop=(stop,)), spec))
  answer = stopped(PROMPT)
  assert answer.finish == "stop"
  assert answer.text == free.text[: free.text.index(stop)]
  assert len(answer.tokens) < len(free.tokens)  # it ended there
  assert answer.forwards == len(answer.tokens)


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_canvas_text_is_that_of_the_canvas_decoder(folder_of, name):
  folder = folder_of(name)
  generate = generator(folder, max_new_tokens=8, steps=4)
  answer = generate(PROMPT, trace=True)
  spec, params = load_pretrained(folder)
  never = banned_tokens(spec.config.vocab_size, spec.vocab_size, [])
  state = decode_canvas(
    params, np.array([IDS]), np.full((1, 8), spec.mask_id), np.zeros(1, int), never,
    denoise=CanvasDenoiser(spec.config, 77), options=DecodeOptions(Confidence(), spec.mask_id), steps=4,
  )  # fmt: skip
  text = np.asarray(state.canvas)[0].tolist()
  end = text.index(spec.eos_id) + 1 if spec.eos_id in text else 8
  assert list(answer.tokens) == text[:end]
  assert answer.forwards == 4
  np.testing.assert_array_equal(answer.trace.canvas[-1, 0], text)


def test_blocks_write_text_as_the_trace_says(folder_of):
  generate = generator(folder_of("sdar"), max_new_tokens=8, policy="threshold", threshold=0.2)
  plain, traced = generate(PROMPT), generate(PROMPT, trace=True)
  assert dataclasses.replace(traced, trace=None) == plain
  assert traced.trace.canvas[-1, 0, : len(plain.tokens)].tolist() == list(plain.tokens)
  assert traced.trace.steps_of(0) <= plain.forwards


def test_a_beam_writes_any_text_or_one_of_a_file(folder_of, tmp_path):
  folder = folder_of("qwen2")
  greedy = generator(folder, max_new_tokens=5)(PROMPT)
  narrow = generator(folder, decoder="beam", width=1, max_new_tokens=5)(PROMPT, trace=True)
  assert (narrow.tokens, narrow.text, narrow.forwards) == (greedy.tokens, greedy.text, greedy.forwards)
  assert narrow.trace.canvas[-1, 0].tolist() == list(narrow.tokens)
  wide = generator(folder, decoder="beam", width=6, max_new_tokens=5)(PROMPT)
  assert len(wide.beams) == 6
  assert wide.beams[0].text == wide.text
  assert wide.beams[0].score >= narrow.beams[0].score - 1e-4
  allowed, lines = tmp_path / "allowed.txt", ["w5 w7", "w5 w7 w9", "w80", "w81 w3"]
  allowed.write_text("\n".join([*lines, "", ""]))
  spec, params = load_pretrained(folder)
  rows = [[*IDS, *(int(word[1:]) for word in line.split()), spec.eos_id] for line in lines]
  batch = np.zeros((len(rows), 8), np.int32)  # what stands behind a row is not seen
  for padded, row in zip(batch, rows, strict=True):
    padded[: len(row)] = row
  logits = jax.jit(lambda tokens: bind(spec.config, params).logits(bind(spec.config, params)(tokens, layout)))
  layout = padded_layout(jnp.ones(batch.shape, bool))
  log_probs = np.asarray(logits(batch), np.float64)[..., : spec.vocab_size]
  log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
  scores = {}
  for row, known in zip(rows, log_probs, strict=True):
    text = "".join(f"w{token}" for token in row[4:])  # of this tokenizer EOS is a word like any other
    scores[text] = sum(known[3 + i, token] for i, token in enumerate(row[4:]))
  chosen = generator(folder, decoder="beam", width=6, allowed=str(allowed))(PROMPT)
  assert [beam.text for beam in chosen.beams] == sorted(scores, key=scores.get, reverse=True)
  np.testing.assert_allclose([beam.score for beam in chosen.beams], sorted(scores.values(), reverse=True), atol=1e-3)
  assert chosen.finish == "eos"
  among = generator(folder, decoder="beam", width=6, allowed=str(allowed), renormalise=True)(PROMPT)
  np.testing.assert_allclose(sum(np.exp(beam.score) for beam in among.beams), 1.0, atol=1e-4)


def test_what_cannot_be_is_named_before_weights_are_read(tmp_path):
  def spec_of(name):
    return read_spec(GOLDEN / name)

  for name, how, message in (
    ("qwen2", dict(decoder="canvas"), "--decoder=canvas does not fit this qwen2 model, whose attention is causal"),
    ("llada", dict(decoder="autoregressive"), "it may be canvas"),
    ("llada", dict(decoder="tree"), "--decoder is one of autoregressive, beam, canvas, block"),
    ("llada", dict(decoder="beam"), "--decoder=beam does not fit this llada model, .* it may be canvas"),
    ("qwen2", dict(width=2), "--width does not apply to the autoregressive decoder; it applies to beam"),
    ("qwen2", dict(decoder="beam", width=0), "--width is 0"),
    ("qwen2", dict(decoder="beam", temperature=1.0), "--temperature does not apply to the beam decoder"),
    ("qwen2", dict(decoder="beam", renormalise=True), "--renormalise needs --allowed"),
    ("qwen2", dict(decoder="beam", allowed="x", max_new_tokens=3), "--max_new_tokens does not apply with --allowed"),
    ("qwen2", dict(policy="margin"), "--policy does not apply to the autoregressive decoder; .* canvas, block"),
    ("sdar", dict(guidance=1.0), "--guidance does not apply to the block decoder; it applies to canvas"),
    ("llada", dict(policy="best"), "--policy is one of random"),
    ("llada", dict(policy="threshold", threshold=1.5), "--threshold: .*probability in"),
    ("llada", dict(threshold=0.5), "--threshold does not apply to --policy=confidence"),
    ("llada", dict(schedule="late"), "--schedule is one of even"),
    ("llada", dict(cache="sub_block"), "--cache of the canvas decoder is one of exact, prefix, dual"),
    ("llada", dict(cache="dual"), "--block_size is 0; with --cache=dual it must divide"),
    ("llada", dict(cache="dual", block_size=12), "--block_size is 12; .*--max_new_tokens=64"),
    ("llada", dict(cache="dual", block_size=8, guidance=1.0), "--guidance needs --cache=exact"),
    ("llada", dict(refresh=2), "--refresh is about --cache=prefix"),
    ("llada", dict(block_size=16, steps=6), "--steps is 6; it must be a multiple of the 4 blocks"),
    ("llada", dict(max_new_tokens=0), "--max_new_tokens is 0"),
    ("llada", dict(stop=("",)), "--stop is empty"),
    ("llada", dict(temperature=-1.0), "--temperature: "),
    ("qwen2", dict(top_p=1.5), "--top_p: "),
    ("qwen2", dict(top_k=-1), "--top_k: "),
    ("llada", dict(remask=-1), "--remask: "),
    ("llada", dict(alignment="left"), "--alignment: "),
    ("llada", dict(mask_id=500), "--mask_id is 500"),
    ("sdar", dict(sub_block=3), "--sub_block is 3; it must divide --block_size=4"),
    ("sdar", dict(cache="sub_block"), "--cache=sub_block needs --sub_block"),
    ("sdar", dict(shifted_first="noisy"), "--shifted_first is about shifted models"),
    ("fast_dllm_v2", dict(), "--mask_id is needed"),
    ("fast_dllm_v2", dict(mask_id=119, cache="sub_block", sub_block=4, shifted_first="clean"), "of a shifted"),
    ("fast_dllm_v2", dict(mask_id=119, remask=1), "--remask of the block decoder needs"),
    ("bert_minilm", dict(), "no output head"),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      make_plan(GenerationOptions(**how), spec_of(name))
  assert make_plan(GenerationOptions(mask_id=119), spec_of("fast_dllm_v2")).blocks.shifted_first == "noisy"
  with pytest.raises(FileNotFoundError):
    find_tokenizer(tmp_path)
  with pytest.raises(FileNotFoundError, match="--allowed=/no/such"):
    make_plan(GenerationOptions(decoder="beam", allowed="/no/such"), spec_of("qwen2"))
