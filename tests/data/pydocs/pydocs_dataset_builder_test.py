"""The splits of pydocs are honest, and its fingerprint follows its content."""

import numpy as np

from diffgr_jax.data.pydocs import pydocs_dataset_builder as pydocs
from diffgr_jax.data.pydocs.harvest import Entry


def made_up_entries(count=2000, seed=0):
  """Entries of which about half share their summary with another one, up to case and full stop."""
  rng = np.random.default_rng(seed)
  titles = sorted(f"m{i % 7}.f{i}" for i in range(count))
  summaries = [f"Do the thing number {rng.integers(count)}" + rng.choice(["", "."]) for _ in titles]
  return tuple(Entry(title, summary, "a b c d e") for title, summary in zip(titles, summaries, strict=True))


def test_every_document_is_asked_for_once_and_in_one_split():
  entries = made_up_entries()
  queries = pydocs.make_queries(entries)
  asked = [doc_id for split in queries.values() for query in split for doc_id in query.doc_ids]
  assert sorted(asked) == [entry.title for entry in entries]
  words = [{query.query.rstrip(".") for query in split} for split in queries.values()]
  assert sum(map(len, words)) == len(set().union(*words))  # no summary straddles splits
  assert any(len(query.doc_ids) > 1 for query in queries["test"])


def test_split_shares_are_as_promised():
  drawn = [pydocs.split_of(f"module.name_{i}") for i in range(20_000)]
  for name, share in pydocs.SPLITS:
    spread = (share * (1 - share) / len(drawn)) ** 0.5
    assert abs(drawn.count(name) / len(drawn) - share) < 4 * spread


def test_a_split_does_not_depend_on_the_other_documents():
  entries = tuple(Entry(f"m.f{i}", f"Do the thing number {i}.", "a b c d e") for i in range(50))
  whole, part = pydocs.make_queries(entries), pydocs.make_queries(entries[10:30])
  for split in part:
    assert set(part[split]) <= set(whole[split])


def test_a_short_summary_is_no_query():
  entries = (Entry("m.f", "Do it.", "a b c d e"), Entry("m.g", "Do it all.", "a b c d e"))
  queries = [query for split in pydocs.make_queries(entries).values() for query in split]
  assert [query.doc_ids for query in queries] == [("m.g",)]


def test_documents_do_not_hold_the_summary():
  document = pydocs.make_documents((Entry("m.f", "Do it all.", "a b c d e"),))[0]
  assert (document.doc_id, document.title, document.text) == ("m.f", "m.f", "a b c d e")


def test_the_content_hash_follows_every_field():
  entries = (Entry("m.f", "Do it all.", "a b c d e"), Entry("m.g", "Do it now.", "a b c d f"))
  changed = [entries[:1], entries[::-1], (Entry("m.f", "Do it all.", "a b c d"), entries[1])]
  assert len({pydocs.content_hash(rows) for rows in [entries, *changed]}) == 4
  assert pydocs.content_hash(entries) == pydocs.content_hash(tuple(entries))
