"""Every field of a re-ranking run; the configs of the stages start from it and say what differs.

    python -m diffgr_jax.main --config=configs/rerank/sft.py --workdir=W/sft                       teacher
    python -m diffgr_jax.main --config=configs/rerank/convert.py:start=W/sft --workdir=W/convert   conversion
    python -m diffgr_jax.main --config=configs/rerank/cft.py:start=W/sft --workdir=W/cft           CFT
    python -m diffgr_jax.main --config=configs/rerank/opd.py:start=W/cft,teacher=W/sft --workdir=W/opd
    python -m diffgr_jax.main --config=configs/rerank/rl.py:start=W/opd --workdir=W/rl

Arguments of all: shop (made_up | amazon_beauty | interactions), path (of its files), candidates (of a list: 10, or 5
for runs that should be quick), pool (as many, or more), size, steps, seed.
"""

from typing import Any

import ml_collections

from configs.docid.base import parse_arguments
from diffgr_jax.parallel.rules import DECODE_RULES, TRAIN_RULES

ARGUMENTS = ("shop", "path", "candidates", "pool", "size", "steps", "seed")
BLOCK = 32  # tokens that a row of blocks is longer than the teacher's
# name: (d_model, n_layers, n_heads, n_kv_heads, d_ff)
SIZES = {
  "tiny": (32, 2, 2, 2, 64),
  "small": (128, 4, 4, 4, 384),
  "base": (256, 6, 8, 4, 768),
  "8b": (4096, 36, 32, 8, 12_288),  # Qwen3-8B
}


def get_config(arg: str = "", own: tuple[str, ...] = ()) -> tuple[Any, dict[str, str]]:
  """The config, unlocked, and the arguments of a stage's own, as they were given."""
  given = parse_arguments(arg, (*ARGUMENTS, *own))
  size = given.get("size", "small")
  if size not in SIZES:
    raise ValueError(f"--config=...:size={size}: size is one of {', '.join(SIZES)}")
  few = int(given.get("candidates", 10)) <= 5  # shorter messages: 396 tokens at most in the made-up shop
  config = ml_collections.ConfigDict()
  config.task = "rerank"  # rerank
  config.stage = "sft"  # mid_training | sft (the teacher) | convert (weights as they are) | cft | opd | rl
  config.seed = int(given.get("seed", 0))  # of every draw: weights, order of the data, masks

  # The shop, and lists of candidates (rerank/candidates.py).
  config.shop = given.get("shop", "made_up")  # made_up | amazon_beauty | interactions (a user's own folder)
  config.shop_path = given.get("path", "")  # the folder of its files; made_up: its options, users=2000+loyalty=12
  config.shop_category = "Beauty"  # amazon_beauty: of its files
  config.data_dir = ""  # where a built shop is kept; "": inside the workdir
  config.on_bad_row = "error"  # error | skip (count and report)
  config.held_out_users = ""  # a file of users who are never evaluated; "": held_out_users.txt of the shop, if there
  config.vectors = "lsa"  # of the items, for IDs and evidence: lsa | minilm | FILE.npy
  # covisitation | symmetric | markov | popularity | generative (trained first, one model for each fold of the users)
  config.retriever = "covisitation"
  config.retriever_steps, config.retriever_width = 1000, 64  # generative: of the optimizer, and d_model
  config.list_size = int(given.get("candidates", 10))  # candidates of a list
  # 50: a list is drawn of the retriever's first fifty; as many as candidates: it is the retriever's natural one.
  config.list_pool = int(given.get("pool", config.list_size))
  # Training lists of one place, where the pool is larger than the list.
  config.list_draws = 3 if config.list_pool > config.list_size else 1
  config.list_folds = 5  # of the users: a training list counts the other folds' interactions alone
  config.list_seed = 0  # of the lists, the items' vectors and IDs, and the trees

  # Semantic IDs.
  config.item_index = ""  # FILE.npz of `index build` or `index import`; "": built from the vectors
  config.item_levels = 4  # codes of an ID
  config.item_codes = 64  # of a level
  config.item_method = "rqvae"  # residual_kmeans | product | rqvae | random

  # Messages (rerank/prompt.py). -1: as the prompt's size has it.
  config.prompt = "compact"  # compact (a small vocabulary of ours) | full (a chat model's)
  config.history_items = -1  # of the user, the last so many
  config.title_words = 0 if size in ("tiny", "small") else -1  # of a candidate's title, the first so many; 0: no title
  config.name_words = -1  # of a brand or a category, the first so many
  config.supporters = -1  # items of the history that speak for a candidate, at most
  config.evidence = True  # whether a prompt says what speaks for a candidate

  # Traces (rerank/reasoning.py): written from evidence, those of the run this one starts from, what a trained teacher
  # writes (training/sampled_traces.py), or files of JSON lines.
  config.traces = "template"  # template | start | sampled | FILE.jsonl[+FILE.jsonl]
  config.trace_model = ""  # sampled: the workdir of the teacher; "": that of the start
  config.trace_lists = 0  # sampled: training lists that are answered, drawn by the seed; 0: all
  config.trace_right = True  # sampled: only answers that put the target first are kept (GR2); False: all valid ones
  config.trace_tries, config.trace_temperature = 1, 0.0  # sampled: answers to a list at most; 0: the likeliest one
  config.examples = ""  # workdirs joined by +, whose examples are learned in place of any that would be made
  config.trace_scores = "trees"  # what a template ranks by: trees (boosted, on the evidence as worded) | evidence
  config.trace_moved = 3 if size in ("tiny", "small") else 0  # a template's ranking moves so many up; 0: by score
  # Share of the traces that leave the retriever's first candidate first, at most.
  config.trace_agreeing = 0.4 if size in ("small", "base") else 1.0
  config.least_reasoning = 100  # tokens
  # mid_training: shares of its examples (training/rerank_examples.py); text needs text_files.
  config.mixture = ml_collections.ConfigDict({"next_item": 0.1, "caption": 0.05, "lists": 0.85, "text": 0.0})
  # Share of the lists, and of the messages of sft and cft, in which the codes of each level are permuted: an ID is then
  # known from the message alone.
  config.permuted_codes = 0.0
  config.text_files = ()  # files of plain text, UTF-8

  # Model.
  config.start = "random"  # random | run (start_from) | pretrained
  config.start_from = ""  # the workdir of another run, of the same shop
  config.pretrained = ""  # a Hugging Face folder, such as Qwen3-8B's
  config.vocab_size = 1024  # sentencepiece pieces, at most
  # Width, layers, heads, heads of keys and values, width of the MLP: by the argument `size`.
  config.d_model, config.n_layers, config.n_heads, config.n_kv_heads, config.d_ff = SIZES[size]
  config.head_dim = 128 if size == "8b" else 0  # 0: d_model / n_heads
  config.qk_norm = True  # queries and keys are normalised per head (Qwen3)
  config.qkv_bias = False  # projections to queries, keys and values have biases (Qwen2)
  config.tie_embeddings = size != "8b"  # the token embeddings are the output head, too
  config.slot_embeddings = False  # of DocID canvases; False
  config.rope_theta = 1e6 if size == "8b" else 10_000.0  # base of the rotary position embedding
  config.remat = "none"  # none | dots | full
  config.param_dtype = "float32"  # float32 | bfloat16
  config.compute_dtype = "float32"  # float32 | bfloat16; softmax, logits and losses are float32 in any case
  config.lora_rank = 0  # of adapters (LoRA) beside frozen weights; 0: all weights are trained
  config.lora_alpha = 16.0  # adapters' outputs are multiplied by lora_alpha / lora_rank
  config.lora_targets = ("query", "value")  # some of query, key, value, out, gate, up, down
  config.attention = "auto"  # reference | splash (TPU) | flash (GPU, bfloat16) | auto
  config.alignment = "shifted"  # same_position | shifted: what a converted model reads a position from
  config.block_size = 32  # of a converted model

  # Objective. Parts of the assistant's message weigh apart (GR2: reasoning less than answer).
  config.reasoning_weight = 1.0  # of a token of the reasoning
  config.answer_weight = 1.0  # of a token of the ranking
  config.end_weight = 1.0  # of the end of the message
  # Of the labels by which a reasoning names candidates, times reasoning_weight; a full prompt has none.
  config.choice_weight = 10.0 if size in ("small", "base") else 1.0
  config.process = "exact_count"  # cft: random_time | exact_count (both the bound) | uniform_weight | all_masked
  config.schedule = "linear"  # linear | cosine
  config.suffix_fraction = 0.0  # cft: share of the blocks whose masks are their last targets
  config.antithetic = True  # cft: numbers of masks spread evenly over the blocks of a batch
  config.complementary = False  # cft: every block twice, with complementary masks
  config.whole_stream = False  # cft: x_t as long as x_0, which Splash asks for
  config.ce_chunk = 0  # vocabulary rows a chunk of the cross-entropy; 0: all logits at once

  # Rollouts (stages opd and rl); their rows are rollouts, `group` of each list.
  config.group = 4  # rollouts of a list
  config.rollout_temperature = 1.0  # of the draws; the policy sees the model's own distribution
  config.rollout_threshold = 0.9  # block: `threshold` of the policy, while training
  config.updates_per_rollout = 1  # optimizer steps on what was written with the same weights
  # Dynamic sampling: so many more rounds of rollouts, to replace groups that teach little. rl: those of equal reward
  # (DAPO); opd: those whose answers are all valid.
  config.refills = 0
  config.rollout_ahead = False  # writes the next round while this one is learned from: weights are a round older
  config.least_valid = 0.0  # the run ends where fewer rollouts are valid,
  config.least_entropy = 0.0  # or where a token's mean surprise, in nats, is less

  # On-policy distillation.
  config.teacher = ""  # the workdir of the frozen autoregressive teacher
  config.teacher_passes = 0  # of a rollout that are learned from: those that the teacher doubts most; 0: all
  config.teacher_temperature = 1.0  # of its distributions; under 1: sharper, as greedy decoding is
  config.teacher_slow = False  # the teacher is the start itself, one token a pass
  config.divergence = "forward_kl"  # forward_kl | reverse_kl | jsd | sampled (the policy gradient of reverse_kl)
  config.jsd_beta = 0.5  # jsd: the teacher's share of the mixture, between 0 and 1
  config.teacher_top_k = 0  # tokens of the teacher's distributions that are kept, the rest as one; 0: all

  # RL. rl also trains an autoregressive start.
  config.reward_alpha = 0.2  # of the format reward (rerank/reward.py)
  config.estimator = "replay"  # replay | mean_field | coupled | elbo | sandwiched (stages/replay.py)
  config.estimator_draws = 2  # elbo, sandwiched: canvases of a rollout
  config.spg_beta = 1.5  # sandwiched: the power of the upper bound
  config.spg_mix = 0.5  # and its share
  config.clip_low = 0.2  # a ratio counts down to 1 - clip_low
  config.clip_high = 0.28  # and up to 1 + clip_high (DAPO: more than down)
  config.aggregate = "token"  # token (DAPO) | sequence (GRPO) | constant (Dr. GRPO)
  config.scale_advantages = True  # by the deviation of a group's rewards; False: Dr. GRPO
  config.kl_weight = 0.0  # to the start

  # Rows and optimization.
  config.row_length = 416 if few else 576  # tokens of a packed row
  config.target_length = 192 if few else 256  # of them, tokens to be learned (cft: in their blocks)
  config.batch_size = 4  # rows of the global batch
  config.microbatches = 1  # parts whose gradients are accumulated
  config.steps = int(given.get("steps", 3000))  # of the optimizer
  # adamw | muon (the matrices inside the layers; the rest by AdamW), without which no small teacher copies well
  config.optimizer = "adamw" if size == "8b" else "muon"
  config.learning_rate = 3e-3  # the highest, behind the warm-up
  config.warmup_steps = min(100, config.steps // 10)  # steps in which the rate rises from 0
  config.lr_decay = "cosine"  # cosine | linear | constant
  config.final_lr_fraction = 0.05  # of learning_rate, at the last step (cosine and linear)
  config.b1 = 0.9  # AdamW: decay of the first moment
  config.b2 = 0.98  # AdamW: decay of the second moment
  config.weight_decay = 0.01  # decoupled, of kernels and embeddings
  config.clip_norm = 1.0  # largest norm of a step's gradient
  config.embedding_rate = 1.0  # share of the learning rate for the token embeddings; 0: they stay as they start

  # Devices: sizes of the mesh axes replica, data, fsdp, tensor, sequence; -1 is what is left.
  config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # sizes of its axes
  config.rules = TRAIN_RULES  # logical axis of a weight or an activation -> mesh axes, in training
  config.decode_rules = DECODE_RULES  # the same in decoding

  # Watching and keeping.
  config.log_every = 20  # steps between two lines of metrics.jsonl
  config.eval_every = 0  # valid lists are decoded; 0: never
  config.watch_lists = 64  # so many of them
  config.checkpoint_every = 200  # steps between two checkpoints; the last step has one in any case
  config.keep_checkpoints = 2  # the newest so many stay
  config.keep_every = 0  # checkpoints of every so many steps stay for good; 0: none
  config.keep_best = 0  # the best so many by best_metric stay; 0: none
  config.best_metric = "valid R@1"  # valid R@1 | valid NDCG@3

  # Decoding and evaluation.
  config.decoder = "auto"  # autoregressive | block | auto: what the stage trains
  config.max_new_tokens = 208 if few else 288  # of an answer; what has no end by then is truncated
  # block: which MASKs are committed (docs/decoding.md). A small student is valid where it leaves no gaps.
  config.policy = "threshold" if size == "8b" else "prefix"
  config.threshold = 0.9  # of the policies that have one
  config.decode_steps = 0  # block: passes a block, at most; 0: one a position
  config.temperature = 0.0  # 0: the most likely token
  config.eval_batch_size = 32  # rows that are decoded together
  config.eval_splits = ("valid", "test")  # some of valid, test
  config.eval_limit = 0  # lists of a split; 0: all
  config.invalid = "input_order"  # input_order | repair: what becomes of an invalid answer in the headline row
  return config, {name: given[name] for name in own if name in given}
