"""Paradigm x DocID x decoding: `--config=configs/docid/study.py:path=DIR,codes=F,product=F`

for `python -m diffgr_jax.sweep`. Indexes of DIR's documents are built first (docs/docid.md): `codes`, a few residual
codes, and `product`, many product codes. Every cell starts from MiniLM with the same batch and number of steps; the
decodings are all those of its paradigm, from its one checkpoint. Learning rates around each recipe's own are cells too.
"""

import ml_collections

from configs import quickstart

_ALL = (
  "one_pass",
  "topk",
  "constrained",
  "free",
  "argmax",
  "stochastic",
  "blocks",
  "pseudo_beam",
  "best_of_n",
  "match",
  "chain",
)
# The masked-diffusion bound, and nothing of the start in what answers.
_BOUND = {"document_weight": 0.0, "all_masked_fraction": 0.0, "diffusion_weight": 1.0, "start_share": 0.0}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = quickstart.parse_arguments(arg, ("path", "codes", "product", "steps", "batch", "pretrained"))
  for needed in ("path", "codes", "product"):
    if needed not in given:
      raise ValueError(f"--config=...:{needed}=...: a study needs path (a folder), codes and product (index files)")
  steps, batch = given.get("steps", "800"), int(given.get("batch", "128"))
  base = f"path={given['path']},steps={steps},pretrained={given.get('pretrained', 'minilm')}"
  codes, product = f"index={given['codes']},{base}", f"index={given['product']},{base}"
  masked, rival, titles = (f"configs/docid/{name}.py:" for name in ("codes", "autoregressive", "minilm"))
  watch = {"batch_size": batch, "eval_every": 0, "checkpoint_every": 200, "nelbo_queries": 0, "show_queries": 0}
  diffusion = watch | {"decodings": _ALL, "chain_steps": 4, "dense": ""}

  config = ml_collections.ConfigDict()
  config.cells = ml_collections.ConfigDict(
    {
      name: {"config": where, "fields": fields}
      for name, where, fields in (
        # Masked diffusion by the bound alone, as the paper trains it.
        ("titles_bound", titles + base, diffusion | _BOUND | {"learning_rate": 5e-4}),
        ("codes_bound", masked + codes, diffusion | _BOUND | {"learning_rate": 3e-4}),
        # With the document-level softmax.
        ("titles", titles + base, diffusion | {"learning_rate": 3e-4}),
        ("codes", masked + codes, diffusion | {"learning_rate": 1e-4}),
        ("product_1e-4", masked + product, diffusion | {"learning_rate": 1e-4}),
        ("product_5e-5", masked + product, diffusion | {"learning_rate": 5e-5}),
        ("product_5e-5_less_diffusion", masked + product, diffusion | {"learning_rate": 5e-5, "diffusion_weight": 0.2}),
        # The rival.
        ("rival_titles", rival + base, watch | {"learning_rate": 3e-4}),
        ("rival_codes_3e-4", rival + codes, watch | {"learning_rate": 3e-4}),
        ("rival_codes_1e-4", rival + codes, watch | {"learning_rate": 1e-4}),
      )
    }
  )
  return config.lock()
