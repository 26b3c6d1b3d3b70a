"""XLA flags of programs that run for moments only: compiling hundreds of them is most of the tests' time."""

from importlib.metadata import version

_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if version("jaxlib").startswith("0.10."):  # jaxlib 0.11 does not know it, and ends at a flag that it does not know
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
PLAIN_COMPILATION = " ".join(_FLAGS)
