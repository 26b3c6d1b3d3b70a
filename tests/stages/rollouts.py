"""Rollouts of small models with ragged prompts, for the tests of what learns from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax.decoding.autoregressive import decode_autoregressive, pad_prompts
from diffgr_jax.decoding.block import decode_blocks
from diffgr_jax.decoding.block_state import BlockOptions
from diffgr_jax.decoding.policies import Threshold
from diffgr_jax.decoding.sampling import make_sampling
from diffgr_jax.decoding.trajectory import autoregressive_trajectories, block_trajectories
from diffgr_jax.models.transformer import init_params
from diffgr_jax.stages.policy import Policy
from tests.stages.small import CAUSAL

PAD, MASK, EOS, SIZE, ROOM = 0, 4, 7, 4, 11
BANNED = (PAD, MASK, *range(40, 48))
STOPS = [(EOS,), *((token,) for token in range(20, 26))]
BANNED_ROWS = jnp.zeros(48, bool).at[jnp.asarray(BANNED)].set(True)


def policy(alignment="shifted", pattern="block_causal", **fields):
  model = dataclasses.replace(CAUSAL, pattern=pattern, alignment=alignment)
  return Policy(model, ROOM, MASK, block_size=SIZE, **fields)


def sharp_params(model, seed=0):
  """Weights that are sure of some tokens and not of others."""
  params = init_params(model, jax.random.key(seed))
  return params | {"final_norm": jax.tree.map(lambda x: 25.0 * x, params["final_norm"])}


def prompts(count, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(8, 40, rng.integers(1, 10)).tolist() for _ in range(count)]


def rollouts(own, params, asked, threshold=0.3, temperature=1.0, seed=0):
  """Trajectories of a policy, as a batch."""
  tokens, valid = pad_prompts(asked, PAD)
  seeds = np.arange(len(asked)) + 1000 * seed
  how = dict(config=own.model, max_new_tokens=ROOM, stops=STOPS, sampling=make_sampling(temperature))
  if own.in_blocks:
    options = BlockOptions(SIZE, Threshold(threshold), MASK, records="drawn")
    state = decode_blocks(params, tokens, valid, seeds, BANNED_ROWS, options=options, **how)
    found = block_trajectories(state, STOPS, mask_id=MASK, max_new_tokens=ROOM)
  else:
    rows = decode_autoregressive(params, tokens, valid, seeds, BANNED_ROWS, pad_id=PAD, **how)
    found = autoregressive_trajectories(rows, tokens, valid, STOPS, mask_id=MASK)
  batch = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
  passes = int(batch["step"].max()) + 1
  batch["copy"] = jnp.broadcast_to(jnp.arange(passes)[None], (len(asked), passes))
  batch["row_seed"] = jnp.asarray(seeds, jnp.int32)
  return batch
