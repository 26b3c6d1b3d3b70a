"""Gets a shop by name: builds its array_record files where they are missing, then reads them.

    load_shop("amazon_beauty", path="downloads", data_dir=...)  Amazon's reviews of 2014 (data/amazon_beauty/)
    load_shop("interactions", path="my/shop", data_dir=...)     a user's own shop (data/interactions/reader.py)
    load_shop("made_up", path="users=2000,loyalty=12")          users of a known law (rerank/made_up_shop.py), not kept

The folder of `amazon_beauty` holds reviews_Beauty_5.json.gz and meta_Beauty.json.gz, or sequences.txt and items.jsonl;
another category is another name of file. Built files stand under `data_dir` by data set, version and digest of sources.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from diffgr_jax.data import storage
from diffgr_jax.data.amazon_beauty import amazon_beauty_dataset_builder, reviews, sequences
from diffgr_jax.data.interactions import interactions_dataset_builder, reader
from diffgr_jax.data.interactions.content import FEW_EVENTS, Content
from diffgr_jax.data.interactions.shop_storage import configs, read_histories, read_items
from diffgr_jax.data.records import Document
from diffgr_jax.data.rows import OnBadRow
from diffgr_jax.data.sources import Source, check_manifest, find_sources
from diffgr_jax.data.staging import digest_of
from diffgr_jax.rerank.made_up_shop import make_shop, read_options
from diffgr_jax.rerank.records import Shop

MADE_UP = "made_up"
NAMES = ("amazon_beauty", "interactions", MADE_UP)
PUBLIC = {"amazon_beauty": reviews.URL}  # and where the files are, by path="public"
_BUILDERS = {"amazon_beauty": amazon_beauty_dataset_builder, "interactions": interactions_dataset_builder}
_READERS = {"reviews": reviews.read_reviews, "sequences": sequences.read_sequences, "items": reader.read_interactions}


def load_shop(
  name: str,
  *,
  path: str | Path,
  data_dir: str | Path = "",
  on_bad_row: str = "error",
  category: str = "Beauty",
) -> Shop:
  """Returns a shop, built first if `data_dir` does not hold it yet. A build prints one line.

  Args:
    name: one of `NAMES`.
    path: the folder of the files; for `amazon_beauty` also a URL that they are below, or `public`: their publisher's.
      For `made_up` its options, `key=value,key=value`; "" leaves all as they are.
    data_dir: where array_record files, and downloads, are kept; it is made if needed. `made_up` needs none.
    on_bad_row: about a row that is no record: "error" raises BadRow, "skip" leaves it out and counts it in
      `Shop.skipped`.
    category: of Amazon's files, as it stands in their names, e.g. `Toys_and_Games`. The shop is named by it.

  Raises:
    ValueError: an unknown name or option, a download that broke off, or files without an item or a user.
    FileNotFoundError: `path` is no folder, or files are missing from it.
    BadRow: a bad row, with on_bad_row="error".
  """
  if name not in NAMES:
    raise ValueError(f"no shop {name!r}; there are {', '.join(NAMES)}")
  if on_bad_row not in ("error", "skip"):
    raise ValueError(f'on_bad_row is "error" or "skip", not {on_bad_row!r}')
  if name == MADE_UP:
    return make_shop(read_options(str(path)))[0]
  if not str(path):
    raise ValueError(f"the shop {name} needs a path, the folder of its files")
  if not str(data_dir):
    raise ValueError(f"the shop {name} needs a data_dir, where what is built of it is kept")
  data_dir = Path(data_dir).expanduser()
  data_dir.mkdir(parents=True, exist_ok=True)
  where = PUBLIC.get(name, "") if path == "public" else str(path)
  sources = check_manifest(_find(name, where, category, data_dir / "downloads" / name), data_dir / name)
  options = {"on_bad_row": on_bad_row, "category": category if name == "amazon_beauty" else ""}
  digest = digest_of(_BUILDERS[name].READER_VERSION, sources, options)
  called = f"amazon_{category.lower()}" if name == "amazon_beauty" else name
  provenance = {"sources": {source.path.name: source.sha256 for source in sources}, "options": options}

  def builders(content: Content | None):
    kept = provenance | {"skipped": dict(content.skipped) if content else {}}
    with storage.quiet_logs():
      make = _BUILDERS[name].Builder
      return [make(data_dir=data_dir, config=config) for config in configs(digest, content, kept)]

  items, histories = builders(None)
  built = not (items.data_path.exists() and histories.data_path.exists())
  if built:
    first, second = (source.path for source in sources)
    content = _READERS[sources[0].role](first, second, cast(OnBadRow, on_bad_row))
    _check(content, where)
    items, histories = builders(content)
    storage.prepare(items)
    storage.prepare(histories)
  users, taken = read_histories(histories)
  shop = Shop(called, read_items(items), users, taken, digest, storage.metadata(items)["skipped"])
  if built:
    _announce(shop, where)
  return shop


def read_users(file: str | Path) -> frozenset[str]:
  """The ids of users in a file, one a line, e.g. of those who are never evaluated.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a line with more than one word.
  """
  users = set()
  for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), start=1):
    words = line.split()
    if len(words) > 1:
      raise ValueError(f"{file}:{number}: a line is the id of one user, not {line.strip()[:60]!r}")
    users.update(words)
  return frozenset(users)


def item_documents(shop: Shop) -> list[Document]:
  """The items as documents, for an index of semantic IDs: the text is brand and categories."""
  return [
    Document(item.item_id, item.title, ", ".join(filter(None, [item.brand, *item.categories]))) for item in shop.items
  ]


def _find(name: str, where: str, category: str, downloads: Path) -> Sequence[Source]:
  """The two sources of a shop, in the order in which their reader takes them."""
  public = {role: [each.format(category=category) for each in names] for role, names in reviews.FILES.items()}
  shapes = [public, sequences.FILES] if name == "amazon_beauty" else [reader.FILES]
  for shape in shapes:
    found = {}
    for source in sorted(find_sources(where, shape, downloads), key=lambda source: len(source.path.parts)):
      found.setdefault(source.role, source)  # one in the folder itself before one below it
    if len(found) == len(shape):
      return [found[role] for role in shape]
  wanted = ", or ".join(" and ".join(names[0] for names in shape.values()) for shape in shapes)
  raise FileNotFoundError(f"{where} has not the files of {name}: {wanted}")


def _check(content: Content, where: str) -> None:
  if not content.items:
    raise ValueError(f"{where}: none of its rows gave an item")
  if not content.users:
    few = content.skipped[FEW_EVENTS]
    raise ValueError(f"{where}: no user is left" + (f"; {few} have too few events ({FEW_EVENTS})" if few else ""))


def _announce(shop: Shop, where: str) -> None:
  """The line that a build prints."""
  events = sum(map(len, shop.histories))
  counted = "".join(f", {count} x {kind}" for kind, count in sorted(shop.skipped.items()))
  print(f"{shop.name} {where}: {len(shop.items)} items, {len(shop.users)} users, {events} events{counted}", flush=True)
