"""Settings of every test: eight virtual CPU devices, no silent rank promotion, shapes checked where annotated."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

# Must come before the first import of diffgr_jax: annotations such as Float[Array, "B L V"] are then checked at every call.
install_import_hook("diffgr_jax", "beartype.beartype")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
