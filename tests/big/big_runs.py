#!/usr/bin/env python3
"""Large shapes through server, worker and engine on this machine: planned against used, to the byte.

    big_runs.py [SHAPE ...] [--steps N] [--memory GIB] [--holes] [--dir DIR]

SHAPE is one of 135m, 1b, 7b, 13b, 33b (default: 7b 13b). For each, a model of random weights is written as a
Hugging Face directory of bf16 shards, quantized by the engine to NF4, and trained for a few steps (r 16 on
all linears, 512 tokens, full recomputation). Printed: the plan, the engine process's peak (VmHWM, with the
mapped base) and what it had swapped. It is an error when the peak is above the plan, or when 7b needs 6 GB
or 13b 10 GB. --holes writes shards without bytes behind them (all weights zero): the memory is the same, and a
shape fits a small disk. Where disk or memory is short the shape is skipped with a sentence (exit code 77
when all were).
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import client  # noqa: E402
import stack as stack_module  # noqa: E402

GB = 1e9
# hidden, feed-forward, layers, heads, key/value heads, vocabulary, most bytes (0 = the plan's)
SHAPES = {
    "135m": (576, 1536, 30, 9, 3, 49152, 0),
    "1b": (2048, 5632, 22, 32, 4, 32000, 0),
    "7b": (4096, 11008, 32, 32, 32, 32000, 6e9),
    "13b": (5120, 13824, 40, 40, 40, 32000, 10e9),
    "33b": (6656, 17920, 60, 52, 52, 32000, 0),
}
SHARD_BYTES = 2_000_000_000


def tensors(shape):
    """(name, rows, columns or None) of a Llama model, in layer order."""
    hidden, ffn, layers, heads, kv_heads, vocab, _ = shape
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", vocab, hidden
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (("q", hidden, hidden), ("k", kv, hidden), ("v", kv, hidden),
                                    ("o", hidden, hidden)):
            yield f"{prefix}self_attn.{name}_proj.weight", rows, columns
        for name, rows, columns in (("gate", ffn, hidden), ("up", ffn, hidden), ("down", hidden, ffn)):
            yield f"{prefix}mlp.{name}_proj.weight", rows, columns
        yield prefix + "input_layernorm.weight", hidden, None
        yield prefix + "post_attention_layernorm.weight", hidden, None
    yield "model.norm.weight", hidden, None
    yield "lm_head.weight", vocab, hidden


def byte_tokenizer(entries):
    """A byte-level tokenizer of `entries`: 3 special tokens, 256 bytes, and pairs of what came before."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    vocab, merges, extra = {"<s>": 0, "</s>": 1, "<pad>": 2}, [], 256
    for byte in range(256):
        vocab[chr(byte) if byte in printable else chr(extra)] = 3 + byte
        extra += byte not in printable
    letters = list(vocab)[3:]
    for left in letters:
        for right in letters:
            if len(vocab) < entries:
                merges.append(f"{left} {right}")
                vocab[left + right] = len(vocab)
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": level,
            "decoder": level, "post_processor": None,
            "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                              "normalized": False, "special": True}
                             for i, text in enumerate(("<s>", "</s>", "<pad>"))],
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "ignore_merges": False, "vocab": vocab, "merges": merges}}


class Noise:
    """bf16 values of random sign and mantissa, 2^-7 to 2^-5 in size; one block, read at changing places."""

    def __init__(self, size=64 << 20):
        low = random.Random(1).randbytes(size // 2)
        signs = random.Random(2).randbytes(size // 2).translate(bytes([0x3C] * 128 + [0xBC] * 128))
        self.block = bytearray(size)
        self.block[0::2], self.block[1::2] = low, signs
        self.at = 0

    def write(self, out, size):
        self.at = (self.at + 2 * 7919 * 1009) % (len(self.block) // 2)
        at = self.at
        while size > 0:
            part = memoryview(self.block)[at:at + size]
            out.write(part)
            size -= len(part)
            at = 0


def write_shard(path, group, noise):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, rows, columns in group:
        size = 2 * rows * (columns or 1)
        header[name] = {"dtype": "BF16", "shape": [rows, columns] if columns else [rows],
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        if noise is None:
            out.truncate(8 + len(text) + offset)
            return
        for _, rows, columns in group:
            if columns:
                noise.write(out, 2 * rows * columns)
            else:
                out.write(b"\x80\x3f" * rows)  # ones


def write_model(directory, shape, holes):
    hidden, ffn, layers, heads, kv_heads, vocab, _ = shape
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0,
        "eos_token_id": 1, "hidden_act": "silu"}))
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer(vocab)))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}))
    groups, size = [[]], 0
    for tensor in tensors(shape):
        bytes_ = 2 * tensor[1] * (tensor[2] or 1)
        if size + bytes_ > SHARD_BYTES and groups[-1]:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += bytes_
    noise, where, total = None if holes else Noise(), {}, 0
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_shard(directory / name, group, noise)
        for tensor in group:
            where[tensor[0]] = name
            total += 2 * tensor[1] * (tensor[2] or 1)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": where}))


def status(pid, field):
    """A line of /proc/PID/status in bytes; 0 when the process has gone."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def available_memory():
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def weights_bytes(shape):
    return sum(2 * rows * (columns or 1) for _, rows, columns in tensors(shape))


def shortage(name, directory, memory, holes):
    """None, or why the shape cannot run here."""
    weights = weights_bytes(SHAPES[name])
    need = weights * 0.32 + 4 * GB + (0 if holes else weights)
    free = shutil.disk_usage(directory).free
    if free < need:
        return f"{need / GB:.0f} GB of disk are needed under {directory}, {free / GB:.0f} GB are free"
    needed = weights * 0.30 + 1.5 * GB
    if min(memory, available_memory()) < needed:
        return f"about {needed / GB:.0f} GB of memory are needed, {available_memory() / GB:.0f} GB are available"
    return None


def make_spec(pb, model, dataset, steps):
    spec = pb.job.JobSpec(base_model=model.name, dataset=dataset.name)
    spec.lora.r, spec.lora.alpha = 16, 32
    spec.data.format, spec.data.sequence_len, spec.data.val_set_size = "text", 512, 0
    spec.training.micro_batch_size, spec.training.gradient_accumulation_steps = 1, 1
    spec.training.recompute, spec.training.max_steps = "full", steps
    return spec


def run(name, directory, memory, steps, holes):
    shape = SHAPES[name]
    models = directory / "models"
    began = time.monotonic()
    write_model(models / name, shape, holes)
    print(f"{name}: {weights_bytes(shape) / GB:.1f} GB of bf16 shards written in {time.monotonic() - began:.0f} s",
          flush=True)
    binaries = stack_module.bin_dir()
    flags = ["--model-root", models, "--lease-seconds", "60"]
    with stack_module.Stack(binaries, server_flags=flags) as stack:
        stack.SERVER_FLAGS = []
        stack.root = directory / "run"
        stack.root.mkdir()
        stack.start_server()
        stack.workers["w1"] = stack._spawn("worker-w1.log", [
            stack.binaries / "nibble-worker", "--server", stack.address, "--data-dir", stack.root / "w1",
            "--worker-id", "w1", "--threads", os.cpu_count(), "--memory", str(int(memory)),
            "--shares-file-system"])
        api = stack.api()
        began = time.monotonic()
        model = api.models.RegisterModel(api.pb.model.RegisterModelRequest(path=name, display_name=name))
        print(f"{name}: registered in {time.monotonic() - began:.0f} s", flush=True)
        rows = b"".join(json.dumps({"text": f"row {i} " + "abc def ghi " * 70}).encode() + b"\n"
                        for i in range(2 * steps + 2))
        began = time.monotonic()
        spec = make_spec(api.pb, model, api.add_dataset(rows), steps)
        job = stack_module.submit(api, spec)
        peak, swapped, shown = 0, 0, 0
        while api.state(job) not in client.TERMINAL:
            for pid in stack.engines("w1"):
                peak = max(peak, status(pid, "VmHWM"))
                swapped = max(swapped, status(pid, "VmSwap"))
            job = api.get(job.name)
            for step, loss, *_ in api.metrics(job.name)[shown:]:
                shown += 1
                print(f"{name}: step {step} loss {loss:.4f} planned {job.plan.total_bytes} used "
                      f"{job.used_bytes} VmHWM {peak} swapped {swapped} after {time.monotonic() - began:.0f} s",
                      flush=True)
            time.sleep(0.2)
        assert api.state(job) == "SUCCEEDED", job.error
        planned = job.plan.total_bytes
        print(f"{name}: planned {planned} bytes, used {job.used_bytes}, process peak {peak} "
              f"({(planned - peak) / (1 << 20):.1f} MiB below the plan), swapped {swapped}; {steps} steps and "
              f"quantization in {time.monotonic() - began:.0f} s", flush=True)
        assert 0 < peak <= planned, "the plan was exceeded"
        assert planned - peak <= 64 << 20, "the plan is more than 64 MiB above the peak"
        assert swapped == 0, "the engine was swapped"
        limit = shape[-1]
        assert limit == 0 or planned < limit, f"{name} must run below {limit / GB:.0f} GB"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=[], metavar="SHAPE")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--memory", type=float, default=0, help="GiB the worker offers; default: what there is")
    parser.add_argument("--holes", action="store_true")
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp/nibble-big"))
    args = parser.parse_args()
    if client.missing() or stack_module.bin_dir() is None:
        print(f"skipped: {client.missing() or 'the binaries are not built'}")
        return 77
    memory = args.memory * (1 << 30) or available_memory() - (1 << 30)
    ran = failed = 0
    for name in args.shapes or ["7b", "13b"]:
        if name not in SHAPES:
            parser.error(f"there is no shape {name}; there are {', '.join(SHAPES)}")
        directory = args.dir / name
        shutil.rmtree(directory, ignore_errors=True)
        args.dir.mkdir(parents=True, exist_ok=True)
        why = shortage(name, args.dir, memory, args.holes)
        if why:
            print(f"{name} skipped: {why}")
            continue
        try:
            run(name, directory, memory, args.steps, args.holes)
        except AssertionError as error:
            print(f"{name}: {error}")
            failed += 1
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        ran += 1
    return 1 if failed else 0 if ran else 77


if __name__ == "__main__":
    sys.exit(main())
