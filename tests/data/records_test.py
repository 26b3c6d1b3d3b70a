"""A bad row's error reads as promised, also on the far side of a process boundary."""

import pickle

from diffgr_jax.data.records import BadRow


def test_bad_row_says_where_and_survives_pickling():
  error = BadRow("corpus.jsonl:3", "no id", "no id; a row needs one")
  for bad in (error, pickle.loads(pickle.dumps(error))):
    assert str(bad) == "corpus.jsonl:3: no id; a row needs one"
    assert bad.kind == "no id"
    assert isinstance(bad, ValueError)
