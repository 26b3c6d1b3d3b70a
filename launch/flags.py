"""What the TPU compiler is told for each kind of chip: `python3 launch/flags.py v5p` prints the LIBTPU_INIT_ARGS.

Each flag stands with the reason why. The names were found in libtpu 0.0.42.1; a libtpu that does not know one stops and
names it. They change the order of work, not its result. None has been timed: there was no TPU. `--explain` prints the
reasons, `--chip-of TYPE` the chip of an accelerator type such as v5litepod-16.
"""

import argparse
import re
import sys

# Both ways of splitting weights (fsdp) wait for all-gathers and reduce-scatters unless they run beside the products.
_OVERLAP = {
  "xla_enable_async_all_gather": ("true", "weights of the next layer travel while this one computes"),
  "xla_tpu_enable_async_collective_fusion": ("true", "collectives run inside fusions, beside their products"),
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": ("true", "the same for fsdp's all-gathers"),
  "xla_tpu_enable_async_collective_fusion_multiple_steps": ("true", "a collective may span several fusions"),
  "xla_tpu_overlap_compute_collective_tc": ("true", "the tensor core computes while links are busy"),
}
_REDUCE_SCATTER = {
  "xla_tpu_assign_all_reduce_scatter_layout": ("true", "gradients need no transposition before they are scattered"),
  "xla_tpu_use_minor_sharding_for_major_trivial_input": ("true", "all-gathers of stacked layers without a copy"),
  "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": ("1", "the same for reduce-scatters of any size"),
}
_ACROSS_SLICES = {
  "xla_tpu_enable_data_parallel_all_reduce_opt": ("true", "gradients cross the data-centre network while others form"),
  "xla_tpu_data_parallel_opt_different_sized_ops": ("true", "the same where gradients differ in size"),
}
_SPARSE_CORE = {  # sparse cores can carry collectives; those inside fusions must then be off
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": ("false", "the sparse core gathers instead"),
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": ("true", "the tensor core is free during all-gathers"),
  "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": ("true", "the same for gradients"),
  "xla_tpu_enable_sparse_core_collective_offload_all_reduce": ("true", "the same between copies of the model"),
  "xla_tpu_use_tc_device_shape_on_sc": ("true", "the sparse core reads the layouts of the tensor core"),
}

FLAGS = {
  "v5e": _OVERLAP | _ACROSS_SLICES,
  "v5p": _OVERLAP
  | _REDUCE_SCATTER
  | _ACROSS_SLICES
  | {"xla_tpu_megacore_fusion_allow_ags": ("false", "two cores act as one: an all-gather inside a fusion stalls both")},
  "v6e": _OVERLAP
  | _REDUCE_SCATTER
  | _ACROSS_SLICES
  | {"xla_tpu_scoped_vmem_limit_kib": ("98304", "96 of the 128 MiB of VMEM for the tiles of one program")},
  "tpu7x": _OVERLAP
  | _REDUCE_SCATTER
  | _ACROSS_SLICES
  | _SPARSE_CORE
  | {"xla_tpu_scoped_vmem_limit_kib": ("61440", "60 of the 64 MiB of VMEM of a core for the tiles of one program")},
}

# Accelerator types of Cloud TPU: v5litepod-16 and v6e-256 count chips, v5p-128 cores, tpu7x-128 cores.
_TYPES = {
  r"v5litepod-(\d+)": ("v5e", 1),
  r"v5p-(\d+)": ("v5p", 2),
  r"v6e-(\d+)": ("v6e", 1),
  r"tpu7x-(\d+)": ("tpu7x", 2),
}
_CHIPS_A_HOST = 4  # larger slices of every kind; v5e and v6e slices of up to 8 chips may be one host


def chip_of(accelerator: str) -> tuple[str, int]:
  """The chip of an accelerator type, and how many of them a slice has.

  Raises:
    ValueError: no such type; says what there is.
  """
  for pattern, (chip, cores) in _TYPES.items():
    if found := re.fullmatch(pattern, accelerator):
      count = int(found[1])
      if count < 1 or count % cores:
        break
      return chip, count // cores
  raise ValueError(
    f"accelerator type {accelerator!r}: there are v5litepod-N (N chips), v5p-N (N cores), v6e-N (N chips) and"
    " tpu7x-N (N cores; two a chip), such as v5litepod-16 and v5p-128"
  )


def hosts_of(accelerator: str) -> int:
  """How many hosts a slice has."""
  chip, chips = chip_of(accelerator)
  if chip in ("v5e", "v6e") and chips <= 8:
    return 1
  return max(chips // _CHIPS_A_HOST, 1)


def libtpu_init_args(chip: str) -> str:
  """The value of LIBTPU_INIT_ARGS.

  Raises:
    ValueError: a chip without flags.
  """
  if chip not in FLAGS:
    raise ValueError(f"chip is one of {', '.join(FLAGS)}, not {chip!r}")
  return " ".join(f"--{name}={value}" for name, (value, _) in FLAGS[chip].items())


def main(arguments: list[str]) -> int:
  parser = argparse.ArgumentParser(description="LIBTPU_INIT_ARGS for a chip, each flag with its reason")
  parser.add_argument("chip", help="v5e, v5p, v6e or tpu7x; with --chip-of or --hosts-of an accelerator type")
  parser.add_argument("--explain", action="store_true", help="a flag a line, with its reason")
  parser.add_argument("--chip-of", action="store_true", help="print the chip of the accelerator type")
  parser.add_argument("--hosts-of", action="store_true", help="print how many hosts a slice of the type has")
  given = parser.parse_args(arguments)
  try:
    if given.chip_of:
      print(chip_of(given.chip)[0])
    elif given.hosts_of:
      print(hosts_of(given.chip))
    elif given.explain:
      libtpu_init_args(given.chip)
      for name, (value, reason) in FLAGS[given.chip].items():
        print(f"--{name}={value}  # {reason}")
    else:
      print(libtpu_init_args(given.chip))
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
