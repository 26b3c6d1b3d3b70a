"""How shops lie on disk: array_record files that tensorflow-datasets writes and reads, without TensorFlow.

Every shop is a TFDS builder with two configs, `items` (one split, `items`) and `histories` (one split, `users`); a
config is made for the sources at hand, PART-DIGEST, so that other sources have another place on disk. The builder's
`info.metadata` keeps the sources, how they were read, and the counts of skipped rows.
"""

from collections.abc import Iterator
import dataclasses
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from diffgr_jax.data import storage
from diffgr_jax.data.interactions.content import Content
from diffgr_jax.rerank.records import Item

ITEMS, HISTORIES = "items", "histories"
_SPLITS = {ITEMS: "items", HISTORIES: "users"}


@dataclasses.dataclass(eq=False)
class ShopConfig(tfds.core.BuilderConfig):
  """What is built (`part`: items or histories), of which content; none is needed to read what is built."""

  part: str = ITEMS
  content: Content | None = None
  provenance: dict[str, Any] = dataclasses.field(default_factory=dict)  # sources, options, counts: kept as metadata


def configs(digest: str, content: Content | None, provenance: dict[str, Any]) -> tuple[ShopConfig, ShopConfig]:
  """The configs of a shop's items and of its histories; another digest, another place on disk."""
  make = lambda part: ShopConfig(f"{part}-{digest[:16]}", part=part, content=content, provenance=provenance)
  return make(ITEMS), make(HISTORIES)


class ShopBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """The items of a shop, or the histories of its users."""

  @property
  def source(self) -> ShopConfig:
    return cast(ShopConfig, self.builder_config)

  def _info(self) -> tfds.core.DatasetInfo:
    text, many = tfds.features.Text, tfds.features.Sequence
    items = {"item_id": text(), "title": text(), "brand": text(), "categories": many(text())}
    histories = {"user": text(), "items": many(np.int32)}
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__ or "",
      features=tfds.features.FeaturesDict(items if self.source.part == ITEMS else histories),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(self.source.provenance),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager  # the sources are read already
    return {_SPLITS[self.source.part]: self._generate_examples()}

  def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
    content = self.source.content
    if content is None:
      raise ValueError(f"{self.info.full_name} is not built yet: load_shop builds it from its files")
    if self.source.part == ITEMS:
      rows = (asdict(item) for item in content.items)
    else:
      pairs = zip(content.users, content.histories, strict=True)
      rows = ({"user": user, "items": np.asarray(history, np.int32)} for user, history in pairs)
    yield from enumerate(rows)


def read_items(builder: tfds.core.DatasetBuilder) -> tuple[Item, ...]:
  """Reads the items of a prepared `items` config, in the order in which they were written."""
  text = storage.stored_text
  return tuple(
    Item(text(row["item_id"]), text(row["title"]), text(row["brand"]), tuple(map(text, row["categories"])))
    for row in storage.stored_rows(builder, _SPLITS[ITEMS])
  )


def read_histories(builder: tfds.core.DatasetBuilder) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
  """Reads the users and their histories of a prepared `histories` config."""
  rows = list(storage.stored_rows(builder, _SPLITS[HISTORIES]))
  users = tuple(storage.stored_text(row["user"]) for row in rows)
  return users, tuple(tuple(int(item) for item in row["items"]) for row in rows)
