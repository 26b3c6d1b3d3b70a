"""The programs of a preflight, compiled for eight virtual devices in place of a slice; with libtpu, for a slice."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs.pod.docid import get_config
from diffgr_jax.data.vocab import SPECIAL_TOKENS
from diffgr_jax.docid.codes import CodeIndex
from diffgr_jax.docid.product_quantizer import fit_product_quantizer
from diffgr_jax.docid.words import WordCoder
from diffgr_jax.models.flops import forward_flops, train_step_flops, unread_canvas_flops
from diffgr_jax.models.transformer import count_params
from diffgr_jax.parallel import aot
from diffgr_jax.parallel.chips import CHIPS
from diffgr_jax.parallel.collectives import Collective, collectives
from diffgr_jax.parallel.mesh import make_mesh
from diffgr_jax.training.account import Memory, advice, memory_of, memory_without_analysis, roofline
from diffgr_jax.training.preflight import STEPS, make_program, plan, planned_stage
from diffgr_jax.training.rerank_preflight import make_rerank_program, plan_rerank
from tests.training import tiny_rerank


@pytest.fixture
def tiny():
  """A pod's config with every width small."""
  config = get_config("size=1b")
  with config.unlocked():
    config.update(
      d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, d_ff=32, vocab_size=300,
      docid_levels=4, docid_codes=8, canvas_length=4, prompt_length=12, batch_size=8, eval_batch_size=8, ce_chunk=128,
      attention="reference", compute_dtype="float32",
    )  # fmt: skip
    config.mesh.update(data=1, fsdp=4, tensor=2)
  return config


@pytest.mark.parametrize("step", STEPS)
def test_every_step_is_compiled_from_its_config_alone(tiny, step):
  job, mesh = plan(tiny, 9, step), make_mesh(tiny.mesh.to_dict())
  program = make_program(step, tiny, job, mesh)
  compiled = aot.compile_for(program.lower)
  memory = memory_of(program, compiled, CHIPS["v5e"])
  sent = collectives(compiled.text, mesh.shape)
  assert memory.fits
  assert compiled.arguments <= sum(memory.held.values()) + 64
  assert {len(one.axes) > 0 for one in sent} == {True}
  split = 8 if step == "train" else 2  # weights over fsdp and tensor, or over tensor alone; norms are whole
  assert 0 < memory.held["weights"] - 4 * count_params(job.model) / split < 2000
  assert program.flops > 0
  assert 0 < roofline(program, job, mesh, CHIPS["v5e"], memory, sent, 1).mfu <= 1
  if step == "train":
    assert program.flops == train_step_flops(job.model, 8, 16, "bidirectional", logits_positions=4)
    assert 1.9 < memory.held["optimizer"] / memory.held["weights"] < 2.1
  assert ("cache" in memory.held) == (step == "cached")


def test_the_planned_loss_is_that_of_the_config(tiny):
  fields = {
    "document_weight": 0.5, "document_negatives": 5, "prior_weight": 0.25, "diffusion_weight": 2.0,
    "label_smoothing": 0.1, "spare_unasked": True, "antithetic": False, "ce_chunk": 0,
  }  # fmt: skip
  with tiny.unlocked():
    tiny.update(fields)
  job, mesh = plan(tiny, 9, "train"), make_mesh(tiny.mesh.to_dict())
  stage = planned_stage(tiny, job)
  assert {name: getattr(stage, name) for name in fields} == fields
  program = make_program("train", tiny, job, mesh)
  assert memory_of(program, aot.compile_for(program.lower), CHIPS["v5e"]).fits


@pytest.mark.parametrize("step", ["train", "one_pass", "canvas"])
def test_learned_docids_have_logits_of_a_level_only(tiny, step):
  with tiny.unlocked():
    tiny.update(docid="codes", docid_index="codes.npz", ce_chunk=0, prior_weight=1.0)
  job, mesh = plan(tiny, 9, step), make_mesh(tiny.mesh.to_dict())
  program = make_program(step, tiny, job, mesh)
  memory = memory_of(program, aot.compile_for(program.lower), CHIPS["v5e"])
  assert memory.fits
  if step != "train":
    assert memory.held["DocID index"] < 9 * 4 * 8 + 4 * 9 * 4 + 64  # no table of the whole vocabulary


@pytest.mark.parametrize("step", ["train", "one_pass", "canvas"])
def test_a_code_head_is_planned_with_what_one_pass_reads(tiny, step):
  """Of 16 rows 12 are prompts alone, and so is one pass: the batch, like the mesh of 4 x 2, divides them apart."""
  with tiny.unlocked():
    tiny.update(
      docid="codes", docid_index="codes.npz", ce_chunk=0, code_head=True, pattern="prefix", first_pass="prompt",
      all_masked_fraction=0.75, batch_size=16, document_weight=1.0,
    )  # fmt: skip
  job, mesh = plan(tiny, 9, step), make_mesh(tiny.mesh.to_dict())
  assert (job.model.code_levels, job.model.code_size, job.canvas_length) == (4, 8, 4)
  program = make_program(step, tiny, job, mesh)
  assert memory_of(program, aot.compile_for(program.lower), CHIPS["v5e"]).fits
  tiny.attention = "auto"
  assert plan(tiny, 9, step).model.attention == "reference"  # as the job itself takes it for this pattern
  alone = unread_canvas_flops(job.model, 1, 12, 4)
  read = forward_flops(job.model, 1, 16, "prefix", logits_positions=4)
  assert program.flops == {"train": 3 * (12 * alone + 4 * read), "one_pass": 8 * alone, "canvas": 8 * read}[step]
  assert program.tokens == {"train": 12 * 12 + 4 * 16, "one_pass": 8 * 12, "canvas": 8 * 16}[step]
  with pytest.raises(ValueError, match=r"config\.code_head must be False"):
    make_program("cached", tiny, job, mesh)


def test_levels_come_from_the_index_where_its_file_is(tiny, tmp_path):
  """And so does which of them name words, which only the index knows."""
  pieces = tiny.vocab_size - len(SPECIAL_TOKENS)
  rng = np.random.default_rng(0)
  vectors, documents = rng.standard_normal((40, 16)).astype(np.float32), [[i, i + 1] for i in range(40)]
  words = WordCoder(2, 8, np.ones(pieces, np.float32), 2.0)
  quantizer = fit_product_quantizer(vectors, 4, 8, seed=0)
  codes = np.concatenate([quantizer.encode(vectors), words.encode(documents, documents)], axis=1)
  ids = tuple(map(str, range(40)))
  CodeIndex(codes, (8,) * 6, ids, ids, quantizer, words=words).save(tmp_path / "codes.npz")
  with tiny.unlocked():
    tiny.update(
      docid="codes", docid_index=str(tmp_path / "codes.npz"), docid_levels=0, docid_codes=0, ce_chunk=0, code_head=True
    )  # fmt: skip
  job = plan(tiny, 40, "one_pass")
  program, model = make_program("one_pass", tiny, job, make_mesh(tiny.mesh.to_dict())), job.model
  memory = memory_of(program, aot.compile_for(program.lower), CHIPS["v5e"])
  assert memory.held["DocID index"] >= 40 * 6 * (4 + 1) / 2  # codes and what is scored, over the axis tensor
  assert (model.code_levels, model.code_size, model.word_levels) == (6, 8, 2)
  assert model.word_rows == (len(SPECIAL_TOKENS), len(SPECIAL_TOKENS) + pieces)


def test_the_rival_is_planned_as_it_is_trained(tiny):
  with tiny.unlocked():
    tiny.update(paradigm="autoregressive", process="clean", beam_widths=(2,), all_masked_fraction=0.0, show_queries=0)
  job, mesh = plan(tiny, 9, "train"), make_mesh(tiny.mesh.to_dict())
  assert (job.model.pattern, job.model.alignment) == ("prefix_causal", "shifted")
  assert planned_stage(tiny, job).denoiser.pattern == "prefix_causal"
  program = make_program("train", tiny, job, mesh)
  assert program.flops == train_step_flops(job.model, 8, 16, "prefix_causal", logits_positions=4)
  with pytest.raises(ValueError, match="are a denoiser's: the paradigm 'autoregressive' has train and cached"):
    make_program("one_pass", tiny, job, mesh)


def test_a_step_moves_no_more_than_its_weights(tiny):
  """Gathers and sums of the weights are what a layer sends over fsdp, not tables of tokens."""
  job, mesh = plan(tiny, 9, "train"), make_mesh({"fsdp": 8})
  compiled = aot.compile_for(make_program("train", tiny, job, mesh).lower)
  sent = sum(one.bytes for one in collectives(compiled.text, mesh.shape))
  # With full remat: gathered twice, summed once (an all-reduce sends twice as much); the head's chunks as well.
  assert sent < 6 * 4 * count_params(job.model)


def test_what_does_not_fit_is_told_by_how_much_and_what_helps(tiny):
  job, mesh = plan(tiny, 9, "train"), make_mesh(tiny.mesh.to_dict())
  program = make_program("train", tiny, job, mesh)
  refused = aot.DoesNotFit(2000.0, 500.0)
  memory = memory_without_analysis(program, job, tiny, mesh, refused, "train")
  assert not memory.fits
  assert memory.peak == max(2000, sum(memory.held.values()))
  assert memory.temporaries > 0
  lines = "\n".join(advice(memory, job.model, tiny, mesh, "train"))
  for change in ("config.mesh.fsdp", "config.microbatches=2", "compute_dtype='bfloat16'"):
    assert change in lines
  fits = Memory({}, 0, 1, 2, compiled=True)
  assert advice(fits, job.model, tiny, mesh, "train") == []


def test_time_over_the_network_between_slices_is_counted_at_its_own_rate(tiny):
  job, mesh, chip = plan(tiny, 9, "train"), make_mesh(tiny.mesh.to_dict()), CHIPS["v5e"]
  program, memory = make_program("train", tiny, job, mesh), Memory({}, 0, 1, 2, compiled=True)
  sent = [Collective("all-reduce", ("replica",), 1, 1000), Collective("all-gather", ("fsdp",), 1, 1000)]
  near, far = (roofline(program, job, mesh, chip, memory, sent, slices).network for slices in (1, 2))
  np.testing.assert_allclose([near, far], [2000 / 90e9, 1000 / 90e9 + 1000 / 3.125e9])


def test_a_canvas_that_the_data_decides_is_refused(tiny):
  with tiny.unlocked():
    tiny.update(canvas_length=0)
  with pytest.raises(ValueError, match=r"needs config\.canvas_length above 0"):
    plan(tiny, 9, "train")


def test_a_mesh_that_does_not_divide_is_refused(tiny):
  with pytest.raises(ValueError, match="its heads dimension of 4 cannot be split over 8 devices"):
    make_program("train", tiny, plan(tiny, 9, "train"), make_mesh({"tensor": 8}, jax.devices()))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed")
def test_the_command_on_a_slice():
  arguments = ["--config=configs/docid/base.py:size=tiny", "--topology=v5e:2x2", "--documents=100", "--json"]
  command = [sys.executable, "-m", "diffgr_jax.preflight", *arguments, "--config.mesh.data=1", "--config.mesh.fsdp=4"]
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  ran = subprocess.run(command, capture_output=True, text=True, env=environment)
  assert (ran.returncode, ran.stderr) == (0, "")
  record = json.loads(ran.stdout)
  assert (record["fits"], record["devices"], record["memory"]["capacity"]) == (True, 4, 15.75 * 2**30)
  assert {axis for one in record["collectives"] for axis in one["axes"]} == {"fsdp"}


@pytest.mark.parametrize("stage", ["sft", "cft"])
def test_a_reranker_s_train_step_is_planned_by_its_config_alone(stage):
  config = tiny_rerank.tiny(stage, "w" if stage == "cft" else "", mesh={"fsdp": 4, "tensor": 2}, attention="reference")
  job = plan_rerank(config, "train")
  mesh = make_mesh(config.mesh.to_dict())
  program = make_rerank_program("train", config, job, mesh)
  text = program.lower().as_text()
  assert "func" in text
  assert program.tokens == 8 * (416 + (256 if stage == "cft" else 0))
  assert program.flops > 0
  cached = make_rerank_program("cached", config, plan_rerank(config, "cached"), mesh)
  assert cached.tokens == 8 * (8 if stage == "cft" else 1)
  cached.lower()
  with pytest.raises(ValueError, match="--step=one_pass is of DocID retrieval; re-ranking has train and cached"):
    plan_rerank(config, "one_pass")


@pytest.mark.parametrize(
  "stage, fields, copies",
  [
    ("opd", {"teacher": "t", "teacher_top_k": 8, "decode_steps": 2}, 8),  # 4 blocks of 8 for 24 tokens, 2 passes each
    ("opd", {"teacher": "t", "divergence": "sampled", "rollout_temperature": 1.0}, 24),  # a token a pass, at most
    ("rl", {"kl_weight": 0.1, "decode_steps": 2}, 8),
    ("rl", {"decoder": "autoregressive"}, 0),
  ],
)
def test_a_step_on_rollouts_is_planned_by_its_config_alone(stage, fields, copies):
  config = tiny_rerank.tiny(stage, "w", mesh={"fsdp": 4, "tensor": 2}, attention="reference", group=4, **fields)
  program = make_rerank_program("train", config, plan_rerank(config, "train"), make_mesh(config.mesh.to_dict()))
  assert "func" in program.lower().as_text()
  assert program.tokens == 8 * (416 + copies * 8)
  assert program.flops > 0
