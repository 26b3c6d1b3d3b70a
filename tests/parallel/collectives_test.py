"""Collectives read off HLO: by hand-counted programs of our own, and lines as the TPU compiler writes them."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from diffgr_jax.parallel.collectives import Collective, collectives
from diffgr_jax.parallel.mesh import make_mesh


def test_a_gather_in_a_loop_counts_as_often_as_the_loop_runs():
  mesh = make_mesh({"data": 2, "fsdp": 4})
  place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
  weights = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=place(None, "fsdp", None))
  rows = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=place(("data", "fsdp"), None))

  def run(rows, weights):
    step = lambda x, w: (jnp.tanh(x @ jax.lax.with_sharding_constraint(w, place(None, None))), None)
    return jax.lax.with_sharding_constraint(jax.lax.scan(step, rows, weights)[0], place(("data", "fsdp"), None))

  text = jax.jit(run).lower(rows, weights).compile().as_text()
  found = collectives(text, mesh.shape)
  assert [(one.kind, one.axes, one.count) for one in found] == [("all-gather", ("fsdp",), 5)]
  assert found[0].bytes == 5 * 16 * 16 * 4 * 3 // 4  # three quarters come from others


def test_a_sum_over_two_axes():
  mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
  place = NamedSharding(mesh, PartitionSpec(("data", "tensor"), None))
  rows = jax.ShapeDtypeStruct((8, 6), jnp.float32, sharding=place)
  text = jax.jit(lambda x: x.sum(axis=0), out_shardings=NamedSharding(mesh, PartitionSpec())).lower(rows).compile()
  found = collectives(text.as_text(), mesh.shape)
  assert found == [Collective("all-reduce", ("data", "tensor"), 1, 2 * 6 * 4 * 3 // 4)]


TPU = """
HloModule step, entry_computation_layout={()->f32[8]{0}}

%fused (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %g = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%body (t: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %t = (s32[], bf16[4,8]{1,0}) parameter(0)
  %x = bf16[4,8]{1,0} get-tuple-element(%t), index=1
  %a = ((bf16[4,8]{1,0}), bf16[16,8]{1,0}, u32[]) async-start(%x), calls=%fused
  %u = ((bf16[4,8]{1,0}), bf16[16,8]{1,0}, u32[]) async-update(%a), calls=%fused
  %d = bf16[16,8]{1,0} async-done(%u), calls=%fused
  %s = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}
  %e = bf16[8,8]{1,0} all-gather-done(%s)
  ROOT %r = (s32[], bf16[4,8]{1,0}) tuple(%t, %x)
}

%cond (t: (s32[], bf16[4,8])) -> pred[] {
  ROOT %c = pred[] constant(true)
}

ENTRY %main (x: bf16[4,8]) -> f32[8] {
  %x = bf16[4,8]{1,0} parameter(0)
  %w = (s32[], bf16[4,8]{1,0}) while(%x), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %p = f32[8]{0} collective-permute(%w), channel_id=3, source_target_pairs={{0,1},{1,0},{2,3},{3,2}}
  ROOT %q = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%cond
}
"""


def test_what_the_tpu_compiler_writes():
  assert set(collectives(TPU, {"data": 2, "fsdp": 4})) == {
    Collective("all-gather", ("fsdp",), 3, 3 * 16 * 8 * 2 * 3 // 4),
    Collective("all-gather", ("data",), 3, 3 * 8 * 8 * 2 // 2),
    Collective("collective-permute", ("fsdp",), 1, 32),
    Collective("reduce-scatter", ("fsdp",), 1, 2 * 4 * 3),
  }


def test_groups_by_the_names_of_a_mesh():
  line = "%%r = f32[8]{0} all-reduce(%%x), replica_groups=mesh['a'=2,'b'=4]%s {%s}, to_apply=%%f"
  text = "ENTRY %%main (x: f32[8]) -> f32[8] {\n  %s\n}"
  axes = lambda ids, over: collectives(text % (line % (ids, over)), {"data": 2, "fsdp": 2, "tensor": 2})[0].axes
  assert axes("", "'a'") == ("data",)
  assert axes("", "'b'") == ("fsdp", "tensor")
  assert axes("", "'b':(1)2") == ("fsdp",)
  assert axes("", "'a','b':(2)2") == ("data", "tensor")
  assert axes(", device_ids=([2,2,2]T(2,1,0))", "'a'") == ("tensor",)


def test_a_loop_of_the_tpu_compiler_counts_up_to_the_constant_of_its_condition():
  known = ', backend_config={"known_trip_count":{"n":"3"}}'
  ends = "ROOT %c = pred[] constant(true)"
  counts = (
    "%limit.1 = s32[]{:T(128)} constant(7)\n  %i = s32[]{:T(128)} get-tuple-element(%t), index=0\n"
    "  ROOT %lt = pred[]{:T(512)} compare(%i, %limit.1), direction=LT, metadata={}"
  )
  times = lambda text: {one.count for one in collectives(text, {"data": 2, "fsdp": 4}) if one.kind == "all-gather"}
  assert times(TPU.replace(known, "").replace(ends, counts)) == {7}
  assert times(TPU.replace(known, "")) == {1}  # a loop that ends when it will
