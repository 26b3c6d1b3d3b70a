"""Generate and match, and best of n, against plain Python over all documents."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import policies
from diffgr_jax.decoding.canvas import DecodeOptions, decode_canvas
from diffgr_jax.decoding.matching import best_of_n, generate_and_match, mismatch_counts, nearest_documents
from diffgr_jax.decoding.scoring import one_pass_log_probs, one_pass_retrieve, one_pass_scores


def arrange(toy, seed, rows=3, documents=30):
  codes, scored = toy.codes(seed, documents)
  prompt, _, seeds, banned = toy.inputs(seed, rows)
  return toy.params(seed, 0.5), tuple(map(jnp.asarray, (prompt, codes, scored, banned))), seeds


def differing(canvas, code, eos, pad):
  """How many positions differ when a canvas is read up to its first EOS."""
  canvas = list(canvas)
  if eos in canvas:
    end = canvas.index(eos)
    canvas = canvas[: end + 1] + [pad] * (len(canvas) - end - 1)
  return sum(a != b for a, b in zip(canvas, code, strict=True))


def nearest(counts, scores, pool):
  return set(sorted(range(len(counts)), key=lambda d: (counts[d], -scores[d]))[:pool])


def test_mismatches_are_counted_up_to_the_end_of_a_docid(toy):
  codes, _ = toy.codes(0, 40)
  canvas = np.random.default_rng().integers(0, 8, (25, toy.length))
  counts = mismatch_counts(jnp.asarray(canvas), jnp.asarray(codes), toy.eos, toy.pad)
  expected = [[differing(row, code.tolist(), toy.eos, toy.pad) for code in codes] for row in canvas.tolist()]
  np.testing.assert_array_equal(counts, expected)
  assert (np.diag(mismatch_counts(jnp.asarray(codes), jnp.asarray(codes), toy.eos, toy.pad)) == 0).all()


def test_nearest_documents_break_ties_by_score(toy):
  rng = np.random.default_rng()
  counts, scores = rng.integers(0, 4, (20, 30)), rng.normal(size=(20, 30)).astype(np.float32)
  found = nearest_documents(jnp.asarray(counts), jnp.asarray(scores), 7)
  for row in range(20):
    assert set(found[row].tolist()) == nearest(counts[row].tolist(), scores[row].tolist(), 7)


def test_generate_and_match_ranks_the_nearest_by_one_pass_score(toy):
  params, (prompt, codes, scored, banned), _ = arrange(toy, int(np.random.default_rng().integers(1000)))
  how = dict(denoise=toy.denoise, mask_id=toy.mask)
  found = generate_and_match(params, prompt, codes, scored, banned, eos_id=toy.eos, pad_id=toy.pad, pool=6, **how)
  scores = np.asarray(one_pass_scores(params, prompt, codes, scored, banned, **how))
  best = np.asarray(one_pass_log_probs(params, prompt, banned, length=toy.length, **how)).argmax(axis=-1)
  for row in range(3):
    counts = [differing(best[row].tolist(), code.tolist(), toy.eos, toy.pad) for code in np.asarray(codes)]
    pool = nearest(counts, scores[row].tolist(), 6)
    assert set(found.document[row].tolist()) == pool
    np.testing.assert_allclose(found.score[row], sorted(scores[row][list(pool)], reverse=True), rtol=1e-5)
  assert (found.canvases == 1).all()


def test_a_pool_of_all_documents_is_one_pass_scoring(toy):
  params, (prompt, codes, scored, banned), seeds = arrange(toy, 4)
  how = dict(denoise=toy.denoise, mask_id=toy.mask)
  ends = dict(eos_id=toy.eos, pad_id=toy.pad, pool=30)
  document, _ = one_pass_retrieve(params, prompt, codes, scored, banned, k=30, **how)
  assert (generate_and_match(params, prompt, codes, scored, banned, **ends, **how).document == document).all()
  options = DecodeOptions(policies.Confidence(), toy.mask)
  drawn = dict(denoise=toy.denoise, options=options, steps=2, temperature=1.0, samples=2, k=30)
  assert (best_of_n(params, prompt, seeds, codes, scored, banned, **ends, **drawn).document == document).all()


def test_samples_are_those_of_the_canvas_decoder_and_share_the_first_pass(toy):
  params, (prompt, codes, scored, banned), seeds = arrange(toy, 6)
  options, steps, samples, pool = DecodeOptions(policies.Confidence(), toy.mask), 3, 3, 4
  decode = dict(denoise=toy.denoise, options=options, steps=steps, temperature=1.0)
  ends = dict(eos_id=toy.eos, pad_id=toy.pad)
  found = best_of_n(params, prompt, seeds, codes, scored, banned, samples=samples, pool=pool, k=12, **decode, **ends)
  scores = np.asarray(one_pass_scores(params, prompt, codes, scored, banned, denoise=toy.denoise, mask_id=toy.mask))
  pools = [set() for _ in range(3)]
  for sample in range(samples):
    canvas = np.full((3, toy.length), toy.mask, np.int32)
    state = decode_canvas(params, prompt, canvas, seeds * samples + sample, banned, **decode)
    for row, drawn in enumerate(np.asarray(state.canvas).tolist()):
      counts = [differing(drawn, code.tolist(), toy.eos, toy.pad) for code in np.asarray(codes)]
      pools[row] |= nearest(counts, scores[row].tolist(), pool)
  for row in range(3):
    listed = [document for document in found.document[row].tolist() if document >= 0]
    assert set(listed) == pools[row]
    assert (np.diff(scores[row][listed]) <= 0).all()
  assert (np.asarray(found.canvases) == 1 + samples * (steps - 1)).all()


def test_what_cannot_be_is_refused(toy):
  params, (prompt, codes, scored, banned), seeds = arrange(toy, 4)
  with pytest.raises(ValueError, match=r"pool is 31; it must be in 1\.\.30"):
    generate_and_match(
      params, prompt, codes, scored, banned, denoise=toy.denoise, mask_id=toy.mask, eos_id=1, pad_id=0, pool=31
    )
  options = DecodeOptions(policies.Confidence(), toy.mask)
  how = dict(denoise=toy.denoise, options=options, steps=2, temperature=1.0, eos_id=1, pad_id=0, pool=3, k=3)
  with pytest.raises(ValueError, match="samples is 0"):
    best_of_n(params, prompt, seeds, codes, scored, banned, samples=0, **how)
