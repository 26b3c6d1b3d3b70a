"""Dense retrieval with MiniLM computed here: `python -m benchmarks.minilm_dense --data=DIR [--documents=512]`.

DIR holds corpus.jsonl {doc_id, title, text}, queries.SPLIT.jsonl {query, doc_ids} and docs_minilm_f16.npy, reference
vectors of the documents in corpus order. Queries are encoded here and searched in the reference vectors; a sample of
the documents is encoded here too and compared with them.
"""

import json
from pathlib import Path
import time

from absl import flags
import numpy as np

from diffgr_jax import cli
from diffgr_jax.data.hf_tokenizer import HfTokenizer
from diffgr_jax.evaluation.retrieval import means, place_in_scores, results_record, retrieval_metrics, typed_command
from diffgr_jax.models.encoder import encode_texts, minilm_folder
from diffgr_jax.models.hf_weights import load_hf

_DATA = flags.DEFINE_string("data", None, "folder of the corpus", required=True)
_DOCUMENTS = flags.DEFINE_integer("documents", 512, "documents to encode and compare, drawn at random")
_OUT = flags.DEFINE_string("out", None, "where the record goes, as results.json")
_LENGTH = 128  # pieces; what the reference vectors were made with


def read_lines(path: Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(_) -> None:
  data, folder = Path(_DATA.value), minilm_folder()
  spec, params = load_hf(folder)
  tokenizer = HfTokenizer(folder)
  encode = lambda texts: encode_texts(params, spec.config, tokenizer, texts, max_length=_LENGTH)
  documents = read_lines(data / "corpus.jsonl")
  reference = np.load(data / "docs_minilm_f16.npy").astype(np.float32)
  row = {document["doc_id"]: i for i, document in enumerate(documents)}
  metrics = {}
  for path in sorted(data.glob("queries.*.jsonl")):
    if "train" in path.name:
      continue
    queries = read_lines(path)
    start = time.perf_counter()
    scores = encode([query["query"] for query in queries]) @ reference.T
    placements = place_in_scores(scores, [[row[name] for name in query["doc_ids"]] for query in queries])
    table = means(retrieval_metrics(placements)) | {"queries": len(queries)}
    metrics[path.name.split(".")[1]] = {"minilm, dense": table}
    shown = "  ".join(f"{name} {value:.3f}" for name, value in table.items())
    print(f"{path.name}: {time.perf_counter() - start:.1f} s: {shown}", flush=True)
  sample = np.sort(np.random.default_rng(0).choice(len(documents), _DOCUMENTS.value, replace=False))
  start = time.perf_counter()
  ours = encode([f"{documents[i]['title']}. {documents[i]['text']}" for i in sample])
  cosine = np.sum(ours * reference[sample], axis=1) / np.linalg.norm(reference[sample], axis=1)
  seconds = time.perf_counter() - start
  if _OUT.value:
    settings = {"documents": len(documents), "pieces": _LENGTH, "lowest_cosine": float(cosine.min())}
    record = results_record(
      command=typed_command(), status="measured", seeds={"sample": 0}, metrics=metrics, settings=settings
    )
    Path(_OUT.value).write_text(json.dumps(record, indent=1), encoding="utf-8")
  print(f"{len(sample)} documents, {seconds:.1f} s: cosine at least {cosine.min():.6f}, mean {cosine.mean():.6f}")


if __name__ == "__main__":
  cli.run(main)
