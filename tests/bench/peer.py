#!/usr/bin/env python3
"""The peer: PyTorch + transformers + PEFT + bitsandbytes doing the same training steps on the CPU.

Prints one JSON object: versions, threads, tokens per second, peak resident memory of the steps, losses. The
model has a named shape and seeded random weights; --export writes it as a Hugging Face directory, and the
tokens as rows of {"input_ids": [...]}, so that nibble-bench-step can run the very same thing.

    peer.py --shape 135m --seq 512 --steps 3 --threads 2 [--export DIR] [--layers N]
"""

import argparse
import ctypes
import gc
import json
import os
import pathlib
import time

SHAPES = {
    # hidden, ffn, layers, heads, kv heads, vocabulary, tied (SmolLM2-135M, TinyLlama-1.1B, Llama-2-7B)
    "demo": (192, 512, 4, 6, 2, 1024, True),
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "1.1b": (2048, 5632, 22, 32, 4, 32000, False),
    "7b": (4096, 11008, 32, 32, 32, 32000, False),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the shape has")
    parser.add_argument("--seq", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--compute", choices=["auto", "bfloat16", "float32"], default="auto",
                        help="what it multiplies in; auto is what PyTorch is faster in on this processor")
    parser.add_argument("--export", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


def make_model(args, transformers, torch):
    hidden, ffn, layers, heads, kv_heads, vocab, tied = SHAPES[args.shape]
    config = transformers.LlamaConfig(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=args.layers or layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=vocab,
        tie_word_embeddings=tied, max_position_embeddings=4096, rms_norm_eps=1e-5,
        rope_theta=10000.0, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(args.seed)
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    return model


def compute_dtype(asked, torch):
    """Where oneDNN has no products of bf16 (it wants AVX-512 or AMX) PyTorch multiplies bf16 with loops of its
    own, many times slower than fp32; a user of such a processor would train in fp32, so the peer does."""
    if asked == "auto":
        asked = "bfloat16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
    return getattr(torch, asked)


def quantize(model, dtype, bitsandbytes, torch):
    """Every linear of the layers becomes NF4 with double quantization, one at a time; what stays as it is
    becomes `dtype`, its values unchanged."""
    for module in model.model.layers.modules():
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            linear = bitsandbytes.nn.Linear4bit(
                child.in_features, child.out_features, bias=False, compute_dtype=dtype,
                compress_statistics=True, quant_type="nf4")
            linear.weight = bitsandbytes.nn.Params4bit(
                child.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True)
            setattr(module, name, linear.to("cpu"))
    for module in model.modules():
        if not isinstance(module, bitsandbytes.nn.Linear4bit):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


def forget_peak():
    """What it took to make the weights in 16 bits is not the training's: real ones are quantized as they are
    read. Freed memory goes back to the system and the high-water mark starts again (proc(5), clear_refs)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes():
    for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def main():
    args = parse()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import bitsandbytes
    import peft
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    model = make_model(args, transformers, torch)
    generator = torch.Generator().manual_seed(args.seed)
    rows = torch.randint(3, model.config.vocab_size, (args.steps + 1, args.micro_batch, args.seq),
                         generator=generator)
    if args.export:
        args.export.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(args.export)
        with open(args.export / "tokens.jsonl", "w", encoding="utf-8") as out:
            for row in rows.reshape(-1, args.seq).tolist():
                out.write(json.dumps({"input_ids": row}) + "\n")
    dtype = compute_dtype(args.compute, torch)
    quantize(model, dtype, bitsandbytes, torch)
    forget_peak()
    for parameter in model.parameters():
        parameter.requires_grad = False
    if not args.no_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = peft.get_peft_model(model, peft.LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, bias="none",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate, weight_decay=0.0)
    losses, times, processor_times = [], [], []
    for step in range(args.steps + 1):  # the first is the warm-up
        began, processor_began = time.perf_counter(), time.process_time()
        loss = model(input_ids=rows[step], labels=rows[step]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - began)
        processor_times.append(time.process_time() - processor_began)
        losses.append(float(loss))
    median = sorted(times[1:])[len(times[1:]) // 2]
    print(json.dumps({
        "peer": f"torch {torch.__version__}, transformers {transformers.__version__}, "
                f"peft {peft.__version__}, bitsandbytes {bitsandbytes.__version__}",
        "shape": args.shape, "layers": model.config.num_hidden_layers, "threads": args.threads,
        "sequence_len": args.seq, "micro_batch_size": args.micro_batch,
        "gradient_checkpointing": not args.no_checkpointing, "compute": str(dtype).removeprefix("torch."),
        "tokens_per_second": args.micro_batch * args.seq / median,
        "step_seconds": times, "step_processor_seconds": processor_times, "losses": losses,
        "peak_rss_bytes": peak_bytes(),
    }))


if __name__ == "__main__":
    main()
