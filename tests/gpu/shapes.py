"""What ./dev gpu runs: cases, shapes, goals. Index [True] is the emulated dry run."""

# A base of a few thousand weights, for the emulation; its tokenizer is the demo's.
TINY_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
    "vocab_size": 1536, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "float32",
}


def tiny_tensors():
    """Names and shapes of its weights."""
    prefix, hidden, ffn = "model.layers.0.", 64, 128
    yield "model.embed_tokens.weight", (1536, hidden)
    yield "model.norm.weight", (hidden,)
    yield prefix + "input_layernorm.weight", (hidden,)
    yield prefix + "post_attention_layernorm.weight", (hidden,)
    for name, rows, columns in (("self_attn.q", hidden, hidden), ("self_attn.k", 32, hidden),
                                ("self_attn.v", 32, hidden), ("self_attn.o", hidden, hidden),
                                ("mlp.gate", ffn, hidden), ("mlp.up", ffn, hidden), ("mlp.down", hidden, ffn)):
        yield f"{prefix}{name}_proj.weight", (rows, columns)


# Of the kernel cases: words in their names.
EMULATED_CASES = "rmsnorm"
SANITIZED_CASES = ["h=4 g=2 d=32 starts=0,17,18,50,", "m=13 k=67 n=33 r=3 nf4 block=64 nested bias",
                   "rmsnorm m=5 dim=192", "sum_squares"]

# Our own products in place of cuBLASLt's; and what it answers said, a line for every shape.
OWN_PRODUCTS = ["env", "NIBBLE_CUDA_PRODUCTS=own"]
TOLD_PRODUCTS = ["env", "NIBBLE_CUDA_PRODUCTS=tell"]

# Attention by Hopper's warpgroup products: how it is asked for, and its cases.
WGMMA = ["env", "NIBBLE_CUDA_ATTENTION=wgmma"]
WGMMA_CASES = {False: "attention_", True: "h=2 g=1 d=64 starts=0,40,"}

# What nibble-model-parity compares: (name, flags).
MODEL_PARITY = {
    False: [("the demo's shape", ["--shape", "demo", "--seq", "128"]),
            ("a layer of SmolLM2-135M", ["--shape", "135m", "--layers", "1", "--seq", "64"])],
    True: [("the demo's shape, 1 layer", ["--shape", "demo", "--layers", "1", "--seq", "24", "--rank", "4"])],
}

# Of nibble-bench-cuda's lines: kernels bound by memory, and attention with its name in attention_peer.py. A linear
# layer of one row is not: eleven instructions decode and multiply a weight of half a byte (docs/performance.md).
MEMORY_BOUND = {"rmsnorm fwd", "rmsnorm bwd", "add", "rope", "embedding", "silu fwd", "silu bwd", "adamw", "adamw8",
                "sum squares", "to act", "decode"}
MEMORY_GOAL, DECODE_GOAL = 0.80, 0.85
ATTENTION = {"attention fwd": "forward_ms", "attention bwd": "backward_ms"}

PARITY_STEPS = {False: 10, True: 2}


def step(shape, seq, micro, steps, *more):
    return ["--shape", shape, "--seq", seq, "--micro-batch", micro, "--steps", steps, *more]


STEP_LIMIT_S = 75  # of a shape: context, base, steps; the 70B shape's base alone is 40 GB

NO_CACHE = ("--base-cache", "off")
AHEAD = ("--base-cache", "ahead")

# (name, flags of nibble-bench-step, behind an environment if need be, goal: at least so many tokens/s, at most so many GiB beside context and
# libraries, or what it is there for). The most telling first: time may run out.
STEPS = {
    False: [
        ("Llama-3.1-8B, 4x4096, full recomputation", step("8b", 4096, 4, 3), ("tokens/s", 10_800)),
        ("Llama-3.1-8B, 4x4096, full recomputation, attention by wgmma",
         [*WGMMA, *step("8b", 4096, 4, 3)], "above the same without"),
        ("Llama-3.1-8B, 4x4096, nothing recomputed", step("8b", 4096, 4, 3, "--checkpointing", 0),
         ("tokens/s", 15_000)),
        ("Llama-3.1-8B, 4x4096, half of the blocks recomputed", step("8b", 4096, 4, 3, "--keep-blocks", 15),
         "between the two"),
        ("Llama-3.1-8B, 4x4096, full recomputation, op by op", step("8b", 4096, 4, 1, "--ops", 1),
         "where a step's time goes"),
        ("Qwen3-0.6B, 2x2048", step("qwen3-0.6b", 2048, 2, 8), ("tokens/s", 60_000)),
        ("Qwen3-1.7B, 2x2048", step("qwen3-1.7b", 2048, 2, 6), ("tokens/s", 36_000)),
        ("Qwen3-4B, 2x2048", step("qwen3-4b", 2048, 2, 4), ("tokens/s", 17_000)),
        ("Qwen3-8B, 2x2048", step("qwen3-8b", 2048, 2, 3), ("tokens/s", 11_500)),
        ("Llama-3.1-8B, 1x2048, memory", step("8b", 2048, 1, 2, *NO_CACHE), ("GiB", 7.0)),
        ("Llama-3.1-8B, 2x2048, memory", step("8b", 2048, 2, 2, *NO_CACHE), ("GiB", 7.9)),
        ("Llama-3.1-8B, 2x2048, 8-bit AdamW, offload",
         step("8b", 2048, 2, 2, "--optimizer", "adamw8bit", "--offload", 1), ("GiB", 7.0)),
        ("Llama-3.1-8B, 2x2048, 8-bit AdamW", step("8b", 2048, 2, 2, "--optimizer", "adamw8bit", *NO_CACHE),
         "the same without offload: what it costs in time"),
        ("Llama-3.1-8B, 2x2048, paged AdamW", step("8b", 2048, 2, 2, "--paged", 1),
         "beside the unpaged: what it costs in time"),
        ("Qwen3-0.6B, 2x2048, without graphs", step("qwen3-0.6b", 2048, 2, 8, "--graphs", "off"), ""),
        ("Qwen3-0.6B, 2x2048, op by op", step("qwen3-0.6b", 2048, 2, 2, "--ops", 1), "where a step's time goes"),
        ("Llama-3.1-8B, 2x4096, NF4", step("8b", 4096, 2, 3), "beside the bf16 base"),
        ("Llama-3.1-8B, 2x4096, NF4 decoded in every product", step("8b", 4096, 2, 3, *NO_CACHE), ""),
        ("Llama-3.1-8B, 2x4096, NF4 decoded ahead of every product", step("8b", 4096, 2, 3, *AHEAD),
         "above decoded in every product"),
        ("Llama-3.1-8B, 2x4096, bf16 base", step("8b", 4096, 2, 3, "--quant", "bf16"), ""),
        ("Gemma-3-1B, 2x2048", step("gemma3-1b", 2048, 2, 4),
         "heads of 256, a window in five layers of six, 262,144 tokens in the vocabulary"),
        ("Gemma-3-1B, 2x2048, op by op", step("gemma3-1b", 2048, 2, 1, "--ops", 1), "where a step's time goes"),
        ("Phi-4-mini, 2x2048", step("phi4-mini", 2048, 2, 3),
         "q, k and v in one linear, gate and up in one; three quarters of a head turn"),
        ("Llama-3.1-70B, 1x2048, paged AdamW, offload",
         step("70b", 2048, 1, 1, "--paged", 1, "--offload", 1), ("GiB", 43.6e9 / 2**30)),
    ],
    True: [("demo shape, 1x32", step("demo", 32, 1, 1, "--layers", 1), ""),
           ("demo shape, 1x32, paged, offload",
            step("demo", 32, 1, 1, "--layers", 2, "--paged", 1, "--offload", 1, "--optimizer", "adamw8bit"),
            ""),
           ("demo shape, 1x32, op by op", step("demo", 32, 1, 1, "--layers", 1, "--ops", 1), "")],
}

# What is kept, moved, recomputed, recorded or waited for changes no bit: their gradient norms are equal, as far as both
# have steps. At these sizes copies take long enough to be overtaken.
SAME_BITS = {
    False: [("Llama-3.1-8B, 4x4096, full recomputation", "Llama-3.1-8B, 4x4096, nothing recomputed"),
            ("Llama-3.1-8B, 4x4096, full recomputation", "Llama-3.1-8B, 4x4096, half of the blocks recomputed"),
            ("Llama-3.1-8B, 4x4096, full recomputation", "Llama-3.1-8B, 4x4096, full recomputation, op by op"),
            ("Llama-3.1-8B, 2x2048, 8-bit AdamW", "Llama-3.1-8B, 2x2048, 8-bit AdamW, offload"),
            ("Llama-3.1-8B, 2x2048, memory", "Llama-3.1-8B, 2x2048, paged AdamW"),
            ("Qwen3-0.6B, 2x2048", "Qwen3-0.6B, 2x2048, op by op"),
            ("Llama-3.1-8B, 2x4096, NF4", "Llama-3.1-8B, 2x4096, NF4 decoded in every product"),
            ("Llama-3.1-8B, 2x4096, NF4", "Llama-3.1-8B, 2x4096, NF4 decoded ahead of every product"),
            ("Gemma-3-1B, 2x2048", "Gemma-3-1B, 2x2048, op by op")],
    True: [("demo shape, 1x32", "demo shape, 1x32, op by op")],
}

# NF4 is held against bf16 at the same shape.
NF4_AND_BF16 = ("Llama-3.1-8B, 2x4096, NF4", "Llama-3.1-8B, 2x4096, bf16 base", 0.95)

# An 8B model on a card of 15 GB (Tesla T4): fp16 with loss scaling, 200 examples, one epoch. The cap is the
# memory the plan is made for; what the driver reads is held against it.
SMALL_CARD_BYTES = {False: 15_000_000_000, True: 44_000_000}
SMALL_CARD = {
    False: step("8b", 2048, 1, 49, "--accumulation", 4, "--fp16", 1, "--recompute", "auto"),
    True: step("demo", 32, 1, 1, "--accumulation", 1, "--fp16", 1, "--recompute", "auto", "--layers", 1),
}

# Ten steps of the demo base, each with one thing otherwise: (name, environment, of the spec, behind the device).
# Asked when training is not right: what makes the difference is what is wrong.
VARIANTS = [
    ("as it was", [], {}, ""),
    ("our own products", OWN_PRODUCTS, {}, ""),
    ("without graphs", [], {"cuda_graphs": "off"}, ""),
    ("decoded in every product", [], {"base_cache": "off"}, ""),
    ("attention by wgmma", WGMMA, {}, ""),
    ("fp16", [], {}, ",fp16"),
    ("every launch waited for", ["env", "CUDA_LAUNCH_BLOCKING=1"], {"cuda_graphs": "off"}, ""),
]
