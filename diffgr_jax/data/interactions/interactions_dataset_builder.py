"""The TFDS builder of `interactions`, over what reader.py reads."""

import tensorflow_datasets as tfds

from diffgr_jax.data.interactions.shop_storage import ShopBuilder

READER_VERSION = 1  # raise it when the reader's rules change: it is part of the fingerprint


class Builder(ShopBuilder):
  """A user's own shop: items, and what each user took, oldest first."""

  VERSION = tfds.core.Version(f"{READER_VERSION}.0.0")
