"""Ahead-of-time compilation, without libtpu: names of slices, refusals, and that libtpu is asked for."""

import importlib.util
import os

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from diffgr_jax.parallel import aot
from diffgr_jax.parallel.chips import CHIPS, chip_of
from diffgr_jax.parallel.mesh import make_mesh


@pytest.mark.parametrize("topology, chip", [("v5e:16x16", "v5e"), ("v5p:4x4x8", "v5p"), ("tpu7x:2x2x1", "tpu7x")])
def test_the_chip_of_a_slice(topology, chip):
  assert chip_of(topology) is CHIPS[chip]


@pytest.mark.parametrize("topology", ["v5e", "v5e:", "v4:2x2x1", "v5e:4xfour", "v5p:4x4", "v5e:16x16x1"])
def test_what_is_no_slice_is_refused(topology):
  with pytest.raises(ValueError, match=f"--topology={topology}: a slice"):
    chip_of(topology)


@pytest.mark.parametrize(
  "message, needed, available",
  [
    ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.20G of 15.75G hbm. Exceeded", 41.2, 15.75),
    ("the total memory required for HLO temporaries (480.00G) exceeds available HBM (31.25G).", 480, 31.25),
    ("Used 900.5M of 0.5G hbm", 900.5 / 1024, 0.5),
  ],
)
def test_a_refusal_is_read(message, needed, available):
  assert aot.refusal(message) == pytest.approx((needed * 2**30, available * 2**30))
  assert aot.refusal("INTERNAL: something else") is None


def test_bytes_of_one_device():
  mesh = make_mesh({"fsdp": 4, "tensor": 2})
  shapes = {"w": jax.ShapeDtypeStruct((8, 6), jnp.float32), "b": jax.ShapeDtypeStruct((6,), jnp.bfloat16)}
  places = {"w": NamedSharding(mesh, PartitionSpec("fsdp", "tensor")), "b": NamedSharding(mesh, PartitionSpec())}
  assert aot.bytes_a_device(aot.with_shardings(shapes, places)) == 2 * 3 * 4 + 6 * 2


def test_without_libtpu_the_command_that_installs_it_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(RuntimeError, match=r"needs libtpu \(no TPU\): pip install 'libtpu==0\.0\.42\.\*'"):
    aot.prepare_environment()


def test_what_a_library_says_on_stderr_is_hidden(capfd):
  with aot.hidden_stderr():
    os.write(2, b"page of warnings")
  os.write(2, b"heard")
  assert capfd.readouterr().err == "heard"
