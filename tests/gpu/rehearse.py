#!/usr/bin/env python3
"""./dev gpu --rehearse: the script as a machine with an H200 runs it, on emulated kernels.

  rehearse.py BIN FOLDER [words for run.py]     BIN: where the emulated programs are
  rehearse.py --as NAME BIN ...                 stands for a program of the bundle

What a GPU is given the emulation is given, too: its device and table have other names, whole training steps smaller
shapes, and the benchmark of kernels its small ones. nvidia-smi and compute-sanitizer are played, so no figure is one
of speed, and none is a GPU's. It shows that every section runs, and that the checks hold at the sizes that a GPU
will be asked. Takes about ten minutes of two cores.
"""

import os
import pathlib
import stat
import sys

HERE = pathlib.Path(__file__).resolve().parent
BUNDLED = ("nibble-engine", "nibble-bench-step", "nibble-model-parity", "nibble-kernel-check", "nibble-bench-cuda")

NVIDIA_SMI = """#!/bin/sh
case "$*" in
  -L) echo "GPU 0: rehearsed";;
  *compute-apps*) echo "pid, used_gpu_memory [MiB]";;
  *memory.used*) echo "0 MiB, 0 %, 30, 345 MHz, 3201 MHz, Enabled, Disabled";;
  *) echo "REHEARSED on emulated kernels, 580, 143771 MiB, 9.0, 1980 MHz, 700 W, GPU-0";;
esac
"""

SANITIZER = """#!/bin/sh
[ "$1" != --version ] || { echo rehearsed; exit; }
while case "$1" in --*) ;; *) false;; esac; do shift 2; done
"$@"
status=$?
echo "========= ERROR SUMMARY: 0 errors"
exit $status
"""

# Of nibble-bench-step: what says how a step is made, not how large.
KEPT = {"--device", "--paged", "--offload", "--optimizer", "--base-cache", "--graphs", "--quant", "--fp16",
        "--checkpointing", "--accumulation", "--recompute", "--ops"}


def translated(name, words):
    """What the emulation is asked in place of a GPU: program, words."""
    words = [word.replace("cuda:0", "cuda-emulated") if word.startswith("cuda:0") else word for word in words]
    pairs = list(zip(words[::2], words[1::2]))
    if name == "nibble-kernel-check":
        at = words.index("--device") if "--device" in words else len(words)
        words = words[:at] + words[at + 2:]
        return name, ["--table=cuda-emulated" if word == "--table=cuda" else word for word in words]
    if name == "nibble-bench-cuda":
        return name + "-emulated", ["--small", *words]
    if name == "nibble-bench-step":
        kept = [word for pair in pairs if pair[0] in KEPT for word in pair]
        return name + "-emulated", ["--shape", "demo", "--seq", "32", "--layers", "2", "--steps", "1", *kept]
    return name + "-emulated", words


def main():
    if sys.argv[1] == "--as":
        name, words = translated(sys.argv[2], sys.argv[4:])
        os.execv(f"{sys.argv[3]}/{name}", [name, *words])
    binaries, folder = (pathlib.Path(word).resolve() for word in sys.argv[1:3])
    scripts = {f"bundle/{name}": f'#!/bin/sh\nexec python3 {HERE}/rehearse.py --as {name} {binaries} "$@"\n'
               for name in BUNDLED}
    scripts.update({"path/nvidia-smi": NVIDIA_SMI, "path/compute-sanitizer": SANITIZER})
    for name, text in scripts.items():
        script = folder / name
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(text)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    os.environ["PATH"] = f"{folder / 'path'}:{os.environ['PATH']}"
    os.execvp("python3", ["python3", str(HERE / "run.py"), "--bundle", str(folder / "bundle"), "--out",
                          str(folder / "rehearsal.md"), "--minutes", "90", "--patience", "10", *sys.argv[3:]])


if __name__ == "__main__":
    main()
