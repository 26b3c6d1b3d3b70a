"""The TFDS builder of `amazon_beauty`, over what reviews.py or sequences.py read."""

import tensorflow_datasets as tfds

from diffgr_jax.data.interactions.shop_storage import ShopBuilder

READER_VERSION = 1  # raise it when the readers' rules change: it is part of the fingerprint


class Builder(ShopBuilder):
  """A category of Amazon's reviews of 2014: items, and what each user took, oldest first."""

  VERSION = tfds.core.Version(f"{READER_VERSION}.0.0")
