"""Top-k diffusion decoding against enumeration of the score that it ranks by."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffgr_jax.decoding import policies, scoring
from diffgr_jax.decoding.topk import TopKOptions, decode_topk, decode_topk_steps

POLICIES = (policies.Confidence(), policies.Entropy(), policies.Margin(), policies.Sequential(), policies.Random())


def enumerate_scores(toy, params, prompt, seed, codes, scored, banned, prior, options):
  """log P of every document of one query, by walking the tree of canvases in plain Python."""
  score = np.full(len(codes), -np.inf)
  key = jax.random.key(seed)

  def by_tokens(members, weight, masked, at, plain, corrected):
    """Children by the token at one position, documents inside a child by the other masked positions."""
    rest = masked & (np.arange(toy.length) != at)
    left = np.array([corrected[rest & scored[d], codes[d][rest & scored[d]]].sum() for d in members])
    left[~np.isfinite(weight)] = -np.inf
    tokens = codes[members][:, at]
    alive = {token for token, value in zip(tokens, left, strict=True) if np.isfinite(value)}
    total = np.logaddexp.reduce([plain[at, token] for token in alive])
    share = np.full(len(members), -np.inf)
    for token in alive:
      child = (tokens == token) & np.isfinite(left)
      share[child] = plain[at, token] - total + left[child] - np.logaddexp.reduce(left[child])
    return share

  def walk(canvas, members, mass, depth):
    logits = toy.denoise(params, prompt[None], jnp.asarray(canvas)[None])
    allowed = ~banned & (np.arange(toy.vocab) != toy.mask)
    log_probs = jax.nn.log_softmax(jnp.where(jnp.asarray(allowed)[None, None], logits, -jnp.inf))
    exact = np.asarray(log_probs, np.float64)[0] - prior
    masked = canvas == toy.mask
    weight = np.array([exact[masked & scored[d], codes[d][masked & scored[d]]].sum() for d in members])
    if not np.isfinite(weight).any():
      return
    inside = weight - np.logaddexp.reduce(weight)
    stats = policies.position_stats(log_probs)
    priority = np.array(options.policy.priority(stats, jax.random.fold_in(key, depth)[None]))[0]
    priority[~masked] = -np.inf
    chosen = np.argsort(-priority, kind="stable")[: min(options.commit, masked.sum())]
    if options.weigh == "tokens" and len(chosen) and depth + 1 < options.steps:
      inside = by_tokens(members, weight, masked, chosen[0], exact + prior, exact)
    score[members] = mass + inside
    if depth + 1 == options.steps or not len(chosen):
      return
    shown = canvas != toy.mask
    shown[chosen] = True
    for group in np.unique(codes[members][:, shown], axis=0):
      among = members[(codes[members][:, shown] == group).all(axis=1)]
      if len(np.unique(codes[among], axis=0)) > 1 and np.isfinite(score[among]).any():
        child = np.full(len(canvas), toy.mask)
        child[shown] = group
        walk(child.astype(np.int32), among, np.logaddexp.reduce(score[among]), depth + 1)

  walk(np.full(toy.length, toy.mask, np.int32), np.arange(len(codes)), 0.0, 0)
  return score


def arrange(toy, seed, documents=30):
  codes, scored = toy.codes(seed, documents)
  prompt, _, seeds, banned = toy.inputs(seed, 3)
  prior = 0.3 * np.random.default_rng(seed).normal(size=(toy.length, toy.vocab)).astype(np.float32)
  return toy.params(seed, 0.5), (prompt, seeds, codes, scored, banned, prior)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: type(p).__name__)
def test_a_beam_as_wide_as_the_corpus_is_enumeration(toy, policy):
  for seed, steps, commit, weigh in (
    (0, 3, 1, "documents"), (1, 2, 2, "documents"), (2, 4, 2, "documents"), (3, 2, 1, "tokens"), (4, 4, 1, "tokens")
  ):  # fmt: skip
    params, inputs = arrange(toy, seed)
    options = TopKOptions(policy, toy.mask, steps=steps, beam=30, commit=commit, pool=30, weigh=weigh)
    found = decode_topk(params, *inputs, denoise=toy.denoise, options=options, k=30)
    for row, (prompt, row_seed) in enumerate(zip(inputs[0], inputs[1], strict=True)):
      exact = enumerate_scores(toy, params, prompt, row_seed, *inputs[2:], options)
      got = np.full(30, np.nan)
      got[np.asarray(found.document[row])] = found.score[row]
      np.testing.assert_allclose(got, exact, atol=2e-5)
      assert (np.diff(np.asarray(found.score[row])) <= 0).all()
      assert np.isclose(np.exp(exact).sum(), 1.0)


def test_steps_change_the_ranking(toy):
  """Otherwise the enumeration above would prove little."""
  params, inputs = arrange(toy, 0)
  ranked = [
    decode_topk(params, *inputs, denoise=toy.denoise, options=TopKOptions(POLICIES[0], toy.mask, steps, 30), k=30)
    for steps in (1, 3)
  ]
  assert (np.asarray(ranked[0].document) != np.asarray(ranked[1].document)).any()
  assert (ranked[0].canvases == 1).all()
  assert (ranked[0].forwards == 1).all()
  assert (ranked[1].canvases > 3).all()
  assert (ranked[1].forwards == 3).all()


def test_weighed_by_tokens_from_left_to_right_it_is_the_chain_rule_over_what_exists(toy):
  """In plain Python: a token's share among those that lead on, and so the score of a renormalised beam."""
  params, (prompt, seeds, codes, _, banned, _) = arrange(toy, 7)
  options = TopKOptions(policies.Sequential(), toy.mask, steps=toy.length, beam=30, pool=30, weigh="tokens")
  whole = np.ones(codes.shape, bool)
  found = decode_topk(params, prompt, seeds, codes, whole, banned, denoise=toy.denoise, options=options, k=30)
  allowed = jnp.asarray(~banned & (np.arange(toy.vocab) != toy.mask))
  for row in range(len(prompt)):
    exact = np.zeros(30)
    for d, code in enumerate(codes):
      for level, token in enumerate(code):
        canvas = np.where(np.arange(toy.length) < level, code, toy.mask).astype(np.int32)
        logits = toy.denoise(params, prompt[row : row + 1], jnp.asarray(canvas)[None])[0, level]
        log_probs = np.asarray(jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf)), np.float64)
        leads_on = np.unique(codes[(codes[:, :level] == code[:level]).all(axis=1), level])
        exact[d] += log_probs[token] - np.logaddexp.reduce(log_probs[leads_on])
    same = (codes[:, None] == codes[None]).all(axis=2).sum(axis=1)  # documents with one DocID share its probability
    got = np.full(30, np.nan)
    got[np.asarray(found.document[row])] = found.score[row]
    np.testing.assert_allclose(got, exact - np.log(same), atol=2e-5)


def test_children_are_weighed_by_one_token_at_a_time(toy):
  with pytest.raises(ValueError, match=r"TopKOptions\.weigh is one of documents, tokens, not 'sets'"):
    TopKOptions(POLICIES[0], toy.mask, 2, 2, weigh="sets")
  with pytest.raises(ValueError, match=r"TopKOptions\.commit must be 1, not 2"):
    TopKOptions(POLICIES[0], toy.mask, 2, 2, commit=2, weigh="tokens")


def test_one_step_is_one_pass_scoring(toy):
  params, inputs = arrange(toy, 3)
  options = TopKOptions(POLICIES[0], toy.mask, steps=1, beam=4)
  found = decode_topk(params, *inputs, denoise=toy.denoise, options=options, k=10)
  prompt, _, *index = (jnp.asarray(x) for x in inputs)
  best, score = scoring.one_pass_retrieve(params, prompt, *index, denoise=toy.denoise, mask_id=toy.mask, k=10)
  total = scoring.one_pass_scores(params, prompt, *index, denoise=toy.denoise, mask_id=toy.mask)
  assert (found.document == best).all()
  expected = score - jax.nn.logsumexp(total, axis=-1, keepdims=True)
  np.testing.assert_allclose(found.score, expected, atol=1e-5)


def test_a_narrow_beam_returns_distinct_documents_and_keeps_the_mass(toy):
  params, inputs = arrange(toy, 4, documents=50)
  inputs[4][4] = True  # some documents hold a token that is never produced
  options = TopKOptions(POLICIES[0], toy.mask, steps=4, beam=3)
  *_, last = decode_topk_steps(params, *inputs, denoise=toy.denoise, options=options)
  np.testing.assert_allclose(np.exp(np.asarray(last.score)).sum(axis=-1), 1.0, rtol=1e-5)
  assert (last.canvases <= options.nodes).all()
  found = decode_topk(params, *inputs, denoise=toy.denoise, options=options, k=6)
  for row in np.asarray(found.document):
    assert len(set(row.tolist())) == 6
  banned = inputs[4][inputs[2]].any(axis=1)
  assert 0 < banned.sum() < 44
  assert not banned[np.asarray(found.document)].any()
  assert (np.asarray(last.score)[:, banned] == -np.inf).all()


def test_the_loop_agrees_with_its_twin_and_rows_with_themselves(toy):
  params, inputs = arrange(toy, 5)
  for policy in POLICIES:
    options = TopKOptions(policy, toy.mask, steps=3, beam=4)
    found = decode_topk(params, *inputs, denoise=toy.denoise, options=options, k=12)
    *_, last = decode_topk_steps(params, *inputs, denoise=toy.denoise, options=options)
    document, score = scoring.top_documents(last.score, 12)
    assert (document == found.document).all()
    np.testing.assert_allclose(score, found.score, atol=1e-6)
    alone = (inputs[0][1:2], inputs[1][1:2], *inputs[2:])
    single = decode_topk(params, *alone, denoise=toy.denoise, options=options, k=12)
    assert (single.document[0] == found.document[1]).all()
    assert (single.canvases[0], single.forwards[0]) == (found.canvases[1], found.forwards[1])


@pytest.mark.parametrize("weigh", ["documents", "tokens"])
def test_a_share_of_the_root_ranks_by_one_pass_too(toy, weigh):
  params, inputs = arrange(toy, 8)
  prompt, _, *index = (jnp.asarray(x) for x in inputs)
  total = scoring.one_pass_scores(params, prompt, *index, denoise=toy.denoise, mask_id=toy.mask)
  one = total - jax.nn.logsumexp(total, axis=-1, keepdims=True)
  plain = TopKOptions(policies.Sequential(), toy.mask, steps=3, beam=30, pool=30, weigh=weigh)
  mixed = dataclasses.replace(plain, root=0.25)
  found = decode_topk(params, *inputs, denoise=toy.denoise, options=mixed, k=30)
  *_, last = decode_topk_steps(params, *inputs, denoise=toy.denoise, options=plain)
  assert not np.allclose(last.score, one, atol=1e-2)
  document, score = scoring.top_documents(0.75 * last.score + 0.25 * one, 30)
  assert (document == found.document).all()
  np.testing.assert_allclose(found.score, score, atol=2e-5)


def test_a_narrow_beam_follows_what_it_ranks_by(toy):
  """With almost nothing but the root, the one group asked about is that of the best document of one pass."""
  params, inputs = arrange(toy, 9)
  codes = inputs[2]
  options = TopKOptions(policies.Sequential(), toy.mask, steps=2, beam=1, weigh="tokens", root=0.999)
  first, last = decode_topk_steps(params, *inputs, denoise=toy.denoise, options=options)
  assert (np.argmax(first.root, axis=-1) != np.argmax(first.score, axis=-1)).any()
  for root, node in zip(np.asarray(first.root), np.asarray(last.node), strict=True):
    groups = (codes[:, 0] == codes[best, 0] for best in np.argsort(-root))
    group = next(group for group in groups if len(np.unique(codes[group], axis=0)) > 1)  # else nothing to decide
    assert ((node == 1) == group).all()


@pytest.mark.parametrize(
  "field, value", [("root", 1.0), ("root", -0.1), ("steps", 0), ("beam", 0), ("commit", 0), ("pool", -1)]
)
def test_options_that_cannot_work_are_refused(toy, field, value):
  with pytest.raises(ValueError, match=rf"TopKOptions\.{field} is {value}"):
    TopKOptions(POLICIES[0], toy.mask, **({"steps": 2, "beam": 2} | {field: value}))


def test_k_and_shapes_are_checked(toy):
  params, inputs = arrange(toy, 6)
  options = TopKOptions(POLICIES[0], toy.mask, steps=2, beam=2)
  with pytest.raises(ValueError, match=r"k is 31; it must be in 1\.\.30"):
    decode_topk(params, *inputs, denoise=toy.denoise, options=options, k=31)
  short = (inputs[0], inputs[1][:2], *inputs[2:])
  with pytest.raises(ValueError, match="prompt has 3 rows and row_seeds 2"):
    inspect.unwrap(decode_topk)(params, *short, denoise=toy.denoise, options=options, k=3)  # without the shape check
