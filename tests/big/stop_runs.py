#!/usr/bin/env python3
"""How long a large job takes to let go in the middle of a step: pause, cancel, and the end of its worker.

    stop_runs.py [--layers N] [--rank R] [--accumulation N] [--dir DIR] [--keep]

The shape is that of a 7B model with N of its 32 layers, and r as many times larger, so that a checkpoint has
the bytes of that of the whole model at r 16 (8 layers at r 64: 480 MB). A step is several micro-batches of
512 tokens, so that it takes far longer than letting go should. Each request comes in the middle of a step.
Printed are the times from it until the step was given up, the checkpoint was on the worker's disk, the engine
had let go, and the server knew. It is an error when a finished step is lost. Weights are random.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "integration"))
import big_runs  # noqa: E402
import client  # noqa: E402
import stack as stack_module  # noqa: E402

PATIENCE_S = 900


def log_time(stack, event, since):
    """When the engine first logged that event after `since`; None when it has not."""
    for line in (stack.root / "w1/log/engine-cpu0.log").read_text(errors="replace").splitlines():
        words = line.split()
        if event not in words:
            continue
        at = datetime.datetime.strptime(words[0], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
        if at >= since - 0.001:  # it says milliseconds
            return at
    return None


def resident(stack):
    return sum(big_runs.status(pid, "RssAnon") for pid in stack.engines("w1"))


class Run:
    def __init__(self, stack, args):
        self.stack, self.args = stack, args
        stack.start_server()
        self.api = stack.api()
        self.start_worker()
        self.state_bytes = 0  # of a checkpoint
        self.step_s = 0

    def start_worker(self):
        self.stack.workers["w1"] = self.stack._spawn("worker-w1.log", [
            self.stack.binaries / "nibble-worker", "--server", self.stack.address, "--data-dir",
            self.stack.root / "w1", "--worker-id", "w1", "--threads", os.cpu_count(), "--memory",
            str(big_runs.available_memory() - (1 << 30)), *self.args.worker_flags])

    def submit(self, model):
        rows = b"".join(json.dumps({"text": f"row {i} " + "abc def ghi " * 200}).encode() + b"\n"
                        for i in range(64))
        spec = big_runs.make_spec(self.api.pb, 1000)
        spec.lora.r, spec.lora.alpha = self.args.rank, 2 * self.args.rank
        spec.training.gradient_accumulation_steps = self.args.accumulation
        spec.training.save_interval_seconds = 0
        spec.base_model, spec.dataset = model.name, self.api.add_dataset(rows).name
        return stack_module.submit(self.api, spec).name

    def step(self, job):
        return self.api.get(job).progress.completed_steps

    def wait_for_step(self, job):
        before = self.step(job)
        stack_module.wait_for("a step", lambda: self.step(job) > before, PATIENCE_S)
        return time.monotonic()

    def reserved(self):
        workers = self.api.fleet.ListWorkers(self.api.pb.fleet.ListWorkersRequest()).workers
        return sum(device.reserved_bytes for worker in workers for device in worker.devices)

    def measure(self, what, job, ask, over):
        """Asks in the middle of a step; over() says when all is done."""
        self.wait_for_step(job)
        step = self.step(job)
        time.sleep(self.step_s / 2)
        held = resident(self.stack)
        began, at = time.time(), {}
        ask()
        while "over" not in at:
            now = time.time()
            if "memory given back" not in at and resident(self.stack) < held - 0.9 * self.state_bytes:
                at["memory given back"] = now
            if "bytes free for others" not in at and self.reserved() == 0:
                at["bytes free for others"] = now
            if over():
                at["over"] = now
            assert now - began < PATIENCE_S, f"{what} did not end"
            time.sleep(0.01)
        for key, event in (("step given up", "turn.given_up"), ("checkpoint on disk", "checkpoint.saved"),
                           ("engine let go", "job.detached")):
            at[key] = log_time(self.stack, event, began)
        times = ", ".join(f"{key} {t - began:.2f}" for key, t in sorted(
            ((k, t) for k, t in at.items() if t), key=lambda item: item[1]))
        print(f"{what}: {times} s; {self.step(job)} steps kept of {step}", flush=True)
        assert self.step(job) == step, f"step {step} was lost"


def run(stack, args, directory):
    run = Run(stack, args)
    api, pb = run.api, run.api.pb.job
    shape = big_runs.SHAPES["7b"][:2] + (args.layers,) + big_runs.SHAPES["7b"][3:]
    if not (directory / "models/base").is_dir():
        big_runs.make_base(stack.binaries, directory / "models/base", directory / "cache", shape)
    shutil.copytree(directory / "cache", stack.root / "w1/cache/base", copy_function=os.link,
                    dirs_exist_ok=True)
    job = run.submit(api.models.RegisterModel(
        api.pb.model.RegisterModelRequest(path="base", display_name="base")))
    hidden, ffn = shape[:2]
    elements = args.rank * args.layers * (4 * 2 * hidden + 3 * (hidden + ffn))
    run.state_bytes = 12 * elements  # masters and two moments
    print(f"{args.layers} layers, r {args.rank}: {elements / 1e6:.1f} million adapter parameters, a "
          f"checkpoint of {run.state_bytes / 1e6:.0f} MB; a step is {args.accumulation} x 512 tokens",
          flush=True)
    first = run.wait_for_step(job)
    run.step_s = run.wait_for_step(job) - first
    print(f"a step takes {run.step_s:.1f} s", flush=True)

    def state():
        return api.state(api.get(job))

    run.measure("pause", job, lambda: api.jobs.PauseJob(pb.PauseJobRequest(name=job)),
                lambda: state() == "PAUSED" and run.reserved() == 0)
    api.jobs.ResumeJob(pb.ResumeJobRequest(name=job))
    worker = stack.workers["w1"]
    run.measure("SIGTERM to the worker", job, worker.terminate, lambda: worker.poll() is not None)
    run.start_worker()
    run.measure("cancel", job, lambda: api.jobs.CancelJob(pb.CancelJobRequest(name=job)),
                lambda: state() == "CANCELLED" and run.reserved() == 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("/var/tmp/nibble-stop"))
    parser.add_argument("--keep", action="store_true", help="leave the base for the next run")
    parser.add_argument("worker_flags", nargs="*", metavar="-- WORKER_FLAG")
    args = parser.parse_args()
    binaries = stack_module.bin_dir()
    if client.missing() or binaries is None:
        print(f"skipped: {client.missing() or 'the binaries are not built'}")
        return 77
    directory = args.dir
    (directory / "models").mkdir(parents=True, exist_ok=True)
    flags = ["--model-root", directory / "models", "--lease-seconds", "60"]
    with stack_module.Stack(binaries, server_flags=flags) as stack:
        stack.SERVER_FLAGS = []
        shutil.rmtree(stack.root)
        stack.root = directory / "run"
        shutil.rmtree(stack.root, ignore_errors=True)
        stack.root.mkdir()
        run(stack, args, directory)
    if not args.keep:
        shutil.rmtree(directory, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
