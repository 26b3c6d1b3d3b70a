"""How every record under results/ came about: the commands, what is compared, how near it should come.

`benchmarks/reproduce.py` runs and compares them, and writes REPRODUCE.md from them.
"""

from dataclasses import dataclass

W = "workdir/reproduce"


@dataclass(frozen=True)
class Recipe:
  """How a record of results/ came about.

  Attributes:
    shown: where its figures stand.
    commands: run in this order from the repository's root; {data} is where data sets lie.
    makes: the record that they write.
    minutes: of all commands, on `machine`.
    figures: what is compared: split, method, measure; none: the commands check themselves.
    tolerance: of a figure, as a difference; or, with `relative`, as a share of it.
    remark: how the commands differ from what made the record.
  """

  shown: str
  commands: tuple[str, ...]
  makes: str
  minutes: int
  figures: tuple[tuple[str, str, str], ...]
  tolerance: float = 0.03
  relative: bool = False
  machine: str = "2 cores"
  remark: str = ""


def _main(config: str, name: str, *more: str) -> str:
  return " ".join((f"python -m diffgr_jax.main --config=configs/{config} --workdir={W}/{name}", *more))


def _evaluate(name: str, *more: str) -> str:
  return " ".join((f"python -m diffgr_jax.evaluate --workdir={W}/{name}", *more))


_TEST = "--set=eval_splits=test --set=eval_limit=0 --set=eval_batch_size=64"


def _beauty(stage: str, arguments: str, name: str, *fields: str) -> str:
  """A stage of the Beauty re-rankers."""
  data = f"--config.vectors={{data}}/amazon_beauty/items_minilm_f16.npy --config.data_dir={W}/beauty_data"
  config = f"rerank/{stage}:shop=amazon_beauty,path={{data}}/amazon_beauty," + arguments.replace("{W}", W)
  return _main(config, name, data, "--config.eval_limit=128", *fields)


def _shipped(name: str, *more: str) -> tuple[str, ...]:
  """Evaluates a model of the repository, in a copy that takes its trees and rankings."""
  test = f"{_TEST} --out={W}/{name}/results.json"
  copy = (f"mkdir -p {W}", f"rm -rf {W}/{name}", f"cp -r colabs/models/{name} {W}/{name}")
  return *copy, _evaluate(name, test, *more)


def _both(split: str, method: str, *measures: str) -> tuple[tuple[str, str, str], ...]:
  return tuple((f"{split}_{kind}", method, measure) for kind in ("seen", "unseen") for measure in measures)


_BEST, _ONE = "one-pass, prior-corrected", "one-pass"
_PYDOCS = (("test", _BEST, "Hit@1"), ("test", _BEST, "MRR@10"))
_INDEX = "python -m diffgr_jax.index build --corpus=folder --path={data}/gqwiki --vectors=minilm"
_BOUND = "--config.document_weight=0. --config.all_masked_fraction=0. --config.start_share=0."
_TITLES = _BOUND.replace(" --config.start_share=0.", "")
# What code heads learned by before these were fields, and rows of the batch whose canvas was masked.
_READ = "--config.first_pass=canvas --config.all_masked_fraction=0.7"
_FULL = f"--config.head_rate=1. --config.row_rate=1. {_READ}"
_PRODUCT = (
  "make pretrained", f"{_INDEX} --title_weight=.3 --method=product --levels=64 --out={W}/pq.npz",
  _main(f"docid/codes.py:index={W}/pq.npz,path={{data}}/gqwiki", "gqwiki_product", _FULL),
)  # fmt: skip
_BEAUTY_TEACHER = (
  _beauty("mid_training.py", "pool=50,steps=9000", "beauty_mid", "--config.batch_size=32"),
  _beauty("sft.py", "pool=50,start={W}/beauty_mid,steps=5000", "beauty_sft",
          "--config.batch_size=16 --config.learning_rate=2e-3"),
  _beauty("sft.py", "pool=10,start={W}/beauty_sft,steps=2", "beauty_top10"),  # its messages are what is wanted
  _beauty("sft.py", "pool=10,start={W}/beauty_sft,steps=1200", "beauty_teacher",
          f"--config.examples={W}/beauty_top10+{W}/beauty_sft --config.batch_size=16 --config.learning_rate=1e-3"),
)  # fmt: skip
_NOT_AS_ONE = (
  "The record's models came about with breaks: mid-training was begun on 2 cores and ended after 6,984 steps, its"
  " messages were drawn once (docs/reranking.md). These commands are the same stages in one go, which were not run."
)
_RL_TEACHER = (_main("rerank/rl.py:start=colabs/models/teacher,steps=100", "teacher_rl", "--config.eval_limit=128"),)
_OPD = "--config.lr_decay=constant --config.teacher_temperature=1."  # before the recipe of configs/rerank/opd.py
_HOT = "--config.rollout_temperature=1. --config.group=4"  # as rollouts were drawn before
_OPD_STUDENT = (
  _main("rerank/opd.py:start=colabs/models/student,teacher=colabs/models/teacher,block=8,threshold=0.9,steps=100",
        "opd", "--config.batch_size=64 --config.learning_rate=3e-4 --config.eval_limit=128", _OPD, _HOT),
)  # fmt: skip


def _quick_study(seed: int) -> str:
  study = f"configs/rerank/study.py:candidates=5,seed={seed}"
  return f"python -m diffgr_jax.sweep --config={study} --out={W}/made_up_quick_{seed}"


_EVERY = "one_pass,topk,constrained,free,argmax,stochastic,blocks,pseudo_beam,best_of_n,match,chain"
_BENCH = "python -m diffgr_jax.bench --config=configs/bench/decode.py"

RECIPES: dict[str, Recipe] = {
  "pydocs": Recipe(
    "README.md", (_main("docid/base.py", "pydocs"),), f"{W}/pydocs/results.json", 6,
    (*_PYDOCS, ("test", "BM25", "Hit@1")),
  ),
  "pydocs_codes": Recipe(
    "README.md",
    ("make pretrained",
     "python -m diffgr_jax.index build --corpus=pydocs --vectors=minilm --title_weight=.3 --method=product --levels=64"
     f" --word_levels=32 --out={W}/pydocs_codes.npz",
     _main(f"quickstart.py:index={W}/pydocs_codes.npz", "pydocs_codes")),
    f"{W}/pydocs_codes/results.json", 20,
    (("test", _ONE, "Hit@1"), ("test", _ONE, "MRR@10"), ("test", "minilm, dense", "Hit@1")),
  ),
  "pydocs_random": Recipe(
    "docs/experiments.md", (_main("docid/base.py", "pydocs_random", "--config.start=random"),),
    f"{W}/pydocs_random/results.json", 6, _PYDOCS,
  ),
  "pydocs_random_bound": Recipe(
    "docs/experiments.md", (_main("docid/base.py", "pydocs_random_bound", "--config.start=random", _TITLES),),
    f"{W}/pydocs_random_bound/results.json", 6, _PYDOCS,
  ),
  "pydocs_corpus_bound": Recipe(
    "docs/experiments.md", (_main("docid/base.py", "pydocs_corpus_bound", _TITLES),),
    f"{W}/pydocs_corpus_bound/results.json", 6, _PYDOCS,
  ),
  "gqwiki": Recipe(
    "README.md", (_main("docid/folder.py:path={data}/gqwiki", "gqwiki"),), f"{W}/gqwiki/results.json", 15,
    _both("test", _BEST, "Hit@1", "MRR@10"),
  ),
  "gqwiki_minilm": Recipe(
    "README.md",
    ("make pretrained",
     f"python -m benchmarks.minilm_dense --data={{data}}/gqwiki --documents=256 --out={W}/gqwiki_minilm.json"),
    f"{W}/gqwiki_minilm.json", 15, _both("test", "minilm, dense", "Hit@1", "MRR@10"), 0.005,
  ),
  "gqwiki_minilm_titles": Recipe(
    "docs/experiments.md", ("make pretrained", _main("docid/minilm.py:path={data}/gqwiki", "gqwiki_minilm_titles")),
    f"{W}/gqwiki_minilm_titles/results.json", 30, _both("valid", _BEST, "Hit@1"),
  ),
  "gqwiki_product": Recipe(
    "README.md, docs/docid.md",
    (*_PRODUCT, _evaluate("gqwiki_product", f"--set=decodings=one_pass,topk --out={W}/gqwiki_product.json")),
    f"{W}/gqwiki_product.json", 10, _both("test", _ONE, "Hit@1", "MRR@10"), machine="H100",
  ),
  "gqwiki_words": Recipe(
    "README.md, docs/docid.md",
    ("make pretrained",
     f"{_INDEX} --title_weight=.3 --method=product --levels=64 --word_levels=32 --out={W}/pw.npz",
     _main(f"docid/codes.py:index={W}/pw.npz,path={{data}}/gqwiki,steps=1000", "gqwiki_words",
           "--config.batch_size=64"),
     _evaluate("gqwiki_words", f"--set=decodings=one_pass --out={W}/gqwiki_words.json")),
    f"{W}/gqwiki_words.json", 90, _both("test", _ONE, "Hit@1", "MRR@10"),
  ),
  "gqwiki_codes_bound": Recipe(
    "docs/docid.md",
    ("make pretrained", f"{_INDEX} --levels=4 --out={W}/rq.npz",
     _main(f"docid/codes.py:index={W}/rq.npz,path={{data}}/gqwiki", "gqwiki_codes_bound", "--config.learning_rate=3e-4",
           _FULL, _BOUND)),
    f"{W}/gqwiki_codes_bound/results.json", 10, _both("test", _ONE, "Hit@1"), machine="H100",
  ),
  "gqwiki_codes_bound_scale": Recipe(
    "docs/docid.md", ("make pretrained", f"{_INDEX} --levels=4 --out={W}/rq.npz",
     _main(f"docid/bound.py:index={W}/rq.npz,path={{data}}/gqwiki", "gqwiki_codes_bound_scale", "--config.dense=")),
    f"{W}/gqwiki_codes_bound_scale/results.json", 40, _both("test", _ONE, "Hit@1"),
  ),
  "gqwiki_titles_bound_topk": Recipe(
    "docs/docid.md",
    ("make pretrained", _main("docid/bound.py:path={data}/gqwiki", "gqwiki_titles_bound_topk")),
    f"{W}/gqwiki_titles_bound_topk/results.json", 45,
    _both("test", _BEST, "Hit@1") + _both("test", "top-k by tokens, 4 steps, beam 8, root 0.4", "Hit@1"),
  ),
  "gqwiki_titles_bound": Recipe(
    "docs/docid.md",
    ("make pretrained", _main("docid/minilm.py:path={data}/gqwiki,steps=800", "gqwiki_titles_bound",
                              "--config.batch_size=128 --config.learning_rate=5e-4", _TITLES)),
    f"{W}/gqwiki_titles_bound/results.json", 10, _both("test", _ONE, "Hit@1"), machine="H100",
  ),
  "gqwiki_ar_titles": Recipe(
    "docs/docid.md",
    ("make pretrained", _main("docid/autoregressive.py:path={data}/gqwiki", "gqwiki_ar_titles",
                              "--config.batch_size=128 --config.learning_rate=3e-4")),
    f"{W}/gqwiki_ar_titles/results.json", 10, _both("test", "beam 100", "Hit@1"), machine="H100",
  ),
  "gqwiki_ar_codes": Recipe(
    "docs/docid.md",
    ("make pretrained", f"{_INDEX} --levels=4 --out={W}/rq.npz",
     _main(f"docid/autoregressive.py:index={W}/rq.npz,path={{data}}/gqwiki", "gqwiki_ar_codes",
           "--config.batch_size=128 --config.learning_rate=3e-4 --config.code_head=False --config.start_share=0."
           " \"--config.beam_scores=('renormalised',)\"")),
    f"{W}/gqwiki_ar_codes/results.json", 10, _both("test", "beam 100", "Hit@1"), machine="H100",
  ),
  "gqwiki_ar_codes_head": Recipe(
    "docs/docid.md",
    ("make pretrained", f"{_INDEX} --levels=4 --out={W}/rq.npz",
     _main(f"docid/autoregressive.py:index={W}/rq.npz,path={{data}}/gqwiki,steps=1000", "gqwiki_ar_codes_head",
           "--config.batch_size=64 --config.dense=")),
    f"{W}/gqwiki_ar_codes_head/results.json", 25, _both("test", "beam 100, plain", "Hit@1"),
  ),
  "gqwiki_product_decodings": Recipe(
    "docs/docid.md",
    (*_PRODUCT, _evaluate("gqwiki_product", f"--set=decodings={_EVERY} --set=chain_steps=4 --set=dense="
                          f" --set=eval_splits=valid_unseen --out={W}/gqwiki_product_decodings.json")),
    f"{W}/gqwiki_product_decodings.json", 60,
    (("valid_unseen", _ONE, "Hit@1"), ("valid_unseen", "match 100", "Hit@1")), machine="H100",
  ),
  "gqwiki_product_distractors": Recipe(
    "docs/docid.md",
    (*_PRODUCT, f"mkdir -p {W}/all", f"cp {{data}}/gqwiki/queries.test_unseen.jsonl {W}/all/test_unseen.jsonl",
     f"python -m benchmarks.with_distractors --data={{data}}/gqwiki --out={W}/all/corpus.jsonl",
     f"python -m diffgr_jax.index build --corpus=folder --path={W}/all --vectors=minilm --title_weight=.3"
     f" --quantizer={W}/pq.npz --out={W}/pq_all.npz",
     _evaluate("gqwiki_product", f"--queries={W}/all/test_unseen.jsonl --corpus={W}/all/corpus.jsonl"
               f" --docid_index={W}/pq_all.npz --set=dense= --set=decodings=one_pass --out={W}/all/test_unseen.json")),
    f"{W}/all/test_unseen.json", 30, (("test_unseen", _ONE, "Hit@1"),), machine="H100",
  ),
  "gqwiki_rq4": Recipe(
    "docs/experiments.md",
    ("make pretrained", f"{_INDEX} --levels=4 --out={W}/rq.npz",
     _main(f"docid/codes.py:index={W}/rq.npz,path={{data}}/gqwiki,steps=400", "gqwiki_rq4",
           _FULL, "--config.batch_size=32 --config.all_masked_fraction=0.4 --config.start_share=0."),
     _evaluate("gqwiki_rq4", "--set=decodings=one_pass,topk --set=topk_steps=4 --set=topk_beam=8"
               f" --set=topk_policy=sequential --set=eval_splits=valid_seen,valid_unseen --out={W}/gqwiki_rq4.json")),
    f"{W}/gqwiki_rq4.json", 25, _both("valid", _ONE, "Hit@1"),
  ),
  "cranfield": Recipe(
    "docs/docid.md",
    ("make pretrained",
     "python -m diffgr_jax.index build --corpus=folder --path={data}/cranfield --vectors=minilm --title_weight=.3"
     f" --method=product --levels=32 --codes=512 --out={W}/cranfield.npz",
     _main(f"docid/codes.py:index={W}/cranfield.npz,path={{data}}/cranfield,steps=400", "cranfield",
           _FULL, "--config.learning_rate=2.5e-5 --config.eval_every=0")),
    f"{W}/cranfield/results.json", 5, (("test", _ONE, "Hit@1"), ("test", _ONE, "nDCG@10")), machine="H100",
  ),
  "scoring_scale": Recipe(
    "docs/docid.md",
    (f"python -m benchmarks.scoring_scale --out={W}/scoring_scale.json --picture={W}/scoring_scale.png",),
    f"{W}/scoring_scale.json", 7, (("16 levels", "320,000 documents", "share of the forward pass"),), 0.06,
  ),
  "msmarco_dl": Recipe(
    "docs/docid.md",
    ("make pretrained",
     "python -m diffgr_jax.index build --corpus=folder --path={data}/msmarco_dl --vectors=minilm --method=product"
     f" --levels=64 --out={W}/dl.npz",
     _main(f"docid/codes.py:index={W}/dl.npz,path={{data}}/msmarco_dl,steps=200", "msmarco_dl",
           _FULL, "--config.batch_size=32 --config.learning_rate=2.5e-5 --config.relevant_grade=2 --config.eval_every=0"
           " --config.nelbo_queries=0 --config.dense=")),
    f"{W}/msmarco_dl/results.json", 35,
    (("test", _ONE, "nDCG@10"), ("test", _ONE, "Hit@10"), ("test", "BM25", "nDCG@10")),
  ),
  "made_up_teacher": Recipe(
    "docs/reranking.md", _shipped("teacher"), f"{W}/teacher/results.json", 10,
    (("test", "autoregressive", "R@1"), ("test", "autoregressive", "valid")), 0.015,
  ),
  "made_up_student": Recipe(
    "docs/reranking.md", (*_shipped("teacher"), *_shipped("student", f"--against={W}/teacher")),
    f"{W}/student/results.json", 20, (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.015,
  ),
  "made_up_frontier": Recipe(
    "docs/reranking.md",
    ("python -m diffgr_jax.bench --config=configs/bench/rerank.py:teacher=colabs/models/teacher"
     ",student=colabs/models/student --config.lists=64"
     " \"--config.policies=('prefix',)\" --config.thresholds=0.5,0.7,0.9,0.98,1.0"
     f" --config.most_seconds=300 --out={W}/frontier",),
    f"{W}/frontier/results.json", 12,
    (("test, batch 1", "AR", "tokens/s"), ("test, batch 1", "block 8, prefix 0.9", "tokens a forward")), 0.25, True,
  ),
  "made_up_teacher_rl": Recipe(
    "docs/reranking.md", (*_shipped("teacher"), *_RL_TEACHER, _evaluate(
      "teacher_rl", _TEST, f"--pool=50 --against={W}/teacher --out={W}/teacher_rl/test.json")),
    f"{W}/teacher_rl/test.json", 15, (("test", "autoregressive", "R@1"), ("test", "autoregressive", "valid")), 0.02,
    machine="H200",
  ),
  "made_up_student_opd": Recipe(
    "docs/reranking.md", (*_shipped("student"), *_OPD_STUDENT, _evaluate(
      "opd", _TEST, f"--pool=50 --against={W}/student --out={W}/opd/test.json")),
    f"{W}/opd/test.json", 15, (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.02,
    machine="H200",
  ),
  "made_up_student_opd_rl": Recipe(
    "docs/reranking.md",
    (*_shipped("student"), *_OPD_STUDENT,
     _main(f"rerank/rl.py:start={W}/opd,block=8,steps=100", "opd_rl", "--config.eval_limit=128"),
     _evaluate("opd_rl", _TEST, f"--pool=50 --against={W}/student --out={W}/opd_rl/test.json")),
    f"{W}/opd_rl/test.json", 20, (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.02,
    machine="H200",
  ),
  "made_up_student_opd_fast": Recipe(
    "docs/reranking.md",
    (*_RL_TEACHER,
     _main("rerank/opd.py:pool=50,block=8,threshold=0.6,start=colabs/models/student"
           f",teacher={W}/teacher_rl,steps=60", "opd_fast",
           "--config.threshold=0.6 --config.learning_rate=3e-4 --config.eval_limit=128", _OPD, _HOT),
     _evaluate("opd_fast", _TEST, f"--out={W}/opd_fast/test.json")),
    f"{W}/opd_fast/test.json", 15, (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.03,
    machine="H200", remark="As recorded, its 60 steps and its figures were made on 2 cores, in 36 minutes and some.",
  ),
  "made_up_student_opd_cool": Recipe(
    "docs/reranking.md",
    (*_shipped("student", "--set=threshold=0.6"),
     _main("rerank/opd.py:pool=50,block=8,threshold=0.6,start=colabs/models/student,teacher=colabs/models/teacher"
           ",steps=60", "opd_cool_60",
           "--config.threshold=0.6 --config.learning_rate=3e-4 --config.eval_limit=128", _OPD),
     _main(f"rerank/opd.py:pool=50,block=8,threshold=0.6,start={W}/opd_cool_60,teacher=colabs/models/teacher"
           ",steps=60", "opd_cool", "--config.threshold=0.6 --config.learning_rate=1e-3 --config.eval_limit=128", _OPD),
     _evaluate("opd_cool", _TEST, f"--against={W}/student --out={W}/opd_cool/test.json")),
    f"{W}/opd_cool/test.json", 60, (("test", "block 8, prefix", "valid"), ("test", "block 8, prefix", "R@1")), 0.03,
  ),
  "made_up_student_fast": Recipe(
    "docs/reranking.md", _shipped("student", "--set=threshold=0.6"), f"{W}/student/results.json", 8,
    (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.015,
  ),
  "beauty_teacher": Recipe(
    "docs/reranking.md", (*_BEAUTY_TEACHER, _evaluate("beauty_teacher", _TEST, f"--pool=50 --out={W}/b50/test.json")),
    f"{W}/b50/test.json", 15, (("test", "autoregressive", "R@1"), ("test", "autoregressive", "valid")), 0.02,
    machine="H200", remark=_NOT_AS_ONE,
  ),
  "beauty_teacher_top10": Recipe(
    "docs/reranking.md", (*_BEAUTY_TEACHER, _evaluate("beauty_teacher", _TEST, f"--out={W}/b10/test.json")),
    f"{W}/b10/test.json", 15, (("test", "autoregressive", "R@1"), ("test", "autoregressive", "valid")), 0.02,
    machine="H200", remark=_NOT_AS_ONE,
  ),
  "beauty_student": Recipe(
    "docs/reranking.md",
    (*_BEAUTY_TEACHER, _evaluate("beauty_teacher", _TEST, f"--pool=50 --out={W}/b50/test.json"),
     _beauty("cft.py", "pool=50,block=8,start={W}/beauty_sft,lists={W}/beauty_mid,steps=300", "beauty_lists",
             "--config.learning_rate=2e-3 --config.suffix_fraction=0.5"),
     _beauty("cft.py", "pool=50,block=8,start={W}/beauty_lists,examples={W}/beauty_sft,steps=4000", "beauty_student",
             "--config.learning_rate=2e-3 --config.suffix_fraction=0.5 --config.batch_size=16"),
     _evaluate("beauty_student", _TEST, f"--against={W}/b50 --permutations=optimal",
               f"--out={W}/beauty_student/test.json")),
    f"{W}/beauty_student/test.json", 25,
    (("test", "block 8, prefix", "R@1"), ("test", "block 8, prefix", "valid")), 0.02,
    machine="H200", remark=_NOT_AS_ONE,
  ),
  "item_retrievers_made_up": Recipe(
    "docs/reranking.md",
    (f"python -m benchmarks.item_retrievers --shop=made_up --out={W}/item_retrievers_made_up.json",),
    f"{W}/item_retrievers_made_up.json", 20,
    (("test", "generative", "Hit@10"), ("test", "generative", "Hit@50"), ("test", "covisitation", "Hit@10")), 0.02,
  ),
  "item_retrievers_beauty": Recipe(
    "docs/reranking.md",
    ("python -m benchmarks.item_retrievers --shop=amazon_beauty --path={data}/amazon_beauty"
     f" --vectors={{data}}/amazon_beauty/items_minilm_f16.npy --out={W}/item_retrievers_beauty.json",),
    f"{W}/item_retrievers_beauty.json", 20,
    (("test", "generative", "Hit@50"), ("test", "covisitation", "Hit@10"), ("test", "covisitation", "Hit@50")), 0.02,
  ),
  **{
    f"made_up_quick_{seed}": Recipe(
      "docs/reranking.md", (_quick_study(seed),), f"{W}/made_up_quick_{seed}/study.json", 75,
      (("test", "sft: autoregressive", "R@1"), ("test", "opd: block 8, prefix", "R@1"),
       ("test", "opd: block 8, prefix", "valid")),
    )
    for seed in (0, 1)
  },
  "made_up_quick_pooled": Recipe(
    "docs/reranking.md",
    (_quick_study(0), _quick_study(1),
     f"python -m benchmarks.pool_seeds --studies={W}/made_up_quick_0/study.json,{W}/made_up_quick_1/study.json"
     f" --out={W}/made_up_quick_pooled.json"),
    f"{W}/made_up_quick_pooled.json", 150,
    (("test", "teacher: autoregressive", "R@1"), ("test", "cft: block 8, prefix", "valid"),
     ("test", "opd: block 8, prefix", "valid"), ("test", "opd_fast: block 8, prefix", "valid")),
  ),
  "gradient_noise": Recipe(
    "docs/experiments.md",
    (_quick_study(0),
     f"python -m benchmarks.gradient_noise --runs={W}/made_up_quick_0/teacher,{W}/made_up_quick_0/opd,"
     f"{W}/made_up_quick_0/rl --out={W}/gradient_noise.json"),
    f"{W}/gradient_noise.json", 80, (("gradients", "opd", "signal share"), ("gradients", "rl", "signal share")),
  ),
  "gradient_noise_fast": Recipe(
    "docs/experiments.md",
    (_quick_study(0),
     f"python -m benchmarks.gradient_noise --runs={W}/made_up_quick_0/rl --set=rollout_threshold=0.6 --set=refills=0"
     f" --set=group=4 --set=batch_size=64 --set=microbatches=8 --out={W}/gradient_noise_fast.json"),
    f"{W}/gradient_noise_fast.json", 80, (("gradients", "rl", "signal share"),),
  ),
  "beauty_quick_0": Recipe(
    "docs/reranking.md",
    ("python -m diffgr_jax.sweep --config=configs/rerank/study.py:shop=amazon_beauty,path={data}/amazon_beauty,"
     f"vectors={{data}}/amazon_beauty/items_minilm_f16.npy,candidates=5,seed=0 --out={W}/beauty_quick_0"
     " --only=mid,sft,teacher,naive,lists,cft,opd,cft_slow,opd_slow,cft_sure,opd_sure,cft_fast,opd_fast",),
    f"{W}/beauty_quick_0/study.json", 75,
    (("test", "teacher: autoregressive", "R@1"), ("test", "cft: block 8, prefix", "valid"),
     ("test", "opd: block 8, prefix", "valid")),
  ),
  "made_up_headroom": Recipe(
    "docs/reranking.md",
    (f"python -m benchmarks.rerank_headroom --shop=made_up --vectors=lsa --draws=2 --out={W}/made_up_headroom.json",),
    f"{W}/made_up_headroom.json", 5,
    (("10 of 50", "boosted trees", "R@1"), ("10 of 50", "best order, expected", "R@1"), ("top 10", "retriever", "R@1")),
    0.01,
  ),
  "beauty_headroom": Recipe(
    "docs/reranking.md",
    ("python -m benchmarks.rerank_headroom --shop=amazon_beauty --path={data}/amazon_beauty"
     f" --vectors={{data}}/amazon_beauty/items_minilm_f16.npy --draws=2 --out={W}/beauty_headroom.json",),
    f"{W}/beauty_headroom.json", 10, (("10 of 50", "boosted trees", "R@1"), ("top 10", "retriever", "R@1")), 0.01,
  ),
  "decode_42m": Recipe(
    "docs/decoding.md",
    (f"{_BENCH} --config.batch_sizes=1,8 --config.new_tokens=128, --config.rounds=4 --config.most_seconds=660"
     f" --out={W}/bench",),
    f"{W}/bench/results.json", 6,
    (("128 new tokens, batch 1", "AR", "tok/s"), ("128 new tokens, batch 1", "block 32, 8 a pass", "tok/s")),
    0.25, True,
  ),
  "decode_42m_256": Recipe(
    "docs/decoding.md",
    (f"{_BENCH} --config.batch_sizes=1,4,8 --config.new_tokens=256, --config.rounds=3 --config.most_seconds=420"
     f" --out={W}/bench_256",),
    f"{W}/bench_256/results.json", 9,
    (("256 new tokens, batch 1", "AR", "tok/s"), ("256 new tokens, batch 8", "block 8, 8 a pass", "tok/s")),
    0.25, True,
  ),
  "decode_42m_32": Recipe(
    "docs/decoding.md",
    (f"{_BENCH} --config.batch_sizes=32, --config.new_tokens=128, --config.rounds=3 --config.most_seconds=300"
     f" --out={W}/bench_32",),
    f"{W}/bench_32/results.json", 10,
    (("128 new tokens, batch 32", "AR", "tok/s"), ("128 new tokens, batch 32", "block 8, 8 a pass", "tok/s")),
    0.25, True,
  ),
  "decode_8b_h100": Recipe(
    "docs/decoding.md",
    ("python -m diffgr_jax.bench --config=configs/bench/decode.py:size=8b --config.prompt_length=2200"
     " --config.new_tokens=160, --config.batch_sizes=1, --config.block_sizes=32, --config.tokens_per_forward=4,8"
     f" --config.rounds=5 --config.most_seconds=60 --out={W}/bench_8b",),
    f"{W}/bench_8b/results.json", 5,
    (("160 new tokens, batch 1", "AR", "tok/s"), ("160 new tokens, batch 1", "block 32, 4 a pass", "tok/s")),
    0.25, True, "H100",
  ),
  "decode_8b_h100_transformers": Recipe(
    "docs/decoding.md",
    ("pip install torch transformers accelerate",
     f"python -m benchmarks.transformers_decode --size=8b --prompt_length=2200 --new_tokens=160 --out={W}/hf.json"),
    f"{W}/hf.json", 5, (("decoding", "batch 1, dynamic cache", "tok/s"),), 0.25, True, "H100",
  ),
  "decode_tunix": Recipe(
    "docs/decoding.md",
    ("pip install -r benchmarks/requirements-tunix.txt",
     f"python -m benchmarks.tunix_decode --rounds=3 --out={W}/tunix.json"),
    f"{W}/tunix.json", 15, (("batch 1", "greedy", "ratio"), ("batch 8", "greedy", "ratio")), 0.2, True,
  ),
  "golden": Recipe(
    "docs/families.md, docs/decoding.md", ("python -m diffgr_jax.convert --check=tests/golden",), "", 8, (),
  ),
}  # fmt: skip
