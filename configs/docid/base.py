"""Every field of a DocID run. As it stands: a small model, from nothing, that spells titles, on Python's docstrings.

The other configs under configs/docid/ and configs/quickstart.py start from it and say what differs.
`--config=configs/docid/base.py:steps=200,size=tiny` sets arguments, `--config.learning_rate=1e-3` single fields.
"""

from typing import Any

import ml_collections

from diffgr_jax.parallel.rules import DECODE_RULES, TRAIN_RULES

# name: (d_model, n_layers, n_heads, n_kv_heads, d_ff)
SIZES = {
  "tiny": (64, 2, 4, 4, 128),
  "small": (192, 2, 4, 4, 384),
  "base": (384, 6, 6, 6, 1024),
}
ARGUMENTS = ("dataset", "path", "steps", "size", "seed")


def parse_arguments(arg: str, allowed: tuple[str, ...]) -> dict[str, str]:
  """Reads `key=value,key=value`; an unknown key or a missing value is one line of error."""
  pairs = [pair.partition("=") for pair in arg.split(",") if pair]
  for key, equals, value in pairs:
    if key not in allowed or not equals or not value:
      raise ValueError(
        f"--config=...:{key}{equals}{value}: arguments are key=value with key one of {', '.join(allowed)}"
      )
  return {key: value for key, _, value in pairs}


def pretrained_config(arg: str, steps: int, own: tuple[str, ...] = ()) -> tuple[Any, dict[str, str]]:
  """This config, unlocked, from pretrained weights: what configs begin with that start so.

  Args:
    arg: of the config; it may name dataset folder by `path`, `steps`, `seed`, `pretrained`, and what `own` names.
    steps: where `arg` says nothing.
    own: the config's own arguments.

  Returns:
    The config, and the config's own arguments as they were given.
  """
  given = parse_arguments(arg, ("path", "steps", "seed", "pretrained", *own))
  pretrained, rest = given.pop("pretrained", "minilm"), {name: given.pop(name) for name in own if name in given}
  given = {"steps": str(steps)} | given | ({"dataset": "folder"} if "path" in given else {})
  config = get_config(",".join(f"{key}={value}" for key, value in given.items())).unlock()
  config.start = "pretrained"
  config.pretrained = pretrained  # minilm | a Hugging Face folder with config.json, tokenizer.json and safetensors
  config.slot_embeddings = False
  config.eval_splits = ()  # every split but train
  return config, rest


def get_config(arg: str = "") -> ml_collections.ConfigDict:
  given = parse_arguments(arg, ARGUMENTS)
  size = given.get("size", "small")
  if size not in SIZES:
    raise ValueError(f"--config=...:size={size}: size is one of {', '.join(SIZES)}")
  config = ml_collections.ConfigDict()
  config.task = "docid"  # docid
  config.paradigm = "diffusion"  # diffusion | autoregressive (the rival: the same model, left to right, process clean)
  config.seed = int(given.get("seed", 0))  # of every draw: weights, order of the data, masks

  # Data: what is indexed and asked.
  config.dataset = given.get("dataset", "pydocs")  # pydocs | folder | nq320k | msmarco
  # folder: where corpus.jsonl and queries.*.jsonl are; nq320k, msmarco: a folder, a URL, or public (to download)
  config.dataset_path = given.get("path", "")
  config.dataset_words = 512  # nq320k, msmarco: words of a text that are kept; 0: all
  config.dataset_limit = 0  # msmarco: documents of the subset; 0: all
  config.dataset_part = "documents"  # msmarco: documents | passages
  config.dataset_manifest = ""  # nq320k, msmarco: a file of sha256sum that the sources must agree with
  config.on_bad_row = "error"  # error | skip (count and report)
  config.data_dir = ""  # where built data sets are kept; "": inside the workdir
  config.vocab_size = 4096  # sentencepiece pieces learned from the corpus, at most
  config.split_case = True  # ThreadPool reads as thread pool; for prose, False
  config.prompt_length = 24  # tokens of BOS, query, SEP; longer queries are cut
  config.docid = "title"  # title | leading (tokens of the text) | codes (learned, python -m diffgr_jax.index)
  config.docid_index = ""  # with docid codes: the .npz that python -m diffgr_jax.index build wrote
  config.canvas_length = 12  # tokens of a DocID with its EOS; 0: the longest one's; codes have their own
  # Token rows for learned DocIDs, <d0_0> ...: levels x codes of each, behind the text pieces. 0 and 0: as many as the
  # index of docid codes needs, and none for words.
  config.docid_levels, config.docid_codes = 0, 0
  config.mixture = ml_collections.ConfigDict(  # shares of the three kinds of training example
    {"indexing": 0.35, "queries": 0.15, "pseudo": 0.5}
  )
  config.pseudo_queries = "spans"  # spans (sentences and spans of the text) | FILE.jsonl of generated queries

  # Model.
  config.start = "corpus"  # random | corpus (statistics of the corpus, training/start.py) | pretrained
  config.pretrained = ""  # with start pretrained: a Hugging Face folder, or minilm
  # Width, layers, heads, heads of keys and values, width of the MLP: by the argument `size`.
  config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.d_ff = SIZES[size]
  config.head_dim = 0  # 0: d_model / n_heads
  config.qk_norm = True  # queries and keys are normalised per head (Qwen3)
  config.qkv_bias = False  # projections to queries, keys and values have biases (Qwen2)
  config.tie_embeddings = True  # the token embeddings are the output head, too
  config.slot_embeddings = True  # a learned vector for each place of the DocID; False for pretrained models
  config.pattern = "bidirectional"  # bidirectional | prefix (the prompt does not see the canvas)
  config.code_head = False  # docid codes, start pretrained: one-pass scoring starts as retrieval by quantised vectors
  config.code_scale = 20.0  # what a code head multiplies cosines by at its start; sentence encoders learn by about 20
  # What one pass reads: canvas (prompt and masks) | prompt (a code head's canvas counts once something is visible)
  config.first_pass = "canvas"
  config.rope_theta = 10_000.0  # base of the rotary position embedding
  config.remat = "none"  # none | dots | full
  config.param_dtype = "float32"  # float32 | bfloat16
  config.compute_dtype = "float32"  # float32 | bfloat16; softmax, logits and losses are float32 in any case

  config.lora_rank = 0  # of adapters (LoRA) beside frozen weights; 0: all weights are trained
  config.lora_alpha = 16.0  # adapters' outputs are multiplied by lora_alpha / lora_rank
  config.lora_targets = ("query", "value")  # some of query, key, value, out, gate, up, down
  config.attention = "auto"  # reference | splash (TPU) | flash (GPU, bfloat16) | auto: what fits the machine

  # Objective.
  config.process = "exact_count"  # random_time | exact_count (both the bound) | uniform_weight | all_masked | clean
  config.schedule = "linear"  # linear | cosine
  config.all_masked_fraction = 0.7  # share of rows at t = 1, what one-pass scoring sees; above 0 is no bound
  config.antithetic = True  # times spread evenly over the batch
  config.diffusion_weight = 1.0  # of the diffusion loss; 0 leaves the document-level softmax alone
  config.document_weight = 1.0  # of the document-level softmax beside the diffusion loss
  config.document_negatives = 0  # documents that it compares with beside the batch's, drawn at random; 0: all there are
  config.prior_weight = 1.0  # of the tokens' log frequency, subtracted in one-pass scores (0: plain)
  config.label_smoothing = 0.0  # share of the targets that is spread over all tokens
  config.spare_unasked = False  # questions are not compared with documents that no training question asks for
  config.ce_chunk = 0  # vocabulary rows a chunk of the cross-entropy; 0: all logits at once

  # Optimization.
  config.batch_size = 64  # rows of the global batch
  config.microbatches = 1  # parts whose gradients are accumulated
  config.steps = int(given.get("steps", 900))  # of the optimizer
  config.optimizer = "adamw"  # adamw | muon (the matrices inside the layers; the rest by AdamW)
  config.learning_rate = 2e-3  # the highest, behind the warm-up
  config.warmup_steps = min(100, config.steps // 10)  # steps in which the rate rises from 0
  config.lr_decay = "cosine"  # cosine | linear | constant
  config.final_lr_fraction = 0.05  # of learning_rate, at the last step (cosine and linear)
  config.b1 = 0.9  # AdamW: decay of the first moment
  config.b2 = 0.98  # AdamW: decay of the second moment
  config.weight_decay = 0.01  # decoupled, of kernels and embeddings
  config.clip_norm = 1.0  # largest norm of a step's gradient
  config.embedding_rate = 1.0  # share of the learning rate for the token embeddings; 0: they stay as they start
  config.head_rate = 1.0  # the same for the centroids of a code head
  config.row_rate = 1.0  # the same for its rows, by which the canvas speaks

  # Devices: sizes of the mesh axes replica, data, fsdp, tensor, sequence; -1 is what is left.
  config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # sizes of its axes
  config.rules = TRAIN_RULES  # logical axis of a weight or an activation -> mesh axes, in training
  config.decode_rules = DECODE_RULES  # the same in decoding and evaluation

  # Watching and keeping.
  config.log_every = 50  # steps between two lines of metrics.jsonl
  config.eval_every = 500  # one-pass Hit@1 and MRR of the validation queries; 0: never
  config.checkpoint_every = 500  # steps between two checkpoints; the last step has one in any case
  config.keep_checkpoints = 2  # the newest so many stay
  config.keep_every = 0  # checkpoints of every so many steps stay for good; 0: none
  config.keep_best = 0  # the best so many by best_metric stay; 0: none
  config.best_metric = "valid MRR@100"  # valid MRR@100 | valid Hit@1; checkpoints of steps with an evaluation have it

  # Evaluation at the end.
  config.eval_splits = ("valid", "test")  # as the data names them; (): all but train
  config.eval_limit = 0  # questions of a split, its first ones; 0: all
  config.eval_batch_size = 64  # rows that are decoded together
  config.start_share = 0.0  # share of the pretrained start in the weights that answer (training/averaging.py)
  config.relevant_grade = 1  # grade from which Hit and MRR count a judged document; for TREC DL: 2
  # What a denoiser is evaluated by, in this order (docs/docid.md): one_pass | topk | constrained | free | argmax |
  # stochastic | blocks | pseudo_beam | best_of_n | match | chain
  config.decodings = ("one_pass", "constrained", "free")
  config.decode_steps = 4  # T of the T-step decodings
  config.policy = "confidence"  # random | confidence | margin | entropy | threshold
  config.threshold = 0.9  # of the threshold policy
  config.topk_steps = 4  # passes of constrained top-k decoding (decoding/topk.py)
  config.topk_beam = 8  # canvases that it asks about in a pass
  config.topk_commit = 1  # positions that it commits in a canvas at a time
  config.topk_policy = "confidence"  # which: random | confidence | margin | entropy | sequential
  config.topk_weigh = ("documents",)  # what a canvas weighs a commitment by: documents | tokens, or both, apart
  config.topk_root = (0.0,)  # shares that one pass has in what it ranks by, below 1; each apart
  config.temperature = 1.0  # of the samples of stochastic and best_of_n
  config.samples = 8  # of best_of_n
  config.pool = 100  # documents that a code is matched to, by match and, for each of its samples, by best_of_n
  config.block_length = 4  # of blocks
  config.beam_canvases = 8  # of pseudo_beam
  config.chain_candidates = 20  # best documents of one pass that chain scores again
  config.chain_steps = 0  # groups of positions that chain fills in one after the other; 0: one each
  config.sweep_steps = ()  # other numbers of steps that the decodings in steps are evaluated with, too: (1, 2, 8)
  # autoregressive: beam searches over the DocIDs that exist; 1 is greedy, 0 is greedy without them: it may name none
  config.beam_widths = ()
  # renormalised (a token's probability among those that go on to a DocID that exists) | plain (among all): one or both
  config.beam_scores = ("renormalised",)
  config.remask = 0  # low-confidence tokens taken back after a step
  config.nelbo_queries = 256  # of a split, at most, whose likelihood is bounded (16 forward passes each); 0: none
  config.dense = ""  # a dense encoder to compare with: minilm, or a Hugging Face folder; "": none
  config.show_queries = 3  # worked queries printed at the end
  return config.lock()
