#!/usr/bin/env python3
"""A plan's total against the peak of the process that ran it: never under, at most 64 MiB over.

    peak_test.py BIN_DIR

Engines of their own process train a few steps at several shapes, sizes of tokenizer and of data set, alone and
together on one base. The peak is VmHWM, with the mapped base; the plan is the engine's, the same that admits
jobs. Batches are full, as planned: rows are as long as sequence_len.
"""

import json
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "bench"))
import shared  # noqa: E402

MIB = 1 << 20
# name: (hidden, feed-forward, layers, heads, key/value heads, vocabulary), [(rows, tokens a row, changes), ...]
CASES = {
    "tiny": ((64, 172, 2, 4, 2, 512), [(200, 256, {})]),
    "large vocabulary": ((64, 172, 2, 4, 2, 40_000), [(50, 128, {})]),
    "wide": ((512, 1408, 4, 8, 4, 4096), [(60, 512, {"lora_r": 64, "recompute": "none"})]),
    "many rows, packed": ((64, 172, 1, 4, 2, 512), [(250_000, 8, {})]),
    "five on one base": ((256, 688, 4, 8, 4, 32_000), [
        (100, 256, {}), (100, 128, {"lora_r": 64}), (100, 384, {"optimizer": "adamw8bit"}),
        (70_000, 16, {"micro_batch_size": 4}), (100, 512, {"target_modules": ["q_proj", "v_proj"]})]),
    "large tensors": ((2048, 5632, 2, 16, 16, 32_000), [(20, 256, {})]),
}
# Those whose engine quantizes the base itself, from shards of zeros, instead of finding it in its cache.
QUANTIZED = {"wide", "large tensors"}


def write_rows(path, rows, tokens):
    # The tokenizer is one of bytes and pairs: so many letters are at least so many tokens, cut to length.
    letters = "".join(chr(97 + (7 * i) % 26) for i in range(2 * tokens))
    with open(path, "w", encoding="utf-8") as out:
        for i in range(rows):
            out.write(json.dumps({"text": f"{i} {letters}"}) + "\n")


def spec(rows, tokens, changes):
    return {"lora_r": 8, "sequence_len": max(tokens, 16), "gradient_accumulation_steps": 1, "micro_batch_size": 1,
            "max_steps": 3, "format": "text", "val_set_size": 0, "recompute": "full", "save_interval_seconds": 0,
            "excess_length": "truncate", "data_rows": rows} | changes


def run(binaries, name, directory):
    shape, jobs = CASES[name]
    shared.big_runs.make_base(binaries, directory / "model", directory / "cache", (*shape, 0), sys.stderr)
    # The shards that make_base leaves are holes; an empty cache makes the engine read them.
    cache = directory / ("empty" if name in QUANTIZED else "cache")
    engine = shared.Engine(binaries, directory / "model", cache, 2)
    for number, (rows, tokens, changes) in enumerate(jobs):
        data = directory / f"rows{number}.jsonl"
        write_rows(data, rows, tokens)
        engine.attach(f"job{number}", directory / f"job{number}", spec(rows, tokens, changes), data)
    engine.wait(len(jobs))
    over = engine.planned() - engine.peak
    engine.close()
    right = 0 <= over <= 64 * MIB
    print(f"{name}: planned {engine.planned() / MIB:.1f} MiB, peak {engine.peak / MIB:.1f} MiB, "
          f"{over / MIB:.1f} MiB below{'' if right else ': WRONG'}", flush=True)
    return right


def main():
    binaries, right = pathlib.Path(sys.argv[1]), True
    for name in CASES:
        directory = pathlib.Path(tempfile.mkdtemp(prefix="nibble-peak-"))
        try:
            right = run(binaries, name, directory) and right
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
