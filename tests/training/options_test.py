"""Configs that cannot work fail before anything is read, with the field and what it may be."""

import pytest

from configs.docid.base import get_config
from diffgr_jax.training.options import check_batch, check_config


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(dataset="wiki"), "config.dataset is one of pydocs, folder, nq320k, msmarco, not 'wiki'"),
    (dict(process="mask"), "config.process is one of random_time, exact_count"),
    (dict(policy="best"), "config.policy is one of random, confidence"),
    (dict(schedule="quadratic"), "config.schedule is one of linear, cosine"),
    (dict(schedule="cosine"), "has no schedule"),
    (dict(batch_size=0), "config.batch_size is at least 1, not 0"),
    (dict(learning_rate=0.0), "config.learning_rate is above 0"),
    (dict(code_scale=0.0), "config.code_scale is above 0"),
    (dict(row_rate=1.5), "config.row_rate is .*, not 1.5"),
    (dict(all_masked_fraction=1.5), r"config.all_masked_fraction is in \[0, 1\], not 1.5"),
    (dict(policy="threshold", threshold=1.5), r"probability in \(0, 1\]"),
    (dict(warmup_steps=2000), r"config.warmup_steps \(2000\) must be below config.steps"),
    (dict(microbatches=7), r"config.batch_size .* must be a multiple of config.microbatches \(7\)"),
    (dict(dataset="folder"), "config.dataset_path must name the folder"),
    (dict(dataset="nq320k"), "the folder or the URL of the files of nq320k, or be 'public'"),
    (dict(dataset_part="pages"), "config.dataset_part is one of documents, passages, not 'pages'"),
    (dict(dataset_limit=-1), "config.dataset_limit is at least 0, not -1"),
    (dict(relevant_grade=0), "config.relevant_grade is at least 1, not 0"),
    (dict(pseudo_queries="/no/such.jsonl"), "config.pseudo_queries is 'spans' or a .jsonl file that exists"),
    (dict(document_weight=0.5, ce_chunk=128), "config.ce_chunk must be 0"),
    (dict(document_weight=0.0, diffusion_weight=0.0), "both 0: one of them"),
    (dict(document_negatives=5), "config.document_negatives is of the document-level softmax"),
    (dict(paradigm="autoregressive", process="clean", beam_widths=(2,), beam_scores=("sum",)), r"not \['sum'\]"),
    (
      dict(paradigm="autoregressive", process="clean", beam_widths=(0,)),
      r"at least 1, and 0 .*; not \(0,",
    ),
    (dict(paradigm="autoregressive", process="clean", beam_widths=(2, -1)), r"not \(2, -1\)"),
    (dict(paradigm="autoregressive", process="clean", beam_widths=(2,), sweep_steps=(2,)), "sweep_steps is for deno"),
    (dict(sweep_steps=(2, 0)), r"config\.sweep_steps holds numbers of at least 1, not \(2, 0\)"),
    (dict(topk_weigh=("codes",)), r"config\.topk_weigh holds some of documents, tokens, not \['codes'\]"),
    (dict(topk_root=(0.5, 1.0)), r"config\.topk_root holds shares of at least 0 and below 1, not \[0\.5, 1\.0\]"),
    (dict(topk_root=()), r"config\.topk_root holds shares"),
    (dict(topk_weigh=("tokens",), topk_commit=2), "config.topk_commit must be 1, not 2, where config.topk_weigh"),
    (dict(eval_limit=-1), "config.eval_limit is at least 0, not -1"),
    (dict(start_share=0.5), "config.start_share must be 0 unless"),
    (dict(start_share=1.5), "config.start_share is in"),
    (dict(docid="words"), "config.docid is one of title, leading, codes, not 'words'"),
    (dict(docid="codes"), "config.docid_index must name a file when config.docid is 'codes'"),
    (dict(docid_index="i.npz"), "and only then: they are 'i.npz' and 'title'"),
    (dict(docid_levels=4), "config.docid_levels and config.docid_codes are both 0 .* not 4 and 0"),
    (dict(docid_levels=-1), "config.docid_levels is at least 0, not -1"),
    (dict(n_kv_heads=3), "multiple of model.n_kv_heads"),
    (dict(keep_every=750), r"config.keep_every \(750\) must be a multiple of config.checkpoint_every \(500\)"),
    (dict(keep_best=2, eval_every=0), "config.keep_best needs an evaluation at every checkpoint"),
    (dict(keep_best=2, eval_every=300), "must be a multiple of eval_every"),
    (dict(best_metric="loss"), "config.best_metric is one of valid MRR@100, valid Hit@1, not 'loss'"),
    (dict(mixture={"indexing": 0.0, "queries": 0.0, "pseudo": 0.0}), "config.mixture holds weights"),
    (dict(first_pass="query"), "config.first_pass is one of canvas, prompt, not 'query'"),
    (dict(first_pass="prompt"), "config.first_pass 'prompt' needs config.code_head to be True, not False"),
    (dict(compute_dtype="float16"), "model.compute_dtype is one of float32, bfloat16, not 'float16'"),
  ],
)
def test_a_bad_field_is_named(change, message):
  config = get_config()
  with config.unlocked():
    config.update(process="exact_count", schedule="linear", document_weight=0.0, ce_chunk=0)
    config.update(change)
  with pytest.raises(ValueError, match=message):
    check_config(config)


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(pattern="bidirectional"), "config.first_pass 'prompt' needs config.pattern to be 'prefix'"),
    (dict(microbatches=8, batch_size=64), r"0.7 sets 45 of 64 rows apart, which config.microbatches \(8\) does not"),
  ],
)
def test_one_pass_on_the_prompt_alone_needs_a_prompt_that_sees_no_canvas_and_rows_that_divide(
  change, message, tmp_path
):
  config = get_config()
  with config.unlocked():
    config.update(docid="codes", docid_index="i.npz", code_head=True, pattern="prefix", first_pass="prompt")
  check_config(config)
  with config.unlocked():
    config.update(change)
  with pytest.raises(ValueError, match=message):
    check_config(config)


def test_the_config_of_every_field_is_accepted():
  check_config(get_config())
  check_config(get_config("steps=7,size=tiny,seed=3"))


@pytest.mark.parametrize("arg", ["stepz=3", "steps", "size=huge"])
def test_bad_config_arguments_are_named(arg):
  with pytest.raises(ValueError, match=r"--config=...:(stepz=3|steps|size=huge)"):
    get_config(arg)


def test_a_batch_that_does_not_split_is_refused_with_the_numbers():
  config = get_config()
  with config.unlocked():
    config.update(batch_size=12, microbatches=2)
  with pytest.raises(
    ValueError, match=r"batch_size \(12\) must be a multiple of 16: 8 batch shards .* x 2 microbatches"
  ):
    check_batch(config, shards=8, processes=1)
