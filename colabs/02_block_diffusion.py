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
# # A re-ranker that writes in blocks
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/diffgr_jax/blob/main/colabs/02_block_diffusion.ipynb)
#
# A retriever names ten candidates for what a user buys next; a language model reasons about them and ranks them. Written
# token by token, that costs a forward pass a token. **Block diffusion** writes a block of MASKs at once and commits, in
# every pass, whatever it is sure of.
#
# Both models here have one million parameters and were trained on a made-up shop, whose users follow a known law: the
# autoregressive teacher, and the student that was converted from it. `colabs/models/README.md` says how.

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
from IPython.display import Image, Markdown
import matplotlib.pyplot as plt
import numpy as np

import diffgr_jax as dg
from diffgr_jax.viz.masks import draw_patterns
from diffgr_jax.viz.passes import draw_passes

PICTURES = Path("workdir/block_diffusion")

# %% [markdown]
# ## Who sees whom
#
# Drawn by the very function that training and decoding ask. The teacher is `causal`. The student is `block_causal`: a token
# sees all of its own block, and everything before it. It is trained in `two_stream`: a noisy copy of every block (above, left)
# is read beside the clean text, and sees the *clean* blocks before it, as it will in decoding.

# %%
Image(draw_patterns(PICTURES / "patterns.png"))

# %% [markdown]
# ## Two models, one list

# %%
teacher, student = dg.load(dg.shipped("teacher")), dg.load(dg.shipped("student"))
lists = student.lists("test")
chosen = [lists[at] for at in np.linspace(0, len(lists) - 1, 16).astype(int)]
titles = {item.item_id: item.title for item in student.run.shop.items}

by_teacher, by_student = teacher.rerank(chosen), student.rerank(chosen)
SHOWN = next((at for at, one in enumerate(by_student) if one.verdict == by_teacher[at].verdict == "ok"), 0)
print(by_student[SHOWN].text)

# %%
target = student.run.shop.items[chosen[SHOWN].target].item_id
rows = zip(by_teacher[SHOWN].items, by_student[SHOWN].items, strict=True)
mark = lambda item: f"**{titles[item]}**" if item == target else titles[item]
Markdown(
  "\n".join(
    ["| | teacher | student |", "|---|---|---|"]
    + [f"| {place} | {mark(left)} | {mark(right)} |" for place, (left, right) in enumerate(rows, 1)]
  )
)

# %% [markdown]
# Bold: what the user took. (A small model among ten candidates is often wrong. How often, and how good any order could be, is
# in docs/reranking.md.)
#
# ## On an axis of forward passes
#
# Above: tokens that stand after so many passes. Below: each token at the pass that committed it. The teacher's line is
# straight: a token a pass.

# %%
begins = lambda one: one.pieces.index("[SEP]") if "[SEP]" in one.pieces else len(one.pieces)  # the ranking, behind it
answers = {"teacher": by_teacher[SHOWN], "student": by_student[SHOWN]}
Image(
  draw_passes(
    {name: one.passes for name, one in answers.items()},
    PICTURES / "passes.png",
    title="One list, answered token by token and block by block",
    answer_from={name: begins(one) for name, one in answers.items()},
  )
)

# %% [markdown]
# ## How sure is sure enough, and where?
#
# A lower threshold commits more tokens a pass, and more of them wrongly. And *where* a pass may commit matters as much.
# `threshold` takes every position of the block that it is sure of, and leaves gaps. `prefix` goes on from the left only for as
# long as it is sure: what stands there has no gaps, as the teacher would have left it, and the student still knows how to
# read that. Validity is the share of answers that hold every candidate exactly once; nothing outside the model sees to it.

# %%
THRESHOLDS = (1.0, 0.95, 0.8, 0.5)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for policy, marker, colour in (("prefix", "o", "#0072b2"), ("threshold", "s", "#d55e00")):
  rates, valid = [], []
  for threshold in THRESHOLDS:
    written = student.decoding(policy=policy, threshold=threshold).rerank(chosen)
    rates.append(sum(len(one.pieces) for one in written) / sum(one.forwards for one in written))
    valid.append(float(np.mean([one.verdict == "ok" for one in written])))
  left.plot(THRESHOLDS, rates, marker + "-", color=colour, label=policy)
  right.plot(THRESHOLDS, valid, marker + "-", color=colour, label=policy)
left.set(xlabel="threshold", ylabel="tokens a forward pass")
right.set(xlabel="threshold", ylabel="share of valid answers", ylim=(-0.03, 1.05))
for panel in (left, right):
  panel.invert_xaxis()
  panel.grid(alpha=0.25)
left.legend(frameon=False)
plt.show()

# %% [markdown]
# Sixteen lists are few: the whole frontier, with tokens a second, is what
# `python -m diffgr_jax.bench --config=configs/bench/rerank.py:teacher=W/sft,student=W/cft` measures.
