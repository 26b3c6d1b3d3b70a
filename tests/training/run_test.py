"""What a run is built from: token rows for codes, and the records of runs from before a field was there."""

import dataclasses
import json

import numpy as np
import pytest

from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.training.run import open_run, prepare_run


@pytest.fixture
def codes_config(tiny_config, tmp_path):
  ids = tuple(f"D{i}" for i in range(24))
  rows = np.stack([np.arange(24) // 5, np.arange(24) % 5], axis=1).astype(np.int32)
  CodeIndex(rows, (5, 5), ids, ids).save(tmp_path / "i.npz")
  with tiny_config.unlocked():
    tiny_config.update(docid="codes", docid_index=str(tmp_path / "i.npz"))
  return tiny_config


@pytest.mark.parametrize("asked, made", [((0, 0), (2, 5)), ((2, 9), (2, 9))])
def test_a_vocabulary_has_the_rows_that_the_config_asks_for_or_the_index_needs(codes_config, tmp_path, asked, made):
  with codes_config.unlocked():
    codes_config.update(docid_levels=asked[0], docid_codes=asked[1])
  run, _ = prepare_run(codes_config, tmp_path / "run")
  assert (run.vocab.docid_levels, run.vocab.docid_codes) == made
  seventh = run.index.doc_ids.index("D7")
  assert run.index.codes[seventh].tolist() == [1, 2]
  assert [run.vocab.piece(token) for token in run.docid_tokens[seventh]] == ["<d0_1>", "<d1_2>"]
  assert run.mask_id == made[1]
  assert run.banned.tolist() == [False] * made[1] + [True]


def test_a_run_whose_canvas_held_tokens_of_codes_is_refused(codes_config, tmp_path):
  run, _ = prepare_run(codes_config, tmp_path / "run")
  assert open_run(tmp_path / "run").index.codes.tolist() == run.index.codes.tolist()
  dataclasses.replace(run.index, codes=run.docid_tokens).save(tmp_path / "run" / "index")
  with pytest.raises(ValueError, match="holds a run on codes of an older version"):
    open_run(tmp_path / "run")


def test_an_autoregressive_run_holds_codes_as_tokens_and_no_other_token_is_predicted(codes_config, tmp_path):
  with codes_config.unlocked():
    codes_config.update(paradigm="autoregressive", process="clean", beam_widths=(2,), slot_embeddings=False)
  run, _ = prepare_run(codes_config, tmp_path / "run")
  assert (run.model.alignment, run.model.pattern, run.denoiser.pattern) == ("shifted", "prefix_causal", "prefix_causal")
  assert [run.piece(int(token)) for token in run.index.codes[run.index.doc_ids.index("D7")]] == ["<d0_1>", "<d1_2>"]
  first, end = run.valid_rows
  assert np.flatnonzero(~np.asarray(run.banned)).tolist() == list(range(first, end))
  assert set(run.index.codes.ravel()) <= set(range(first, end))


def test_an_autoregressive_run_with_a_code_head_holds_the_codes_themselves(codes_config, tmp_path):
  with codes_config.unlocked():
    codes_config.update(paradigm="autoregressive", process="clean", beam_widths=(2,), slot_embeddings=False)
  plain, _ = prepare_run(codes_config, tmp_path / "plain")
  assert plain.codes is None
  with codes_config.unlocked():
    codes_config.code_head = True
  run = dataclasses.replace(
    plain, config=codes_config, model=dataclasses.replace(plain.model, code_levels=2, code_size=plain.vocab.docid_codes)
  )
  assert run.canvas_of_codes
  assert run.codes == run.denoiser
  assert run.banned.tolist() == [False] * run.mask_id + [True]


@pytest.mark.parametrize("levels, codes", [(3, 5), (2, 4)])
def test_rows_that_the_index_does_not_fit_are_refused(codes_config, tmp_path, levels, codes):
  with codes_config.unlocked():
    codes_config.update(docid_levels=levels, docid_codes=codes)
  message = f"2 levels of up to 5 codes, but the vocabulary has {levels} levels of {codes} codes"
  with pytest.raises(ValueError, match=message):
    prepare_run(codes_config, tmp_path / "run")


def test_a_run_from_before_a_field_was_there_opens_and_goes_on(tiny_config, tmp_path):
  prepare_run(tiny_config, tmp_path)
  path = tmp_path / "config.json"
  record = json.loads(path.read_text())
  for field in ("docid", "docid_index", "docid_levels", "docid_codes", "embedding_rate", "nelbo_queries", "keep_best"):
    del record["config"][field]
  path.write_text(json.dumps(record))
  assert open_run(tmp_path).config.nelbo_queries == 256
  prepare_run(tiny_config, tmp_path)
  with tiny_config.unlocked():
    tiny_config.docid = "leading"
  with pytest.raises(ValueError, match="docid"):
    prepare_run(tiny_config, tmp_path)
