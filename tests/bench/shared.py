#!/usr/bin/env python3
"""Ten jobs on one base: in one engine process, in ten, and one after the other.

    shared.py BIN_DIR [--shape 135m] [--jobs 10] [--steps 6] [--threads 2] [--rows 0] [--recompute full]

A base of random weights is made once (nibble-make-base). Then the same jobs, of different ranks, targets,
lengths and optimizers, run three times: attached to one `nibble-engine serve` that lets them take turns,
one after the other in one engine, and side by side in an engine each. Printed as a Markdown table: the
plan, the peak, the processor's time and tokens a second. It is an error when an adapter differs by a byte,
or when a process peaks above its plan or more than 64 MiB below it.

With --rows N every job has micro-batches of N tokens, and what is compared is fused turns (one decoding of each
weight for the rows of all), turns of one job each (--fuse false) and one job after the other. The columns "of
steps" count steps alone, without starting, attaching and writing adapters: their own times, and the process's
from the 20th step on. A second table has where the time of a step goes.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "big"))
sys.path.insert(0, str(HERE.parent / "integration"))
import big_runs  # noqa: E402

MIB = 1 << 20
WARM_STEPS = 20  # of all jobs together
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def recipes(count, steps, rows, recompute):
    """Jobs that have nothing but the base in common; of `rows` tokens a micro-batch unless that is 0."""
    for i in range(count):
        yield {
            "lora_r": (8, 16, 32, 64, 16)[i % 5] if rows == 0 else 16,
            "target_modules": (ALL, ALL[:4], ["q_proj", "v_proj"])[i % 3 if rows == 0 else 0],
            "sequence_len": rows or (256, 384, 512, 320)[i % 4], "optimizer": ("adamw", "adamw8bit")[i % 2],
            "gradient_accumulation_steps": 1, "micro_batch_size": 1, "max_steps": steps, "format": "text",
            "val_set_size": 0, "recompute": recompute, "save_interval_seconds": 0, "seed": i}


def write_rows(path, seed, words_in_row=120):
    words = random.Random(seed)
    rows = ({"text": " ".join(words.choice(("abc", "def", "ghi", "jkl")) for _ in range(words_in_row))}
            for _ in range(200))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Engine:
    """`nibble-engine serve`, spoken to over a socket pair as a worker does."""

    def __init__(self, binaries, model, cache, threads, fuse=True, flags=()):
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [str(binaries / "nibble-engine"), "serve", "--fd", str(theirs.fileno()), "--model-dir", str(model),
             "--cache-dir", str(cache), "--threads", str(threads), "--fuse", str(fuse).lower(), *flags],
            pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        theirs.close()
        self.lines = ours.makefile("rw", encoding="utf-8", newline="\n")
        self.profile = json.loads(self.lines.readline())["profile"]
        self.plans, self.finished, self.tokens = {}, {}, 0
        self.checkpoints = collections.defaultdict(list)  # directories, of each attempt
        self.steps = self.fused = self.step_us = 0
        self.warm = self.last = (0, 0)  # tokens, processor seconds
        self.peak = self.pss = 0
        self.phase_us = collections.Counter()

    def attach(self, name, directory, spec, data, resume=""):
        large = 1 << 60
        self.lines.write(json.dumps({
            "type": "attach", "attempt": f"{name}/1", "dir": str(directory), "spec": spec, "dataset": str(data),
            "eval_dataset": "", "resume": resume, "numerics_id": "", "base_name": "base", "display_name": name,
            "planned": {"base_bytes": large, "persistent_bytes": large, "step_bytes": large}}) + "\n")
        self.lines.flush()

    def wait(self, count):
        """Until `count` jobs have finished."""
        while len(self.finished) < count:
            line = json.loads(self.lines.readline())
            if line["type"] == "plan":
                self.plans[line["attempt"]] = line["plan"]
            elif line["type"] == "step":
                self.tokens += line["tokens"]
                self.steps += 1
                self.fused += line["jobs"] > 1
                self.step_us += line["step_time_us"]
                self.phase_us.update(line["phase_us"])
                self.pss = max(self.pss, self.proportional())
                self.last = (self.tokens, self.processor_seconds())
                if self.steps == WARM_STEPS:
                    self.warm = self.last
            elif line["type"] == "checkpoint":
                self.checkpoints[line["attempt"]].append(line["dir"])
            elif line["type"] == "finished":
                self.finished[line["attempt"]] = pathlib.Path(line["dir"])
            elif line["type"] == "failed":
                raise AssertionError(line)
        self.peak = big_runs.status(self.process.pid, "VmHWM")

    def processor_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def warm_rate(self):
        """Tokens a processor second from the 20th step on; empty when there were too few steps to say."""
        tokens, seconds = self.last[0] - self.warm[0], self.last[1] - self.warm[1]
        return f"{tokens / seconds:.1f}" if self.steps > 2 * WARM_STEPS and seconds > 1 else ""

    def proportional(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        return 0

    def close(self):
        self.lines.write('{"type":"shutdown"}\n')
        self.lines.flush()
        self.process.wait(30)

    def planned(self):
        """What is admitted: the process and the base once, persistent and host parts summed, the largest step."""
        plans = self.plans.values()
        return (max(p["fixed_bytes"] + p["base_bytes"] for p in plans) + max(p["step_bytes"] for p in plans) +
                sum(p["persistent_bytes"] + p["host_bytes"] for p in plans))


def adapters(engine):
    return {attempt: hashlib.sha256((path / "adapter_model.safetensors").read_bytes()).hexdigest()
            for attempt, path in engine.finished.items()}


class Bench:
    def __init__(self, args, directory):
        self.args, self.directory = args, directory
        self.model, self.cache = directory / "model", directory / "cache"
        shape = big_runs.SHAPES[args.shape]
        big_runs.make_base(args.bin, self.model, self.cache, shape, sys.stderr)
        self.specs = list(recipes(args.jobs, args.steps, args.rows, args.recompute))
        for i in range(args.jobs):
            # Rows that fill a micro-batch when packed: a word is about two tokens of the made-up tokenizer.
            write_rows(directory / f"rows{i}.jsonl", i, 120 if args.rows == 0 else max(1, args.rows // 16))

    def engine(self, fuse=True):
        return Engine(self.args.bin, self.model, self.cache, self.args.threads, fuse)

    def attach(self, engine, run, i):
        engine.attach(f"job{i}", self.directory / run / f"job{i}", self.specs[i],
                      self.directory / f"rows{i}.jsonl")

    def measure(self, way):
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        engines = way()
        seconds = time.monotonic() - began
        for engine in engines:
            engine.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        return engines, seconds, processor

    def shared(self, fuse=True):
        engine = self.engine(fuse)
        for i in range(self.args.jobs):
            self.attach(engine, f"shared-{fuse}", i)
        engine.wait(self.args.jobs)
        return [engine]

    def serial(self):
        engine = self.engine()
        for i in range(self.args.jobs):
            self.attach(engine, "serial", i)
            engine.wait(i + 1)
        return [engine]

    def ways(self):
        if self.args.rows:
            return {"fused turns": self.shared, "turns of one job": lambda: self.shared(False),
                    "one after the other": self.serial}
        return {"one process, in turns": self.shared, "one process, one after the other": self.serial,
                "a process each, at once": self.apart}

    def apart(self):
        engines = [self.engine() for _ in range(self.args.jobs)]
        for i, engine in enumerate(engines):
            self.attach(engine, "apart", i)
        for engine in engines:
            engine.wait(1)
        return engines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bin", type=pathlib.Path)
    parser.add_argument("--shape", default="135m", choices=list(big_runs.SHAPES))
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rows", type=int, default=0, help="tokens of every job's micro-batch; 0 = a mix")
    parser.add_argument("--recompute", default="full", choices=["none", "keep_gemm_outputs", "full"])
    args = parser.parse_args()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="nibble-shared-"))
    try:
        bench = Bench(args, directory)
        found, phases, wrong = {}, {}, []
        print(f"{args.jobs} jobs on one base of the {args.shape} shape, {args.steps} steps each, "
              f"{args.threads} threads\n")
        print("| way | planned, MiB | peak, MiB | proportional, MiB | tokens/s | tokens/s of steps | "
              "tokens per processor second | the same of steps | steps fused |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, way in bench.ways().items():
            engines, seconds, processor = bench.measure(way)
            tokens = sum(engine.tokens for engine in engines)
            # Of engines side by side the sum says nothing.
            of_steps = f"{tokens / engines[0].step_us * 1e6:.1f}" if len(engines) == 1 else ""
            planned = [engine.planned() for engine in engines]
            if name.endswith("one after the other"):
                planned = []  # nobody admits it as a whole
            peak = sum(engine.peak for engine in engines)
            print(f"| {name} | {sum(planned) / MIB:.0f} | {peak / MIB:.0f} | "
                  f"{sum(e.pss for e in engines) / MIB:.0f} | {tokens / seconds:.1f} | {of_steps} | "
                  f"{tokens / processor:.1f} | {engines[0].warm_rate() if len(engines) == 1 else ''} | "
                  f"{sum(e.fused for e in engines)} of {sum(e.steps for e in engines)} |",
                  flush=True)
            for engine, plan in zip(engines, planned):
                if not 0 <= plan - engine.peak <= 64 * MIB:
                    wrong.append(f"{name}: a plan of {plan / MIB:.1f} MiB, a peak of {engine.peak / MIB:.1f} MiB")
            phases[name] = (engines[0].phase_us, engines[0].steps)
            found[name] = {k: v for engine in engines for k, v in adapters(engine).items()}
        if args.rows:
            names = list(next(iter(phases.values()))[0])
            print(f"\n| ms of a step | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
            for way, (us, steps) in phases.items():
                print(f"| {way} | {' | '.join(f'{us[name] / steps / 1000:.2f}' for name in names)} |")
        first, *rest = found.values()
        wrong += ["adapters differ"] * any(other != first for other in rest)
        print(f"\nAdapters: {'identical' if all(o == first for o in rest) else 'DIFFERENT'} in all three.")
        print("\n".join(wrong))
        return 1 if wrong else 0
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
