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
# # Watch a document's identifier being denoised
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/diffgr_jax/blob/main/colabs/01_decoding_steps.ipynb)
#
# A retriever that **generates**: the question goes in, and the identifier of the document that answers comes out. Here it
# is a *masked-diffusion* transformer. It starts from a canvas of MASK tokens and fills it in a few forward passes, several
# tokens a pass, in the order of its own confidence.
#
# The model is small and is trained below, from nothing, on the docstrings of your own Python's standard library: a few
# minutes on two CPU cores at most. What it answers is therefore not always right. What you see is how it decodes.

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
from IPython.display import HTML, Image
import matplotlib.pyplot as plt

import diffgr_jax as dg
from diffgr_jax.viz.animation import animate_trace
from diffgr_jax.viz.live import live_losses

# %% [markdown]
# ## A small model, from nothing
#
# `configs/docid/base.py` is the config of `make from-nothing`; here it takes a part of the steps. Run the cell again and
# it goes on from its checkpoint, in no time.

# %%
WORKDIR = Path("workdir/decoding_steps")
config = dg.config("docid/base.py:steps=350")
config.eval_every = 0

with live_losses(WORKDIR, config.steps):
  retriever = dg.train(config, WORKDIR)

# %% [markdown]
# ## Ask
#
# Two ways to an answer from one model. **One pass** scores every document of the corpus at once. **Denoising** writes one
# identifier, token by token; *constrained*, it can only write identifiers that exist.

# %%
QUERY = "join path components"
for hit in retriever.retrieve([QUERY], k=5)[0]:
  print(f"{hit.score:8.2f}  {hit.title}")

# %%
answer = retriever.decoding(decode_steps=6).trace(QUERY)
Image(answer.draw(WORKDIR / "confidence.png"))

# %% [markdown]
# Read it downwards. Each line is the canvas after one more forward pass. A cell is darker where the model was surer of the
# token when it committed it; the orange frames are what that pass committed. At the right: how many documents the canvas
# can still become (a log scale), and the entropy of what was masked.
#
# The same as a film. Bars show how unsure the model is of each position before it chooses: it commits where they are
# lowest, and what it learns there lowers the others.

# %%
HTML(animate_trace(answer.trace, 0, retriever.run.piece, QUERY))

# %% [markdown]
# ## Unconstrained: the same model may write anything
#
# Nothing holds the canvas inside the set of documents now. Often what comes out names no document at all; `denoised` is
# then None.

# %%
free = retriever.decoding(decode_steps=6).trace(QUERY, constrained=False)
named = lambda one: None if one.denoised is None else retriever.run.index.titles[one.denoised]
print("constrained:  ", named(answer))
print("unconstrained:", named(free))
Image(free.draw(WORKDIR / "free.png"))

# %% [markdown]
# ## Which tokens first? Policies and step budgets
#
# A *policy* chooses what a pass commits; the budget says how many passes there are. `random` commits anywhere,
# `sequential` from left to right, `confidence` where the most likely token is likeliest, `margin` where it leads most,
# `entropy` where the distribution is narrowest. Fewer passes commit more tokens at once, each without having seen the
# others. Below: the entropy that is left, pass after pass.

# %%
POLICIES = {  # colours that colour-blind readers tell apart (Okabe and Ito)
  "random": "#000000",
  "sequential": "#e69f00",
  "confidence": "#0072b2",
  "margin": "#d55e00",
  "entropy": "#009e73",
}
figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
for panel, steps in zip(panels, (3, 8), strict=True):
  for (policy, colour), marker in zip(POLICIES.items(), "osD^v", strict=True):
    trace = retriever.decoding(policy=policy, decode_steps=steps).trace(QUERY).trace
    left = [
      float(entropy[0][masked[0]].sum()) for entropy, masked in zip(trace.entropy, trace.masked[:-1], strict=True)
    ]
    panel.plot(range(len(left) + 1), [*left, 0.0], marker=marker, color=colour, label=policy)
  panel.set(title=f"{steps} passes", xlabel="passes done", xticks=range(steps + 1))
panels[0].set_ylabel("entropy of masked positions (nats)")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Second thoughts
#
# A committed token can be taken back: with `remask`, a pass reopens what it is least sure of, in a bounded number, so that
# decoding ends. Crosses mark what went back to MASK.

# %%
revised = retriever.decoding(decode_steps=6, remask=1).trace(QUERY, max_reopen=2)
Image(revised.draw(WORKDIR / "remasked.png"))

# %% [markdown]
# ## Your own query

# %% cellView="form"
# @title Ask { display-mode: "form" }
ASK = "remove a directory and everything in it"  # @param {type:"string"}
asked = retriever.trace(ASK)
for hit in retriever.retrieve([ASK], k=5)[0]:
  print(f"{hit.score:8.2f}  {hit.title}")
HTML(animate_trace(asked.trace, 0, retriever.run.piece, ASK))
