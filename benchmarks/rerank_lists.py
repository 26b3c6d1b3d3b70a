"""How well a re-ranker of any stage writes given lists down: candidates' IDs in the order that the prompt asks for.

    python -m benchmarks.rerank_lists --workdir=W/mid [--lists=200] [--permuted] [--set=threshold=0.9]

Takes lists that no training list of the run is (those of valid), all candidates, in a random order each. Prints
one line of JSON: the share of lists without a mistake, of tokens, and of each code of an ID. It tells a model that
cannot copy from one that cannot choose; --permuted, which permutes the codes of each level in every list, one that
copies from one that knows the shop's items.
"""

import json
from pathlib import Path

from absl import flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.evaluation.rerank_answers import decode_prompts
from diffgr_jax.rerank.chat import encode_messages
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.rerank_examples import listing, permute_codes
from diffgr_jax.training.rerank_run import open_rerank

_WORKDIR = flags.DEFINE_string("workdir", None, "of the run", required=True)
_LISTS = flags.DEFINE_integer("lists", 200, "how many lists", lower_bound=1)
_PERMUTED = flags.DEFINE_bool("permuted", False, "IDs of items that there are not")
_SET = flags.DEFINE_multi_string("set", [], "field=value: a decoding field of the config")


def main(_) -> None:
  run = open_rerank(Path(_WORKDIR.value))
  run.set_decoding(_SET.value)
  params, step = restore_params(run.workdir, run.model)
  rng, template = np.random.default_rng(0), run.prompts.template
  tasks = run.lists("valid").tasks[: _LISTS.value]
  messages = [listing(task.candidates, rng.permutation(len(task.candidates)).tolist(), run.prompts) for task in tasks]
  encoded = encode_messages(messages, run.vocab, run.codes, template)
  tokens_of = lambda one: permute_codes(one.tokens, run.vocab, rng) if _PERMUTED.value else one.tokens
  rows = [(tokens_of(one), one.parts) for one in encoded]
  prompts = [tokens[parts == 0].tolist() for tokens, parts in rows]
  wanted = [tokens[parts > 0] for tokens, parts in rows]
  found = decode_prompts(run, params, prompts)
  codes = {level: [] for level in range(run.codes.shape[1])}
  whole, tokens = [], []
  for written, own in zip(found, wanted, strict=True):
    same = written[: len(own)] == own
    whole.append(same.all())
    tokens.append(same.mean())
    for level in codes:
      first = run.vocab.docid_token(level, 0)
      codes[level].append(same[(own >= first) & (own < first + run.vocab.docid_codes)].mean())
  record = {
    "status": "measured",
    "step": step,
    "decoder": run.decoder,
    "lists": len(tasks),
    "permuted": _PERMUTED.value,
  }
  record |= {"whole": float(np.mean(whole)), "tokens": float(np.mean(tokens))}
  print(json.dumps(record | {"codes": [round(float(np.mean(own)), 4) for own in codes.values()]}))


if __name__ == "__main__":
  cli.run(main)
