"""The TFDS builder of `nq320k`, over the parts that reader.py's records are staged in."""

import tensorflow_datasets as tfds

from diffgr_jax.data.staging import StagedBuilder

READER_VERSION = 1  # raise it when the reader's rules change: it is part of the fingerprint


class Builder(StagedBuilder):
  """Natural Questions as NQ320K: Wikipedia pages by title, and the questions they answer."""

  VERSION = tfds.core.Version(f"{READER_VERSION}.0.0")
