#!/usr/bin/env python3
"""Everything a GPU is needed for, in one go of under ten minutes; one results file.

  run.py [--bundle DIR] [--out FILE] [--device N] [--minutes 9.5] [--only NAME,NAME]
  run.py --emulated [--bin DIR] [--out FILE]    the same script on emulated kernels and tiny shapes; without
                                                --bin kernels are built here, and there is no engine

The machine needs the CUDA toolkit, CMake, g++ and Python; PyTorch is used when it is there, nothing is
installed. Everything comes prebuilt in the bundle (./dev gpu --bundle), for compute capability 9.0. The
kernels' checks that do not start here, or not on this GPU, are built from source, beside the first sections;
else that build comes at the end, to see that it works. If nibble-engine does not start, that is said and the
kernel checks run all the same.

A section that fails, crashes or hangs does not stop the next: what it started is killed at its limit, and the
results file is written before and after each. The exit status is 1 when one failed. What was skipped is named
with its reason.
"""

import argparse
import datetime
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import kernels  # noqa: E402
import report  # noqa: E402
from runner import Run, Skip, kill  # noqa: E402
import training  # noqa: E402


def find_cublas(name="libcublasLt.so.13"):
    """The library that multiplies; its folder is put on the path of libraries when the loader has it not."""
    loaded = subprocess.run(["sh", "-c", f"ldconfig -p | grep -m1 {name}"], capture_output=True, text=True,
                            check=False).stdout
    if loaded.strip():
        return loaded.split()[-1]
    nvcc = pathlib.Path(shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc").resolve()
    folders = [pathlib.Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += [nvcc.parent.parent / "lib64", *sorted(pathlib.Path("/usr/local").glob("cuda*/targets/*/lib"))]
    # A wheel's, as PyTorch brings it.
    for prefix in {pathlib.Path(sys.prefix), pathlib.Path(shutil.which("python3") or sys.executable).parent.parent}:
        folders += sorted(prefix.glob("lib/python*/*-packages/nvidia/*/lib"))
    for folder in folders:
        if (folder / name).exists():
            os.environ["LD_LIBRARY_PATH"] = f"{folder}:" + os.environ.get("LD_LIBRARY_PATH", "")
            return str(folder / name)
    return ""


def machine(run, figures):
    """Which device, driver, toolkit."""
    if run.emulated:
        figures["device"] = "emulated on " + os.uname().machine
        kernels.find_tools(run)
        return
    fields = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit,uuid"
    line = run.command(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader",
                        f"--id={run.options.device}"], 60).strip()
    figures.update(zip(fields.split(","), [part.strip() for part in line.split(",")]))
    run.facts["capability"] = figures["compute_cap"].replace(".", "")
    figures["cuBLASLt"] = find_cublas() or "not found: our own products are measured"
    kernels.find_tools(run)
    if run.tools is None:
        # What is built here wants the library of this toolkit.
        find_cublas("libcublasLt.so.12")
        kernels.start_build(run)
    try:
        figures["nvcc"] = run.command(["nvcc", "--version"], 30).strip().splitlines()[-1]
    except Skip as why:
        figures["nvcc"] = str(why)
    figures["host"] = f"{os.cpu_count()} cores, {os.uname().release}"


# Name, what, and the most seconds it may take. Right before fast, then the most valuable first: of ten minutes
# the last may find none.
SECTIONS = [
    ("machine", machine, 60), ("engine", training.start_engine, 60),
    ("model parity", training.model_parity, 60), ("training parity", training.training_parity, 60),
    ("rerun and resume", training.rerun_and_resume, 60), ("kernel parity bf16", kernels.parity(), 90),
    ("parity of wgmma attention", kernels.wgmma_parity, 45),
    ("training speed and memory", training.step_speed, 200), ("kernel speed", kernels.kernel_speed, 150),
    ("jobs beside each other", training.neighbours, 45),
    ("an 8B model on 15 GB", training.small_card, 100), ("kernel parity fp16", kernels.parity(fp16=True), 60),
    ("fp16 training", training.fp16_training, 45), ("PyTorch beside us", kernels.peer, 90),
    ("compute-sanitizer", kernels.sanitizer, 90), ("kernel parity of the CPU", kernels.parity(table="cpu"), 60),
    ("kernels built from source", kernels.build_kernels, 240),
]


def rest_of(run):
    """What comes after the first section: a build that is needed comes before what needs it."""
    rest = SECTIONS[1:]
    if run.tools is None:
        build = next(s for s in rest if s[1] is kernels.build_kernels)
        rest.remove(build)
        rest.insert(next(i for i, s in enumerate(rest) if s[0].startswith("kernel")), build)
    return rest


def no_gpu(options):
    """A sentence when there is no point in beginning."""
    if options.emulated:
        return ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
        if listed.returncode == 0 and listed.stdout.strip():
            return ""
    except (OSError, subprocess.TimeoutExpired):
        pass
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
        # Before and after every section: whatever ends the script, what was found stays.
        text = report.text(run.sections, run.emulated, today, time.monotonic() - began)
        part = out.with_name(out.name + ".part")
        part.write_text(text)
        os.replace(part, out)

    def section(name, function, limit_s):
        run.section(name, lambda figures: function(run, figures), limit_s, write)

    # Whoever ends the script early ends what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        section(*SECTIONS[0])
        for name, function, limit_s in rest_of(run):
            section(name, function, limit_s)
        run.deadline = time.monotonic() + 60  # this takes none
        section("goals", lambda of, figures: report.goals(of.sections, figures), 60)
    finally:
        if run.building is not None:
            kill(run.building)
        shutil.rmtree(run.scratch, ignore_errors=True)
    failed = [entry["name"] for entry in run.sections if entry["state"] == "FAILED"]
    print(f"Results in {out}; {len(failed)} sections failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
