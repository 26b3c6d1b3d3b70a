"""Building an index: what its options do together, and what is measured."""

import numpy as np
import pytest

from diffgr_jax.docid.build import BuildOptions, build_index, reusable_quantizer, with_words
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.collisions import in_collision
from diffgr_jax.docid.words import fit_word_coder

VECTORS = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
VECTORS[30:40] = VECTORS[:10]  # equal documents collide whatever the codes
NAMES = [f"d{row}" for row in range(60)]
OPTIONS = dict(levels=2, codes=16, iterations=5)


def build(vectors=VECTORS, quantizer=None, **options):
  return build_index(NAMES, [""] * 60, vectors, BuildOptions(**(OPTIONS | options)), quantizer=quantizer)


@pytest.mark.parametrize("method", ["residual_kmeans", "product"])
@pytest.mark.parametrize("rule", ["none", "extra_level", "random", "optimal"])
def test_collisions_are_counted_before_and_after(method, rule):
  index = build(method=method, collisions=rule)
  own = index.quantizer.encode(VECTORS)
  measured = index.settings["measured"]
  assert measured["in_collision_before"] == in_collision(own) >= 20
  assert measured["in_collision"] == in_collision(index.codes)
  assert (measured["in_collision"] == 0) == (rule != "none")
  if rule in ("none", "extra_level"):
    np.testing.assert_array_equal(index.codes[:, :2], own)
    assert measured["relative_error_after_collisions"] == measured["relative_error"][-1]
  else:
    assert measured["relative_error_after_collisions"] > measured["relative_error"][-1]


def test_the_optimal_rule_costs_no_more_than_the_random_one():
  errors = {rule: build(collisions=rule).settings["measured"] for rule in ("optimal", "random")}
  after = "relative_error_after_collisions"
  assert errors["optimal"][after] <= errors["random"][after]


def test_controls_keep_a_quantiser_only_where_it_still_means_something():
  plain, shuffled = build(), build(control="shuffled_documents")
  permuted = build(control="permuted_levels")
  order = permuted.settings["build"]["level_order"]
  np.testing.assert_array_equal(permuted.codes, plain.codes[:, order])
  assert shuffled.quantizer is None
  assert reusable_quantizer(plain, "i") is plain.quantizer
  for control in (shuffled, permuted, build(None, method="random", collisions="none")):
    with pytest.raises(ValueError, match="i has no quantiser that gives its codes"):
      reusable_quantizer(control, "i")


def test_a_quantiser_that_exists_gives_the_codes():
  quantizer = build().quantizer
  index = build(VECTORS[::-1].copy(), quantizer, collisions="none", levels=7)
  np.testing.assert_array_equal(index.codes, quantizer.encode(VECTORS)[::-1])
  assert index.settings["build"]["levels"] == 2


def test_levels_that_name_words_stand_behind_the_others_and_need_codes_that_mean_something(tmp_path):
  index, texts = build(), [[row % 7, row % 11] for row in range(60)]
  coder = fit_word_coder(texts, 11, levels=3, codes=16)
  worded = with_words(index, coder, [[]] * 60, texts)
  worded.save(tmp_path / "i.npz")
  again = CodeIndex.load(tmp_path / "i.npz")
  for made in (worded, again):
    np.testing.assert_array_equal(made.codes, np.concatenate([index.codes, coder.encode([[]] * 60, texts)], axis=1))
    assert (made.level_sizes, made.words.levels) == ((16,) * 5, 3)
    assert made.settings["build"]["word_levels"] == 3
  np.testing.assert_array_equal(again.words.idf, coder.idf)
  for control in (build(control="permuted_levels"), build(None, method="random", collisions="none")):
    with pytest.raises(ValueError, match="not with those of a control"):
      with_words(control, coder, [[]] * 60, texts)


@pytest.mark.parametrize(
  "options, message",
  [
    (dict(method="kd"), "method is one of residual_kmeans, product, rqvae, random, not 'kd'"),
    (dict(collisions="x"), "collisions is one of"),
    (dict(control="x"), "control is one of"),
    (dict(levels=0), "at least 1, not 0, 16, 5"),
    (dict(method="random"), "with them, no control, and collisions none"),
    (dict(vectors=None), "no document vectors for 60 documents"),
    (dict(vectors=VECTORS[:9]), "9 document vectors for 60 documents"),
  ],
)
def test_what_does_not_go_together_is_said(options, message):
  with pytest.raises(ValueError, match=message):
    build(**options)
