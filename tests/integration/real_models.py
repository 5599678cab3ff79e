#!/usr/bin/env python3
"""Every pretrained checkpoint of the test data, fine-tuned through the server on a real data set.

    real_models.py [--steps N]

Training and held-out loss must both fall. Needs NIBBLE_TEST_DATA; exits 77 with a sentence without it.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

import client
import stack as stack_module


def shakespeare(data):
    """Plain text cut into rows of about 200 characters; the last tenth is held out."""
    text = (data / "datasets/tinyshakespeare/input.txt").read_text()
    pieces = [text[at:at + 200] for at in range(0, len(text), 200)]
    rows = [json.dumps({"text": piece}).encode() + b"\n" for piece in pieces]
    split = len(rows) * 9 // 10
    return b"".join(rows[:split]), b"".join(rows[split:split + 150])


def wikisql(data):
    folder = data / "datasets/wikisql-mlx"
    return (folder / "train.jsonl").read_bytes(), (folder / "valid.jsonl").read_bytes()


def alpaca(data):
    lines = (data / "datasets/alpaca-demo/alpaca_en_demo.jsonl").read_bytes().splitlines(keepends=True)
    return b"".join(lines[100:]), b"".join(lines[:100])


# model, data set, tokens a sequence. babyllama reads single characters, so its 256 positions hold about one row.
CASES = (
    ("stories260K", alpaca, 512),
    ("stories260K-bf16-sharded", wikisql, 256),
    ("babyllama-105", shakespeare, 256),
)
LEARNING_RATE = 1e-2


def make_spec(pb, model, train, held_out, length, steps):
    spec = pb.job.JobSpec(base_model=model.name, dataset=train.name, eval_dataset=held_out.name)
    spec.lora.r, spec.lora.alpha, spec.lora.dropout = 8, 16, 0
    spec.data.sequence_len = length
    spec.optimizer.learning_rate, spec.optimizer.warmup_steps = LEARNING_RATE, steps // 10
    spec.training.micro_batch_size, spec.training.gradient_accumulation_steps = 8, 1
    spec.training.max_steps, spec.training.eval_steps = steps, steps
    return spec


def fine_tune(api, folder, train, held_out, length, steps):
    model = api.add_model(folder)
    spec = make_spec(api.pb, model, api.add_dataset(train), api.add_dataset(held_out), length, steps)
    began = time.monotonic()
    done = api.wait(stack_module.submit(api, spec).name, timeout=500)
    assert api.state(done) == "SUCCEEDED", (folder.name, done.error)
    losses = [loss for _, loss, *_ in api.metrics(done.name)]
    assert len(losses) == steps, (folder.name, len(losses))
    points = api.jobs.QueryMetrics(api.pb.job.QueryMetricsRequest(
        name=done.name, max_points=1_000_000)).points
    evaluations = [p.eval_loss for p in points if p.HasField("eval_loss")]
    window = max(3, steps // 10)
    first, last = statistics.mean(losses[:window]), statistics.mean(losses[-window:])
    print(f"{folder.name}: loss {first:.3f} to {last:.3f}, held-out {evaluations[0]:.3f} to "
          f"{evaluations[-1]:.3f}, {steps} steps of {8 * length} tokens in "
          f"{time.monotonic() - began:.0f} s, planned {done.plan.total_bytes}, used {done.used_bytes} bytes",
          flush=True)
    assert last < 0.9 * first, (folder.name, first, last)
    assert evaluations[-1] < 0.9 * evaluations[0], (folder.name, evaluations)
    # A sanitizer, with which everybody has to be patient, has memory of its own that no plan knows.
    assert client.PATIENCE > 1 or done.used_bytes <= done.plan.total_bytes, folder.name


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    if client.missing():
        print(f"skipped: {client.missing()}")
        return 77
    if "NIBBLE_TEST_DATA" not in os.environ:
        print("skipped: NIBBLE_TEST_DATA names no folder of real models and data sets")
        return 77
    binaries = stack_module.bin_dir()
    if binaries is None:
        return 77
    data = pathlib.Path(os.environ["NIBBLE_TEST_DATA"])
    with stack_module.Stack(binaries) as stack:
        stack.start_server().start_worker(threads=2)
        api = stack.api()
        for name, rows, length in CASES:
            fine_tune(api, data / "models" / name, *rows(data), length, steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
