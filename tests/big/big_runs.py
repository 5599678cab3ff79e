#!/usr/bin/env python3
"""Large shapes through server, worker and engine on this machine: planned against used, to the byte.

    big_runs.py [SHAPE ...] [--steps N] [--memory GIB] [--dir DIR]

SHAPE is one of 135m, 1b, 7b, 13b, 33b (default: 7b 13b). For each, a model of random weights is made in
Hugging Face layout, one shard of bf16 at a time, each quantized to NF4 and given back to the disk before the
next (make_base.cc), and trained for a few steps (r 16 on all linears, 512 tokens, full recomputation).
Printed: the plan, what each step used, the engine process's peak (VmHWM, with the mapped base) and what it
had swapped. It is an error when the peak is above the plan or more than 64 MiB below it, or when 7b needs
6 GB or 13b 10 GB. A shape whose plan does not fit what is available, or that the disk has no room for, is
skipped with a sentence (exit code 77 when all were). The logs of a run that failed stay.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
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


def linear_weights(shape):
    hidden, ffn, layers, heads, kv_heads, _, _ = shape
    kv = hidden // heads * kv_heads
    return layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)


def base_bytes(shape):
    """About; the plan has it to the byte."""
    hidden, vocab = shape[0], shape[5]
    return linear_weights(shape) * 4.13 / 8 + 2 * 2 * vocab * hidden


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


def config(shape):
    hidden, ffn, layers, heads, kv_heads, vocab, _ = shape
    return json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 0,
        "eos_token_id": 1, "hidden_act": "silu"})


def make_base(binaries, directory, cache, shape, out=None):
    """The model's directory, and its quantized base in the worker's cache."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(config(shape))
    (directory / "tokenizer.json").write_text(json.dumps(byte_tokenizer(shape[5])))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}))
    subprocess.run([binaries / "nibble-make-base", "--model-dir", directory, "--cache-dir", cache,
                    "--shard-bytes", str(SHARD_BYTES), "--threads", str(os.cpu_count())],
                   check=True, stdout=out)


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


def disk_shortage(shape, directory):
    """None, or why the shape cannot be made here."""
    need = base_bytes(shape) + SHARD_BYTES + 3 * GB
    free = shutil.disk_usage(directory).free
    if free < need:
        return f"{need / GB:.0f} GB of disk are needed under {directory}, {free / GB:.0f} GB are free"
    return None


def make_spec(pb, steps):
    spec = pb.job.JobSpec()
    spec.lora.r, spec.lora.alpha = 16, 32
    spec.data.format, spec.data.sequence_len, spec.data.val_set_size = "text", 512, 0
    spec.data.excess_length_strategy = "truncate"
    spec.training.micro_batch_size, spec.training.gradient_accumulation_steps = 1, 1
    spec.training.recompute, spec.training.max_steps = "full", steps
    return spec


def planned_fit(api, shape, steps):
    """What the server says of the worker: (verdict, total bytes, bytes missing)."""
    def fits():
        plan = api.jobs.PlanJob(api.pb.job.PlanJobRequest(
            spec=make_spec(api.pb, steps), model_config_json=config(shape)))
        return [fit for fit in plan.fits if fit.worker == "workers/w1"]

    fit = stack_module.wait_for("the worker", fits)[0]
    verdict = api.pb.job.DeviceFit.Verdict.Name(fit.verdict)
    return verdict, fit.plan.total_bytes, fit.shortfall_bytes


def train(name, api, stack, dataset, model, steps):
    """Runs the job to its end, a line per step; returns (job, peak, swapped, seconds)."""
    spec = make_spec(api.pb, steps)
    spec.base_model, spec.dataset = model.name, dataset.name
    began = time.monotonic()
    job = stack_module.submit(api, spec)
    peak, swapped, shown = 0, 0, 0
    while api.state(job) not in client.TERMINAL:
        for pid in stack.engines("w1"):
            peak = max(peak, status(pid, "VmHWM"))
            swapped = max(swapped, status(pid, "VmSwap"))
        job = api.get(job.name)
        for step, loss, *_ in api.metrics(job.name)[shown:]:
            shown += 1
            print(f"{name}: step {step} loss {loss:.4f} planned {job.plan.total_bytes} used {job.used_bytes} "
                  f"VmHWM {peak} swapped {swapped} after {time.monotonic() - began:.0f} s", flush=True)
        time.sleep(0.2)
    return job, peak, swapped, time.monotonic() - began


def run(name, directory, memory, steps):
    """True when it ran, False when its plan does not fit."""
    shape = SHAPES[name]
    binaries = stack_module.bin_dir()
    flags = ["--model-root", directory / "models", "--lease-seconds", "60"]
    (directory / "models").mkdir(parents=True)
    with stack_module.Stack(binaries, server_flags=flags) as stack:
        stack.SERVER_FLAGS = []
        shutil.rmtree(stack.root)
        stack.root = directory / "run"
        stack.root.mkdir()
        stack.start_server()
        stack.workers["w1"] = stack._spawn("worker-w1.log", [
            stack.binaries / "nibble-worker", "--server", stack.address, "--data-dir", stack.root / "w1",
            "--worker-id", "w1", "--threads", os.cpu_count(), "--memory", str(int(memory)),
            "--shares-file-system"])
        api = stack.api()
        verdict, total, short = planned_fit(api, shape, steps)
        if verdict != "FITS_NOW":
            print(f"{name} skipped: its plan is {total / GB:.2f} GB, {short / GB:.2f} GB more than the "
                  f"{memory / GB:.2f} GB there are")
            return False
        began = time.monotonic()
        make_base(binaries, directory / "models" / name, stack.root / "w1/cache/base", shape)
        print(f"{name}: made and quantized, shard by shard, in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        model = api.models.RegisterModel(api.pb.model.RegisterModelRequest(path=name, display_name=name))
        print(f"{name}: registered in {time.monotonic() - began:.0f} s", flush=True)
        # Longer than 512 tokens, and cut: full batches touch all that was planned.
        rows = b"".join(json.dumps({"text": f"row {i} " + "abc def ghi " * 200}).encode() + b"\n"
                        for i in range(2 * steps + 2))
        job, peak, swapped, seconds = train(name, api, stack, api.add_dataset(rows), model, steps)
        assert api.state(job) == "SUCCEEDED", job.error
        planned = job.plan.total_bytes
        print(f"{name}: planned {planned} bytes, used {job.used_bytes}, process peak {peak} "
              f"({(planned - peak) / (1 << 20):.1f} MiB below the plan), swapped {swapped}; {steps} steps "
              f"and loading in {seconds:.0f} s", flush=True)
        assert planned == total, f"the job was planned with {planned} bytes, before it with {total}"
        assert 0 < peak <= planned, "the plan was exceeded"
        assert planned - peak <= 64 << 20, "the plan is more than 64 MiB above the peak"
        assert swapped == 0, "the engine was swapped"
        limit = shape[-1]
        assert limit == 0 or peak < limit, f"{name} must run below {limit / GB:.0f} GB"
        return True


def keep_logs(directory):
    """Leaves of a run that failed what says why, and frees the disk of the rest."""
    shutil.rmtree(directory / "models", ignore_errors=True)
    shutil.rmtree(directory / "run/w1/cache", ignore_errors=True)
    print(f"the logs are under {directory / 'run'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shapes", nargs="*", default=[], metavar="SHAPE")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--memory", type=float, default=0, help="GiB the worker offers; default: what there is")
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
        why = disk_shortage(SHAPES[name], args.dir)
        if why:
            print(f"{name} skipped: {why}")
            continue
        try:
            ran += run(name, directory, memory, args.steps)
            shutil.rmtree(directory, ignore_errors=True)
        except (AssertionError, subprocess.CalledProcessError) as error:
            print(f"{name}: {error}")
            keep_logs(directory)
            failed += 1
    return 1 if failed else 0 if ran else 77


if __name__ == "__main__":
    sys.exit(main())
