#!/usr/bin/env python3
"""Everything a GPU is needed for, in one go of under ten minutes; one results file.

  run.py [--bundle DIR] [--out FILE] [--device N] [--minutes 9.5] [--only NAME,NAME] [--after FILE]
         [--patience 1]
  run.py --emulated [--bin DIR] [--out FILE]    the same script on emulated kernels and tiny shapes; without
                                                --bin kernels are built here, and there is no engine

The machine needs the CUDA toolkit, CMake, g++ and Python; PyTorch is used when it is there, nothing is
installed. Everything comes prebuilt in the bundle (./dev gpu --bundle), for compute capability 9.0: the folder
gpu-bundle, or gpu-bundle.tar.gz, which is unpacked. kernels/ is built from source, too, beside the first
sections, and its checks are taken where the prebuilt ones do not start. If nibble-engine does not start, that
is said and the kernel checks run all the same.

A section that fails, crashes or hangs does not stop the next: what it started is killed at its limit, or earlier
where the time is set aside for what follows, and the results file is written before and after each. It is --out, or a file of today's date in the folder $OUT, or
here. The exit status is 1 when one failed. What was skipped is named with its reason; --after takes such a file
and runs what is missing or went wrong in it.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import cases  # noqa: E402
import explain  # noqa: E402
import kernels  # noqa: E402
import machine  # noqa: E402
import report  # noqa: E402
from runner import Run, kill  # noqa: E402
import shapes  # noqa: E402
import training  # noqa: E402


# Name, what, and the most seconds it may take. Right before fast, then the most valuable first: of ten minutes
# the last may find none; --after takes them up.
SECTIONS = [
    ("machine", machine.look, 120), ("engine", training.start_engine, 90),
    ("model parity", training.model_parity, 60), ("training parity", training.training_parity, 75),
    ("rerun and resume", training.rerun_and_resume, 60), ("kernel parity bf16", cases.parity(), 90),
    ("parity of wgmma attention", cases.wgmma_parity, 45),
    ("what broke", explain.what_broke, 90), ("what makes the difference", explain.what_makes_the_difference, 75),
    (kernels.BUILD, kernels.build_kernels, 90),
    ("training speed and memory", training.step_speed, 190), ("kernel speed", kernels.kernel_speed, 150),
    ("jobs beside each other", training.neighbours, 45),
    ("an 8B model on 15 GB", training.small_card, 100), ("kernel parity fp16", cases.parity(fp16=True), 60),
    ("fp16 training", training.fp16_training, 45), ("PyTorch beside us", kernels.peer, 90),
    ("parity of our own products", cases.parity(before=shapes.OWN_PRODUCTS, filters=["linear"]), 45),
    ("compute-sanitizer", cases.sanitizer, 90), ("kernel parity of the CPU", cases.parity(table="cpu"), 60),
    ("kernel speed of the CPU", kernels.cpu_speed, 60),
]
# Seconds that are set aside for a section while those before it run: however these end, what a lease is most wanted for
# gets so many. What nobody needed is for all that follow, within their limits.
KEPT_S = {"machine": 30, "engine": 15, "model parity": 20, "training parity": 40, "rerun and resume": 35,
          "kernel parity bf16": 45, "parity of wgmma attention": 20, kernels.BUILD: 20,
          "training speed and memory": 130, "kernel speed": 130}
# Of an earlier run's, too: what the others work with.
ALWAYS = {"machine", "engine", "goals"}


def rest_of(run):
    """What comes after the first section: a build that is needed comes before what needs it."""
    rest = SECTIONS[1:]
    if run.tools is None:
        build = next(s for s in rest if s[1] is kernels.build_kernels)
        rest.remove(build)
        rest.insert(next(i for i, s in enumerate(rest) if s[0].startswith("kernel")), build)
    return rest


def take_up(run, path):
    """What an earlier run's file has need not run again."""
    text = path.read_text()
    for entry in json.loads(text[text.rindex("```json\n") + 8:text.rindex("\n```")]):
        if entry["state"] == "ok" and entry["name"] not in ALWAYS:
            run.done[entry["name"]] = entry
        run.earlier[entry["name"]] = entry["figures"]


def writable(path):
    """There, or where files can be written."""
    for folder in (path.parent, pathlib.Path(tempfile.gettempdir())):
        try:
            with tempfile.TemporaryFile(dir=folder):
                return folder / path.name
        except OSError as why:
            print(f"gpu: {folder} cannot be written to: {why}", file=sys.stderr)
    return path


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
    parser.add_argument("--patience", type=float, default=1)  # so many times every limit but --minutes
    parser.add_argument("--only", default="")
    parser.add_argument("--after", default=None, type=pathlib.Path)
    parser.add_argument("--emulated", action="store_true")
    options = parser.parse_args()
    why = no_gpu(options)
    if why:
        print(f"gpu: {why}", file=sys.stderr)
        return 2
    run = Run(options)
    began = time.monotonic()
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    out = writable(pathlib.Path(options.out or pathlib.Path(os.environ.get("OUT", "")) / f"{today}-gpu.md"))
    if options.after:
        take_up(run, options.after)
    machine.unpack(run, ROOT)

    def write():
        # Before and after every section: whatever ends the script, what was found stays.
        text = report.text(run.sections, run.emulated, today, time.monotonic() - began)
        part = out.with_name(out.name + ".part")
        part.write_text(text)
        os.replace(part, out)

    def section(name, function, limit_s, later=()):
        kept_s = sum(KEPT_S.get(other, 0) for other, *_ in later if run.wants(other))
        run.section(name, lambda figures: function(run, figures), limit_s, write, KEPT_S.get(name, 0), kept_s)

    # Whoever ends the script early ends what it started, too.
    def ended(*_):
        run.stop()
        sys.exit(143)

    signal.signal(signal.SIGTERM, ended)
    try:
        section(*SECTIONS[0], SECTIONS[1:])
        rest = rest_of(run)
        for i, of in enumerate(rest):
            section(*of, rest[i + 1:])
        machine.clocks(run, run.sections[0]["figures"])
        run.deadline = time.monotonic() + 60  # this takes none
        section("goals", lambda of, figures: report.goals(of.sections, figures), 60)
    finally:
        for process in [run.building, *run.companions]:
            if process is not None:
                kill(process)
        shutil.rmtree(run.scratch, ignore_errors=True)
    failed = [entry["name"] for entry in run.sections if entry["state"] == "FAILED"]
    print(report.brief(run.sections))
    print(f"Results in {out}; {len(failed)} sections failed{': ' + ', '.join(failed) if failed else ''}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
