"""What a TPU chip can do, by generation: the numbers that a roofline needs.

HBM is what the compiler of libtpu 0.0.42 lets a program use (read off its refusals); arithmetic and HBM bandwidth are
the vendor's (cloud.google.com/tpu/docs), links and network those of "How to scale your model"
(jax-ml.github.io/scaling-book); tpu7x's links are taken to be v6e's. A "device" is what JAX calls one: half a chip on
tpu7x.
"""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
  """One device of a slice; bandwidths in bytes/s, arithmetic in operations/s."""

  name: str
  hbm_bytes: float
  hbm_bandwidth: float
  bf16_flops: float
  link_bandwidth: float  # to one neighbour of the torus, one way
  dcn_bandwidth: float  # a device's share of its host's network, between slices
  dimensions: int  # of the torus, and so numbers in a topology's name


CHIPS = {
  "v5e": Chip("v5e", 15.75 * GIB, 819e9, 197e12, 45e9, 3.125e9, 2),
  "v5p": Chip("v5p", 95.74 * GIB, 2765e9, 459e12, 90e9, 6.25e9, 3),
  "v6e": Chip("v6e", 31.25 * GIB, 1640e9, 918e12, 90e9, 6.25e9, 2),
  "tpu7x": Chip("tpu7x", 94.75 * GIB, 7380e9 / 2, 2307e12 / 2, 90e9, 6.25e9, 3),
}


def chip_of(topology: str) -> Chip:
  """The chip of a slice such as v5e:16x16.

  Raises:
    ValueError: a name that is not of that form, with the forms that are.
  """
  generation, colon, shape = topology.partition(":")
  numbers = shape.split("x")
  if generation not in CHIPS or not colon or not all(number.isdigit() and int(number) for number in numbers):
    raise ValueError(
      f"--topology={topology}: a slice is one of {', '.join(CHIPS)}, a colon and its shape, such as v5e:16x16,"
      " v5p:4x4x4 or tpu7x:2x2x1"
    )
  chip = CHIPS[generation]
  if len(numbers) != chip.dimensions:
    raise ValueError(f"--topology={topology}: a slice of {generation} has {chip.dimensions} numbers in its shape")
  return chip
