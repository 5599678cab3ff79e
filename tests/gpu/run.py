#!/usr/bin/env python3
"""Everything a GPU is needed for, in one go of under ten minutes; one results file.

  run.py [--bundle DIR] [--out FILE] [--device N] [--minutes 9.5] [--only NAME,NAME]
  run.py --emulated [--bin DIR] [--out FILE]    the same script on emulated kernels and tiny shapes; without
                                                --bin kernels are built here, and there is no engine

The machine needs the CUDA toolkit, CMake, g++ and Python; PyTorch is used when it is there, nothing is
installed. kernels/ and its checks are built here from source. nibble-engine and nibble-bench-step come
prebuilt in the bundle (./dev gpu --bundle); if they do not start here, that is said and the kernel checks
run all the same. A section that fails does not stop the next; the exit status is 1 when one failed. What
was skipped is named with its reason.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import report  # noqa: E402
import shapes  # noqa: E402


class Skip(Exception):
    """The section cannot run here, and why."""


class Failure(Exception):
    """The section ran and something is wrong."""


class Run:
    """One run: what it works with, and what its sections have found."""

    def __init__(self, options):
        self.options = options
        self.emulated = options.emulated
        self.deadline = self.section_deadline = time.monotonic() + options.minutes * 60
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="nibble-gpu-"))
        self.build = pathlib.Path(options.bin).parent if options.bin else self.scratch / "build"
        self.device = "cuda-emulated" if self.emulated else f"cuda:{options.device}"
        self.table = "cuda-emulated" if self.emulated else "cuda"
        self.engine = self.bench = None
        self.engine_missing = "no bundle was given; make one with ./dev gpu --bundle"
        self.sections = []
        self.facts = {}

    def left(self):
        """Seconds that the section under way has."""
        return min(self.deadline, self.section_deadline) - time.monotonic()

    def command(self, words, limit_s=300, check=True):
        """Runs it; the output as text. Failure when it ends badly, Skip when time is up."""
        limit_s = min(limit_s, self.left())
        if limit_s <= 1:
            raise Skip("no time was left")
        words = [str(word) for word in words]
        try:
            done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  errors="replace", timeout=limit_s, check=False)
        except FileNotFoundError:
            raise Skip(f"{words[0]} is not installed here") from None
        except subprocess.TimeoutExpired:
            raise Failure(f"{' '.join(words)} did not end within {limit_s:.0f} s") from None
        if check and done.returncode != 0:
            tail = "\n".join(done.stdout.strip().splitlines()[-12:])
            raise Failure(f"{tail}\n(exit {done.returncode} of {' '.join(words)})")
        return done.stdout

    def section(self, name, function, limit_s):
        """Runs one section within its time and keeps what became of it."""
        only = self.options.only.split(",") if self.options.only else []
        if only and name not in only:
            return
        began = time.monotonic()
        # An emulation has no speed, and its machine other things to do.
        self.section_deadline = began + (self.options.minutes * 60 if self.emulated else limit_s)
        entry = {"name": name, "state": "ok", "why": "", "figures": {}}
        print(f"== {name}", flush=True)
        try:
            if self.left() < 5:
                raise Skip("no time was left")
            function(entry["figures"])
        except Skip as why:
            entry.update(state="skipped", why=str(why))
        except Failure as why:
            entry.update(state="FAILED", why=str(why))
        except Exception as why:  # the script's own fault must not cost the other sections
            entry.update(state="FAILED", why=f"{type(why).__name__}: {why}")
        entry["seconds"] = round(time.monotonic() - began, 1)
        self.sections.append(entry)
        print(f"   {entry['state']} in {entry['seconds']} s {entry['why'][:300]}", flush=True)


def machine(run, figures):
    """Which device, driver, toolkit."""
    if run.emulated:
        figures["device"] = "emulated on " + os.uname().machine
        return
    fields = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit,uuid"
    line = run.command(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader",
                        f"--id={run.options.device}"], 60).strip()
    figures.update(zip(fields.split(","), [part.strip() for part in line.split(",")]))
    run.facts["capability"] = figures["compute_cap"].replace(".", "")
    figures["nvcc"] = run.command(["nvcc", "--version"], 60).strip().splitlines()[-1]
    figures["host"] = f"{os.cpu_count()} cores, {os.uname().release}"


def start_engine(run, figures):
    """Does the prebuilt engine start, and does it see the device?"""
    if run.emulated and not run.options.bin:
        run.engine_missing = "what travels has no emulated engine"
        raise Skip(run.engine_missing)
    suffix = "-emulated" if run.emulated else ""
    folder = pathlib.Path(run.options.bin if run.emulated else run.options.bundle)
    engine, bench = folder / f"nibble-engine{suffix}", folder / f"nibble-bench-step{suffix}"
    if not engine.exists():
        raise Failure(f"{engine} is missing; the sections that need it are skipped")
    run.engine_missing = "the prebuilt engine did not start here"
    figures["version"] = run.command([engine, "version"], 60).strip()
    figures["bytes"] = engine.stat().st_size
    devices = json.loads(run.command([engine, "devices"], 60).strip().splitlines()[-1])
    if not devices["devices"]:
        raise Failure(f"nibble-engine sees no device: {devices['why']}")
    figures["profile"] = json.loads(
        run.command([engine, "profile", "--device", run.device], 120).strip().splitlines()[-1])
    run.engine, run.bench = engine, bench if bench.exists() else None


def build_kernels(run, figures):
    """kernels/ and its checks, from source."""
    if run.options.bin:
        figures["built"] = "by the test run"
        return
    if run.emulated:
        run.command(["cmake", "-S", ROOT, "-B", run.build, "-DNIBBLE_KERNELS_ONLY=ON", "-DNIBBLE_CUDA=OFF"], 120)
        run.command(["cmake", "--build", run.build, "--parallel", os.cpu_count(), "--target",
                     "nibble-kernel-check"], 400)
        return
    capability = run.facts.get("capability", "90")
    architecture = "90a" if capability == "90" else capability
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run.command(["cmake", "-S", ROOT, "-B", run.build, *generator, "-DNIBBLE_KERNELS_ONLY=ON",
                 "-DNIBBLE_BUILD_BENCH=ON", "-DNIBBLE_CUDA=ON",
                 f"-DNIBBLE_CUDA_ARCHITECTURES={architecture}"], 120)
    run.command(["cmake", "--build", run.build, "--parallel", os.cpu_count(), "--target",
                 "nibble-kernel-check", "nibble-bench-cuda"], 400)
    figures["architecture"] = architecture


def checker(run):
    path = run.build / "bin" / "nibble-kernel-check"
    if not path.exists():
        raise Skip("nibble-kernel-check was not built")
    return path


def parity(fp16):
    def section(run, figures):
        words = [checker(run), f"--table={run.table}"] + (["--fp16"] if fp16 else [])
        words += [shapes.EMULATED_CASES] if run.emulated else []
        text = run.command(words, 240, check=False)
        worst = [float(m) for m in re.findall(r" ([0-9.]+) of tolerance", text)]
        counts = re.search(r"(\d+) passed, (\d+) failed", text)
        if not counts:
            raise Failure("nibble-kernel-check did not finish:\n" + text[-800:])
        figures.update(passed=int(counts[1]), failed=int(counts[2]),
                       worst_share_of_tolerance=max(worst, default=0))
        if int(counts[2]) or not int(counts[1]):
            bad = [line for line in text.splitlines() if "FAILED" in line]
            raise Failure("\n".join(bad[:12]) or "no case ran")
    return section


def sanitizer(run, figures):
    """compute-sanitizer on small cases."""
    if run.emulated:
        raise Skip("there is nothing for compute-sanitizer to look at in an emulation")
    if not shutil.which("compute-sanitizer"):
        raise Skip("compute-sanitizer is not installed here")
    for tool in ("memcheck", "racecheck"):
        for case in shapes.SANITIZED_CASES:
            text = run.command(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
                                checker(run), "--table=cuda", case], 60, check=False)
            if "not supported" in text or "Unable to" in text:
                raise Skip("compute-sanitizer does not work on this machine: " + text.strip()[-200:])
            summary = re.findall(r"ERROR SUMMARY: (\d+)|RACECHECK SUMMARY: (\d+)", text)
            errors = sum(int(a or b) for a, b in summary)
            figures[f"{tool} {case}"] = errors
            if errors:
                raise Failure(text[-1500:])


def engine_of(run):
    if run.engine is None:
        raise Skip(run.engine_missing)
    return run.engine


def tiny_base(run):
    """Writes the small model of the dry run; its directory."""
    folder = run.scratch / "base"
    if folder.exists():
        return folder
    folder.mkdir()
    random_numbers = random.Random(1)
    header, data = {}, bytearray()
    for name, shape in shapes.tiny_tensors():
        count = math.prod(shape)
        center, spread = (1.0, 0.0) if len(shape) == 1 else (0.0, 0.1)
        begin = len(data)
        data += struct.pack(f"<{count}f", *(center + random_numbers.uniform(-spread, spread)
                                            for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps(shapes.TINY_CONFIG))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "demo/base" / name, folder)
    return folder


def train(run, name, device, steps, extra=(), more=None):
    """Trains the demo base; rows of (step, loss, grad_norm) and the adapter's bytes."""
    out = run.scratch / name
    spec = {"lora_r": 16, "sequence_len": 128, "micro_batch_size": 1, "gradient_accumulation_steps": 2,
            "max_steps": steps, "learning_rate": 2e-4, "val_set_size": 0, "save_interval_seconds": 0}
    if run.emulated:
        spec.update(sequence_len=48, gradient_accumulation_steps=1, lora_r=4)
    spec.update(more or {})
    spec_file = run.scratch / f"{name}.json"
    spec_file.write_text(json.dumps(spec))
    data = run.scratch / "train.jsonl"
    if not data.exists():
        rows = (ROOT / "demo/data/train.jsonl").read_text().splitlines(keepends=True)[:200]
        if run.emulated:
            rows = [json.dumps({"prompt": f"{i}: ", "completion": "abc"}) + "\n" for i in range(20)]
        data.write_text("".join(rows))
    text = run.command([engine_of(run), "train", "--model-dir",
                        tiny_base(run) if run.emulated else run.options.base, "--cache-dir",
                        run.scratch / "cache", "--dataset", data, "--spec", spec_file, "--out", out,
                        "--device", device, *extra], 180)
    rows = [(int(a), float(b), float(c)) for a, b, c in re.findall(
        r"^step (\d+)/\d+ .*?loss (\S+)  grad_norm (\S+)", text, re.M)]
    adapter = out / "adapter" / "adapter_model.safetensors"
    return rows, adapter.read_bytes() if adapter.exists() else None


def training_parity(run, figures):
    """Ten steps of the demo base on the device and on the CPU."""
    steps = shapes.PARITY_STEPS[run.emulated]
    ours, _ = train(run, "parity-device", run.device, steps)
    theirs, _ = train(run, "parity-cpu", "cpu", steps)
    if len(ours) != steps or len(theirs) != steps:
        raise Failure(f"{len(ours)} and {len(theirs)} steps came back, not {steps}")
    figures["losses"] = [row[1] for row in ours]
    figures["losses_cpu"] = [row[1] for row in theirs]
    figures["loss_distance"] = max(abs(a[1] / b[1] - 1) for a, b in zip(ours, theirs))
    figures["grad_norm_distance"] = max(abs(a[2] / b[2] - 1) for a, b in zip(ours, theirs))
    if figures["loss_distance"] > 0.01:
        raise Failure(f"losses differ by {figures['loss_distance']:.3%}; 1 % is allowed")


def rerun_and_resume(run, figures):
    """The same bits again, and when cut in the middle."""
    steps = shapes.PARITY_STEPS[run.emulated]
    _, whole = train(run, "whole", run.device, steps)
    _, again = train(run, "again", run.device, steps)
    train(run, "cut", run.device, steps, ["--stop-after", steps // 2])
    _, resumed = train(run, "cut", run.device, steps, ["--resume", "latest"])
    # The decoded base kept or not: the same products, so the same bits.
    kept, decoded = (train(run, f"cache-{choice}", run.device, steps, more={"base_cache": choice})[1]
                     for choice in ("on", "off"))
    figures["rerun_equal"] = whole is not None and whole == again
    figures["resume_equal"] = whole is not None and whole == resumed
    figures["base_cache_equal"] = kept is not None and kept == decoded
    if not all(figures.values()):
        raise Failure("the adapters are not byte for byte the same")


def fp16_training(run, figures):
    """Loss scaling: ten steps with fp16 activations."""
    steps = shapes.PARITY_STEPS[run.emulated]
    ours, _ = train(run, "fp16-device", run.device + ",fp16", steps)
    theirs, _ = train(run, "fp16-cpu", "cpu", steps)
    figures["losses"] = [row[1] for row in ours]
    if abs(ours[0][1] / theirs[0][1] - 1) > 0.01:
        raise Failure(f"the first loss is {ours[0][1]}, on the CPU {theirs[0][1]}")


def kernel_speed(run, figures):
    """Kernels as shares of measured copy bandwidth and of cuBLAS."""
    path = run.build / "bin" / "nibble-bench-cuda"
    if run.emulated or not path.exists():
        raise Skip("an emulation has no speed" if run.emulated else "nibble-bench-cuda was not built")
    out = run.scratch / "kernels.json"
    text = run.command([path, "--json", out], 150)
    figures["lines"] = text.strip().splitlines()
    if out.exists():
        figures["json"] = json.loads(out.read_text())


def step_speed(run, figures):
    """Whole training steps at the shapes of known models, random weights; memory beside the driver's."""
    if run.bench is None:
        raise Skip(run.engine_missing if run.engine is None else "nibble-bench-step is not there")
    wrong = []
    for name, words, goal in shapes.STEPS[run.emulated]:
        if run.left() < 20:
            figures[name] = {"skipped": "no time was left"}
            continue
        try:
            line = run.command([run.bench, "--device", run.device, *words], 150).strip().splitlines()[-1]
        except Failure as why:
            figures[name] = {"failed": str(why)}
            wrong.append(name)
            continue
        row = json.loads(line)
        entry = {key: row[key] for key in ("tokens_per_second", "grad_norms", "planned_device_bytes",
                                           "driver_bytes")}
        entry["goal"] = goal
        entry["loss"] = row["losses"][-1]
        over = row["driver_bytes"] - row["planned_device_bytes"]
        entry["driver_over_plan_bytes"] = over
        if over > 0 or -over > 64 << 20:
            wrong.append(f"{name}: the driver reads {over:+} bytes against the plan")
        figures[name] = entry
        print(f"   {name}: {row['tokens_per_second']:.0f} tokens/s", flush=True)
    if wrong:
        raise Failure("; ".join(wrong))


def small_card(run, figures):
    """The 8B model on a 15 GB card: 200 examples, one epoch, fp16, memory capped by the plan."""
    if run.bench is None:
        raise Skip(run.engine_missing if run.engine is None else "nibble-bench-step is not there")
    cap = shapes.SMALL_CARD_BYTES[run.emulated]
    line = run.command([run.bench, "--device", run.device, *shapes.SMALL_CARD[run.emulated], "--capacity", cap],
                       240).strip().splitlines()[-1]
    row = json.loads(line)
    for key in ("tokens_per_second", "recompute", "planned_device_bytes", "planned_pinned_bytes", "driver_bytes",
                "updates"):
        figures[key] = row[key]
    figures["cap_bytes"] = cap
    figures["seconds"] = sum(row["step_seconds"])
    figures["first_loss"], figures["last_loss"] = row["losses"][0], row["losses"][-1]
    if max(row["planned_device_bytes"], row["driver_bytes"]) > cap:
        raise Failure(f"planned {row['planned_device_bytes']}, the driver reads {row['driver_bytes']}; cap {cap}")
    if not all(math.isfinite(loss) for loss in row["losses"]):
        raise Failure("a loss is not finite")
    # Finding the loss scale may cost the first few steps.
    if row["updates"] < len(row["losses"]) * 3 // 4 and not run.emulated:
        raise Failure(f"{row['updates']} updates in {len(row['losses'])} steps")


def peer(run, figures):
    """The same shapes under PyTorch, transformers and PEFT, when they are here."""
    if run.emulated:
        raise Skip("an emulation has no peer")
    script = pathlib.Path(__file__).resolve().parent / "peer.py"
    text = run.command([sys.executable, script], min(120, max(5, run.left() - 5)), check=False)
    try:
        result = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise Failure(text[-800:]) from None
    if "skipped" in result:
        raise Skip(result["skipped"])
    figures.update(result)


# Name, what, and the most seconds it may take. Most valuable first: of ten minutes, the last may find none.
SECTIONS = [
    ("machine", machine, 60), ("engine", start_engine, 120), ("training parity", training_parity, 90),
    ("training speed and memory", step_speed, 200), ("rerun and resume", rerun_and_resume, 90),
    ("kernels built", build_kernels, 240), ("kernel parity bf16", parity(False), 90),
    ("kernel speed", kernel_speed, 90), ("kernel parity fp16", parity(True), 60),
    ("fp16 training", fp16_training, 60), ("an 8B model on 15 GB", small_card, 120),
    ("PyTorch beside us", peer, 90), ("compute-sanitizer", sanitizer, 90),
]


def no_gpu(options):
    """A sentence when there is no point in beginning."""
    if options.emulated or (shutil.which("nvidia-smi") and subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.strip()):
        return ""
    return ("there is no NVIDIA GPU here (nvidia-smi lists none). Run './dev gpu --bundle' on this machine "
            "and './dev gpu' on one with a GPU; './dev gpu --emulated' tries the script out here")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", default=str(ROOT / "gpu-bundle"))
    parser.add_argument("--bin", default="")
    parser.add_argument("--out", default="")
    parser.add_argument("--base", default=str(ROOT / "demo/base"))
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--only", default="")
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    why = no_gpu(options)
    if why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    run = Run(options)
    began = time.monotonic()
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    out = pathlib.Path(options.out or f"{today}-gpu.md")

    def write():
        # After every section: whatever ends the script, what was found stays.
        out.write_text(report.text(run.sections, run.emulated, today, time.monotonic() - began))

    try:
        for name, function, limit_s in SECTIONS:
            run.section(name, lambda figures, function=function: function(run, figures), limit_s)
            write()
    finally:
        shutil.rmtree(run.scratch, ignore_errors=True)
    failed = [entry["name"] for entry in run.sections if entry["state"] == "FAILED"]
    print(f"Results in {out}; {len(failed)} sections failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
