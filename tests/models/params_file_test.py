"""Parameters in a file: as they were, in the dtypes of their model."""

import jax
import jax.numpy as jnp
import numpy as np

from diffgr_jax.models.config import TransformerConfig
from diffgr_jax.models.params_file import read_params, write_params
from diffgr_jax.models.transformer import init_params

CONFIG = TransformerConfig(vocab_size=40, d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24)


def test_what_was_written_is_read(tmp_path):
  params = init_params(CONFIG, jax.random.key(np.random.default_rng().integers(2**31)))
  write_params(tmp_path / "a.safetensors", params, step=7)
  read, notes = read_params(tmp_path / "a.safetensors", CONFIG)
  jax.tree.map(np.testing.assert_array_equal, read, params)
  assert notes == {"step": "7"}
  assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_another_dtype_rounds_and_is_read_as_the_models(tmp_path):
  params = init_params(CONFIG, jax.random.key(0))
  write_params(tmp_path / "a.safetensors", params, "bfloat16")
  read, notes = read_params(tmp_path / "a.safetensors", CONFIG)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(b.dtype)), read, params)
  assert not notes
