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
SANITIZED_CASES = ["rmsnorm_forward", "sum_squares", "add "]

PARITY_STEPS = {False: 10, True: 2}


def step(shape, seq, micro, steps, *more):
    return ["--shape", shape, "--seq", seq, "--micro-batch", micro, "--steps", steps, *more]


NO_CACHE = ("--base-cache", "off")

# (name, flags of nibble-bench-step, goal). The most telling first: time may run out.
STEPS = {
    False: [
        ("Llama-3.1-8B, 4x4096, full recomputation", step("8b", 4096, 4, 3), "10,800 tokens/s"),
        ("Llama-3.1-8B, 4x4096, nothing recomputed", step("8b", 4096, 4, 3, "--checkpointing", 0),
         "15,000 tokens/s"),
        ("Qwen3-0.6B, 2x2048", step("qwen3-0.6b", 2048, 2, 8), "60,000 tokens/s"),
        ("Qwen3-1.7B, 2x2048", step("qwen3-1.7b", 2048, 2, 6), "36,000 tokens/s"),
        ("Qwen3-4B, 2x2048", step("qwen3-4b", 2048, 2, 4), "17,000 tokens/s"),
        ("Qwen3-8B, 2x2048", step("qwen3-8b", 2048, 2, 3), "11,500 tokens/s"),
        ("Llama-3.1-8B, 1x2048, memory", step("8b", 2048, 1, 2, *NO_CACHE), "7.0 GiB and the context"),
        ("Llama-3.1-8B, 2x2048, memory", step("8b", 2048, 2, 2, *NO_CACHE), "7.9 GiB and the context"),
        ("Llama-3.1-8B, 2x2048, 8-bit AdamW, offload",
         step("8b", 2048, 2, 2, "--optimizer", "adamw8bit", "--offload", 1), "7.0 GiB and the context"),
        ("Llama-3.1-8B, 2x2048, 8-bit AdamW", step("8b", 2048, 2, 2, "--optimizer", "adamw8bit", *NO_CACHE),
         "the same without offload: what it costs in time"),
        ("Llama-3.1-8B, 2x2048, paged AdamW", step("8b", 2048, 2, 2, "--paged", 1),
         "beside the unpaged: what it costs in time"),
        ("Qwen3-0.6B, 2x2048, without graphs", step("qwen3-0.6b", 2048, 2, 8, "--graphs", "off"), ""),
        ("Llama-3.1-8B, 2x4096, NF4", step("8b", 4096, 2, 3), "95 % of bf16 LoRA"),
        ("Llama-3.1-8B, 2x4096, NF4 decoded in every product", step("8b", 4096, 2, 3, *NO_CACHE), ""),
        ("Llama-3.1-8B, 2x4096, bf16 base", step("8b", 4096, 2, 3, "--quant", "bf16"), ""),
        ("Llama-3.1-70B, 1x2048, paged AdamW, offload",
         step("70b", 2048, 1, 1, "--paged", 1, "--offload", 1), "43.6 GB and the context"),
    ],
    True: [("demo shape, 1x32", step("demo", 32, 1, 1, "--layers", 1), ""),
           ("demo shape, 1x32, paged, offload",
            step("demo", 32, 1, 1, "--layers", 2, "--paged", 1, "--offload", 1, "--optimizer", "adamw8bit"),
            "")],
}

# An 8B model on a card of 15 GB (Tesla T4): fp16 with loss scaling, 200 examples, one epoch. The cap is the
# memory the plan is made for; what the driver reads is held against it.
SMALL_CARD_BYTES = {False: 15_000_000_000, True: 40_000_000}
SMALL_CARD = {
    False: step("8b", 2048, 1, 49, "--accumulation", 4, "--fp16", 1, "--recompute", "auto"),
    True: step("demo", 32, 1, 1, "--accumulation", 1, "--fp16", 1, "--recompute", "auto", "--layers", 1),
}
