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
# # A pod in a notebook
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/diffgr_jax/blob/main/colabs/04_pod_in_a_notebook.ipynb)
#
# A job for 256 chips is worth a rehearsal. Here eight *virtual* devices stand in for a slice of a pod: real meshes, real
# shardings and real collectives, on one CPU. At the end, the training step of an 8-billion-parameter model is compiled for
# a v5e-256 that is not there.

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
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # before JAX starts
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
import jax
import numpy as np

import diffgr_jax as dg
from diffgr_jax.parallel.mesh import make_mesh

print(f"{jax.device_count()} devices: {jax.devices()[0]}, ...")

# %% [markdown]
# ## A mesh, and where a weight lies on it
#
# Five axes: `replica` (slices of a pod), `data`, `fsdp`, `tensor`, `sequence`. A weight has *logical* axes, and rules of
# the config say which mesh axis each is cut along. Change the sizes below; a shape that does not divide is refused with
# its numbers.

# %%
from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.transformer import abstract_params, logical_axes
from diffgr_jax.parallel.rules import TRAIN_RULES, tree_shardings

mesh = make_mesh({"fsdp": 4, "tensor": 2})
model = TransformerConfig(
  vocab_size=1024, d_model=128, n_layers=2, n_heads=4, n_kv_heads=4, head_dim=32, d_ff=512, rules=TRAIN_RULES
)
shardings = tree_shardings(mesh, abstract_params(model), logical_axes(model), TRAIN_RULES)
for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
  print(f"{jax.tree_util.keystr(path, simple=True, separator='.'):<36}{sharding.spec}")

# %% [markdown]
# The same as a picture: the first layer's up-projection, its rows across, its columns down, one colour a device.

# %%
up = jax.device_put(np.zeros((128, 512), np.float32), jax.sharding.NamedSharding(mesh, jax.P("fsdp", "tensor")))
jax.debug.visualize_array_sharding(up)

# %% [markdown]
# ## Train on it
#
# Parameters are created sharded, never whole on one device. The loss does not depend on the mesh, to rounding: tests say so
# for every stage, and so does this cell.

# %%
from diffgr_jax.viz.live import read_losses

for name, sizes in {"data": {"data": 8}, "all": {"data": 2, "fsdp": 2, "tensor": 2}}.items():
  config = dg.config("docid/base.py:size=tiny,steps=20")
  with config.unlocked():
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1} | sizes)
  config.update(eval_every=0, log_every=5, data_dir="workdir/pod_data")
  dg.train(config, Path("workdir") / f"pod_{name}")
  losses = read_losses(Path("workdir") / f"pod_{name}")[1]
  print(f"{sizes!s:>36}  " + "  ".join(f"{loss:.5f}" for loss in losses))

# %% [markdown]
# ## Would an 8B job fit a v5e-256?
#
# `preflight` compiles the real step for the real slice, with the TPU's own compiler and no TPU. It needs `libtpu` (about
# 200 MB) and a few minutes: set the switch. What it printed on 2 CPU cores stands in docs/pods.md.

# %% cellView="form"
# @title Preflight { display-mode: "form" }
COMPILE = False  # @param {type:"boolean"}
SIZE = "8b"  # @param ["1b", "8b"]
if COMPILE:
  if importlib.util.find_spec("libtpu") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "libtpu==0.0.42.*"], check=True)
  where = inside or Path(dg.__file__).parent
  command = f"-m diffgr_jax.preflight --config={where}/configs/pod/docid.py:size={SIZE} --topology=v5e:16x16"
  done = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True, cwd=where)
  print(done.stdout or done.stderr)
else:
  print("COMPILE is off: python -m diffgr_jax.preflight --config=configs/pod/docid.py:size=8b --topology=v5e:16x16")
