#!/usr/bin/env python3
"""bf16 LoRA of the same shapes under transformers and PEFT: tokens per second and gradient norms.

Prints a JSON line after each shape, the last with all; {"skipped": why} when something it needs is not installed.
Random weights.
"""

import importlib.util
import json
import time

SHAPES = {  # hidden, ffn, layers, heads, kv heads, vocabulary
    "Qwen3-0.6B, 2x2048": (1024, 3072, 28, 16, 8, 151936, 2, 2048),
    "Llama-3.1-8B, 1x4096": (4096, 14336, 32, 32, 8, 128256, 1, 4096),
}
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measure(shape):
    """Median tokens/s of four steps after two, and the norms."""
    import peft
    import torch
    import transformers

    hidden, ffn, layers, heads, kv_heads, vocabulary, rows, length = shape
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=vocabulary, max_position_embeddings=length,
        head_dim=128, use_cache=False)
    torch.set_default_dtype(torch.bfloat16)  # releases differ in how from_config is told
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    torch.set_default_dtype(torch.float32)
    model.to(torch.bfloat16)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=MODULES))
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)
    ids = torch.randint(0, vocabulary, (rows, length), device="cuda")
    seconds, norms = [], []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.monotonic()
        model(input_ids=ids, labels=ids).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.monotonic() - began)
    timed = sorted(seconds[2:])
    return {"tokens_per_second": rows * length / timed[len(timed) // 2], "grad_norms": norms,
            "peak_bytes": torch.cuda.max_memory_allocated(), "torch": torch.__version__,
            "transformers": transformers.__version__, "peft": peft.__version__}


def main():
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        print(json.dumps({"skipped": "not installed here: " + ", ".join(missing)}))
        return
    result = {}
    for name, shape in SHAPES.items():
        try:
            result[name] = measure(shape)
        except Exception as why:  # another library's trouble is a result, too
            result[name] = {"failed": f"{type(why).__name__}: {why}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
