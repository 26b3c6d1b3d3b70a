"""Asks a trained model: `python -m diffgr_jax.decode --workdir=DIR --query="join path components" [--trace_png=F.png]`.

Prints the ranked documents (one-pass scores) and how a DocID is denoised, step by step. Without --query it reads one
query a line from standard input.
"""

from collections.abc import Iterator
from pathlib import Path
import sys

from absl import flags

from diffgr_jax import cli
from diffgr_jax.training.checkpoint import restore_params
from diffgr_jax.training.options import check_config
from diffgr_jax.training.run import open_run
from diffgr_jax.viz.worked import answer_query, show_answer

_WORKDIR = flags.DEFINE_string("workdir", None, "of a trained run", required=True)
_STEP = flags.DEFINE_integer("step", None, "of the checkpoint; default: the newest")
_QUERY = flags.DEFINE_string("query", None, "what to ask; default: every line of standard input")
_TOP = flags.DEFINE_integer("top", 10, "how many documents to rank", lower_bound=1)
_CONSTRAINED = flags.DEFINE_bool("constrained", True, "denoise only to DocIDs that exist")
_TRACE_PNG = flags.DEFINE_string("trace_png", None, "draw the denoising to this file")
_SET = flags.DEFINE_multi_string("set", [], "field=value: decode_steps, policy, threshold, remask")
_JSON = flags.DEFINE_bool("json", False, "one JSON object a query instead of tables")


def main(_) -> None:
  workdir = Path(_WORKDIR.value)
  run = open_run(workdir)
  run.set_decoding(_SET.value)
  check_config(run.config)
  params, _ = restore_params(workdir, run.model, _STEP.value)
  for text in _queries():
    answer = answer_query(run, params, text, top=_TOP.value, constrained=_CONSTRAINED.value)
    if _JSON.value:
      print(answer.to_json(), flush=True)
    else:
      show_answer(answer)
    if _TRACE_PNG.value:
      print(f"drawn: {answer.draw(Path(_TRACE_PNG.value))}", file=sys.stderr)


def _queries() -> Iterator[str]:
  if _QUERY.value is not None:
    lines = iter([_QUERY.value])
  else:
    if sys.stdin.isatty():
      print("one query a line; end with Ctrl-D", file=sys.stderr)
    lines = sys.stdin
  for line in lines:
    if line.strip():
      yield line.strip()
    elif _QUERY.value is not None:
      raise ValueError("--query is empty: say what to look for")


if __name__ == "__main__":
  cli.run(main)
