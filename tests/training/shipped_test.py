"""Shipped runs: small, loaded as a workdir is, answering as their weights in bfloat16 do."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffgr_jax as dg
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.residual_quantizer import ResidualQuantizer
from diffgr_jax.training.jobs import check_config
from diffgr_jax.training.loop import train_and_evaluate
from tests.training.tiny_rerank import tiny


def test_a_shipped_re_ranker_writes_what_its_run_writes(rerank_runs, tmp_path):
  workdir = rerank_runs[0] / "convert"
  own = dg.load(workdir)
  shipped = dg.load(own.decoding(policy="sequential").ship(tmp_path / "shipped"))
  assert shipped.step == own.step
  assert (shipped.run.config.policy, own.run.config.policy) == ("sequential", "prefix")
  shipped = shipped.decoding(policy="prefix")
  rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)), own.params)
  jax.tree.map(np.testing.assert_array_equal, shipped.params, rounded)
  tasks = own.lists("test")[:2]
  assert shipped.lists("test")[:2] == tasks
  assert [one.items for one in shipped.rerank(tasks)] == [one.items for one in own.rerank(tasks)]
  assert not (tmp_path / "shipped" / "checkpoints").exists()
  check_config(shipped.run.config)  # which `evaluate` asks for: folders that stayed behind are called so
  with pytest.raises(FileExistsError, match="is there already"):
    own.ship(tmp_path / "shipped")
  with pytest.raises(FileNotFoundError, match="holds step 0 alone, not 3"):
    dg.load(tmp_path / "shipped", step=3)


def test_a_shipped_re_ranker_leaves_its_quantizer_behind(rerank_runs, tmp_path):
  shutil.copytree(rerank_runs[0] / "convert", tmp_path / "run")
  file = tmp_path / "run" / "index" / "codes.npz"
  codes = CodeIndex.load(file)
  dataclasses.replace(codes, quantizer=ResidualQuantizer(np.zeros((2, 16, 64), np.float32))).save(file)
  folder = dg.load(tmp_path / "run").ship(tmp_path / "shipped")
  kept = CodeIndex.load(folder / "index" / "codes.npz")
  assert kept.quantizer is None
  np.testing.assert_array_equal(kept.codes, codes.codes)
  assert kept.doc_ids == codes.doc_ids
  np.testing.assert_array_equal(dg.load(folder).run.codes, dg.load(tmp_path / "run").run.codes)


def test_a_shipped_retriever_needs_no_data(tiny_config, tmp_path):
  train_and_evaluate(tiny_config, tmp_path / "run")
  own = dg.load(tmp_path / "run")
  shipped = dg.load(own.ship(tmp_path / "shipped"))
  query = ["silver and lamp 3"]
  found = [hit.score for hit in shipped.retrieve(query, k=24)[0]]
  np.testing.assert_allclose(found, [hit.score for hit in own.retrieve(query, k=24)[0]], rtol=0.05)


def test_a_next_stage_may_start_from_a_shipped_run(rerank_runs, tmp_path):
  folder = dg.load(rerank_runs[0] / "sft").ship(tmp_path / "shipped")
  student = dg.train(tiny("convert", folder), tmp_path / "convert")
  jax.tree.map(np.testing.assert_array_equal, student.params, dg.load(folder).params)
