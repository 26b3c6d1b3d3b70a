"""Paradigm x DocID x decoding: `--config=configs/docid/study.py:path=DIR,codes=F,product=F[,questions=N]`

for `python -m diffgr_jax.sweep`. Indexes of DIR's documents are built first (docs/docid.md): `codes`, a few residual
codes, and `product`, many product codes. Every cell starts from MiniLM with the same batch and number of steps; the
decodings are all those of its paradigm, from its one checkpoint. Learning rates beside each recipe's own, of all and of
the code head, and one pass that reads the canvas, are cells too, with the paradigm's cheapest decoding. `questions` of
each split are asked; all of them take hours on two cores.
"""

import ml_collections

from configs.docid import base

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
  given = base.parse_arguments(arg, ("path", "codes", "product", "steps", "batch", "questions", "pretrained"))
  for needed in ("path", "codes", "product"):
    if needed not in given:
      raise ValueError(f"--config=...:{needed}=...: a study needs path (a folder), codes and product (index files)")
  steps, batch = given.get("steps", "800"), int(given.get("batch", "128"))
  common = f"path={given['path']},steps={steps},pretrained={given.get('pretrained', 'minilm')}"
  codes, product = f"index={given['codes']},{common}", f"index={given['product']},{common}"
  masked, rival, titles = (f"configs/docid/{name}.py:" for name in ("codes", "autoregressive", "minilm"))
  watch = {"batch_size": batch, "eval_every": 0, "checkpoint_every": 200, "nelbo_queries": 0, "show_queries": 0}
  questions = int(given.get("questions", "0"))
  watch |= {"eval_limit": questions, "eval_batch_size": min(questions or 64, 64)}
  one_pass = watch | {"decodings": ("one_pass",), "dense": ""}
  diffusion = one_pass | {"decodings": _ALL, "chain_steps": 4, "chain_candidates": 10}
  full_head = {"head_rate": 1.0, "row_rate": 1.0}
  reads_canvas = {"first_pass": "canvas"}
  untrained = {"steps": 1, "warmup_steps": 0, "start_share": 1.0}
  asked = watch | {"beam_scores": ("renormalised", "plain")}
  no_head = {"code_head": False, "start_share": 0.0}
  # 64 codes of ten beams are 631 tokens a question, of a hundred 6,301: too many for the width to be tried.
  narrow = asked | {"beam_widths": (0, 1, 10)}

  config = ml_collections.ConfigDict()
  config.cells = ml_collections.ConfigDict(
    {
      name: {"config": where, "fields": fields}
      for name, where, fields in (
        # Masked diffusion by the bound alone, as the paper trains it.
        ("titles_bound", titles + common, diffusion | _BOUND | {"learning_rate": 5e-4}),
        ("codes_bound", masked + codes, diffusion | _BOUND | reads_canvas | {"learning_rate": 3e-4} | full_head),
        # With the document-level softmax.
        ("titles", titles + common, diffusion | {"learning_rate": 3e-4}),
        ("codes", masked + codes, diffusion | {"learning_rate": 1e-4}),
        ("codes_full_head", masked + codes, one_pass | {"learning_rate": 1e-4} | full_head),
        ("codes_canvas", masked + codes, one_pass | reads_canvas | {"learning_rate": 1e-4}),
        ("product", masked + product, diffusion | {"learning_rate": 1e-4}),
        ("product_canvas", masked + product, one_pass | reads_canvas | {"learning_rate": 1e-4}),
        ("product_full_head", masked + product, one_pass | {"learning_rate": 1e-4} | full_head),
        ("product_less_diffusion", masked + product, one_pass | {"learning_rate": 1e-4, "diffusion_weight": 0.2}),
        # What both paradigms begin with on codes: retrieval by quantised vectors, nothing trained.
        ("codes_start", masked + codes, one_pass | untrained),
        ("product_start", masked + product, one_pass | untrained),
        # The rival; on codes with a code head as the diffusion model has, and without.
        ("rival_titles", rival + common, asked | {"learning_rate": 3e-4}),
        ("rival_codes", rival + codes, asked | {"learning_rate": 1e-3}),
        ("rival_codes_full_head", rival + codes, asked | {"learning_rate": 1e-3} | full_head),
        ("rival_codes_no_head", rival + codes, asked | no_head | {"learning_rate": 3e-4}),
        ("rival_product", rival + product, narrow | {"learning_rate": 1e-4}),
        ("rival_product_full_head", rival + product, narrow | {"learning_rate": 1e-4} | full_head),
      )
    }
  )
  return config.lock()
