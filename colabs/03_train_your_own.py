# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a retriever on your own documents
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/diffgr_jax/blob/main/colabs/03_train_your_own.ipynb)
#
# From a folder of text files to a generative retriever that answers questions about them, from nothing, in a few minutes
# on two CPU cores. The identifiers are *linguistic*: a document's title is what the model writes.

# %% cellView="form"
# @title Install { display-mode: "form" }
REPOSITORY = ""  # @param {type:"string"}
# Address of a clone's source. Empty: this notebook lies inside the repository, or diffgr_jax is installed already.
import importlib.util
import os
from pathlib import Path
import subprocess
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
inside = next((folder for folder in [Path.cwd(), *Path.cwd().parents] if (folder / "diffgr_jax").is_dir()), None)
if REPOSITORY and inside is None:
  subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, "diffgr_jax_source"], check=True)
  inside = Path("diffgr_jax_source").resolve()
if inside is not None:
  sys.path.insert(0, str(inside))
  needed = inside / "requirements.txt"
  if any(importlib.util.find_spec(name) is None for name in ("flax", "grain", "orbax", "bm25s", "tensorflow_datasets")):
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", str(needed)], check=True)
elif importlib.util.find_spec("diffgr_jax") is None:
  raise SystemExit("set REPOSITORY to the address of diffgr_jax, or install the package first")

# %%
import json

from IPython.display import Image

import diffgr_jax as dg
from diffgr_jax.viz.live import live_losses

# %% [markdown]
# ## Your documents
#
# A corpus is a file of JSON lines: `doc_id`, `title`, `text`. Name a folder of `.md`, `.txt` or `.rst` files below: every
# section of a file becomes a document. Without one, this notebook takes the manuals that lie in your own Python:
# whatever the packages of this environment say of themselves.

# %% cellView="form"
# @title Folder { display-mode: "form" }
FOLDER = ""  # @param {type:"string"}

# %%
import importlib.metadata
import re


def sections(name: str, text: str) -> list[dict[str, str]]:
  """Cuts a text at its headings (`# ...`, or a line that is underlined); a section is titled by them."""
  parts = re.split(r"^(?:#{1,3} +(.+)|(.+)\n[=\-~]{4,} *)$", text, flags=re.MULTILINE)
  found, title = [], name
  for at in range(0, len(parts), 3):
    heading = (parts[at - 2] or parts[at - 1] or "") if at else ""
    title = f"{name}: {heading.strip()}" if heading else name
    body = " ".join(parts[at].split())
    if len(body) > 80:
      found.append({"title": title[:80], "text": body[:2000]})
  return found


def own_documents() -> list[dict[str, str]]:
  if FOLDER:
    files = [path for path in sorted(Path(FOLDER).expanduser().rglob("*")) if path.suffix in (".md", ".txt", ".rst")]
    if not files:
      raise SystemExit(f"{FOLDER} has no .md, .txt or .rst files")
    return [one for path in files for one in sections(path.stem, path.read_text(errors="replace"))]
  packages = {package.metadata["Name"]: package for package in importlib.metadata.distributions()}
  described = {name: package.metadata.get_payload() or "" for name, package in sorted(packages.items()) if name}
  return [one for name, text in described.items() for one in sections(name, str(text))]


seen, documents = set(), []
for document in own_documents():
  if document["title"].lower() not in seen:
    seen.add(document["title"].lower())
    documents.append({"doc_id": str(len(documents)), **document})

CORPUS = Path("workdir/own_corpus")
CORPUS.mkdir(parents=True, exist_ok=True)
(CORPUS / "corpus.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
print(f"{len(documents):,} documents, for example {documents[len(documents) // 2]['title']!r}")

# %% [markdown]
# ## Train
#
# There are no questions to learn from. So the model makes its own: sentences and pieces of a document stand for questions
# about it (`pseudo_queries`). If you have real ones, put them into `queries.train.jsonl` beside the corpus (docs/data.md):
# they help more than anything else.

# %%
WORKDIR = Path("workdir/own")
config = dg.config(f"docid/folder.py:path={CORPUS},steps=400")
config.eval_every = 0

with live_losses(WORKDIR, config.steps):
  retriever = dg.train(config, WORKDIR)

# %% [markdown]
# ## Ask


# %%
def ask(query: str, k: int = 5) -> None:
  print(query)
  for hit in retriever.retrieve([query], k=k)[0]:
    print(f"  {hit.score:8.2f}  {hit.title}")


for query in ("how to install the package", "progress bar for loops", "automatic differentiation of numpy code"):
  ask(query)

# %% cellView="form"
# @title Your question { display-mode: "form" }
ASK = "read and write arrays on disk"  # @param {type:"string"}
ask(ASK)
Image(retriever.trace(ASK).draw(WORKDIR / "steps.png"))

# %% [markdown]
# ## Where next
#
# More steps (`steps=1600` is the default), pretrained MiniLM weights (`docid/minilm.py`), learned codes as identifiers
# (`docid/codes.py`); `python -m diffgr_jax.evaluate` with your own questions says how good it is. See README.md.
