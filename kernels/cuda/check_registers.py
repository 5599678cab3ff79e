#!/usr/bin/env python3
"""Registers, stack and spills of every CUDA kernel, from the ptxas reports of a build.

usage: check_registers.py BUILD_FOLDER   (the build's kernels/cuda)

Writes BUILD_FOLDER/registers.txt, a line per kernel and architecture. Exit status 1 when a kernel spills
more bytes than spill_budget.txt allows it (a line there: the beginning of the kernel's name, the
architecture without an "a" behind it, bytes); kernels without a line may not spill at all. Nor may ptxas
report that products meant to run beside other work had to wait ("wgmma.mma_async instructions are serialized").
"""

import pathlib
import re
import subprocess
import sys


def demangled(names):
    try:
        listing = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {name: name for name in names}
    short = []
    for line in listing.stdout.split("\n"):
        line = re.sub(r"\(anonymous namespace\)::|nibble::kernels::(cuda::)?|^void ", "", line)
        short.append(re.sub(r"\((\w*(?:::\w+)*)\)", "", line).split("(")[0])
    return dict(zip(names, short))


def kernels(folder):
    """(file, architecture, mangled name, registers, shared, stack, spilled bytes) of every kernel."""
    rows = []
    for report in sorted(folder.glob("*.ptxas")):
        name = architecture = None
        stack = spilled = 0
        for line in report.read_text().split("\n"):
            if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
                name, architecture = match.groups()
            elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
                stack, spilled = int(match[1]), int(match[2]) + int(match[3])
            elif (match := re.search(r"Used (\d+) registers", line)) and name:
                shared = re.search(r"(\d+) bytes smem", line)
                rows.append((report.name.split(".")[0], architecture, name, int(match[1]),
                             int(shared[1]) if shared else 0, stack, spilled))
                name = None
    return rows


def losses(folder):
    """What ptxas calls a potential loss of performance."""
    return [f"{report.name.split('.')[0]}: {line}" for report in sorted(folder.glob("*.ptxas"))
            for line in report.read_text().split("\n") if "Potential Performance Loss" in line]


def budgets():
    """(beginning of a kernel's name, architecture, bytes) of each line."""
    lines = (pathlib.Path(__file__).parent / "spill_budget.txt").read_text().split("\n")
    words = [line.split("#")[0].split() for line in lines]
    return [(*word[:2], int(word[2])) for word in words if word]


def main():
    folder = pathlib.Path(sys.argv[1])
    rows = kernels(folder)
    if not rows:
        print(f"{folder}: no ptxas reports; was nibble_cuda_kernels built?")
        return 1
    names = demangled([row[2] for row in rows])
    allowed = budgets()
    lost = losses(folder)
    for line in lost:
        print(line)
    wrong = len(lost)
    lines = [f"{'file':<20}{'arch':<8}{'registers':>9}{'shared':>8}{'stack':>7}{'spills':>8}  kernel"]
    for file, architecture, name, registers, shared, stack, spilled in rows:
        budget = max([size for word, of, size in allowed
                      if names[name].replace(" ", "").startswith(word) and of == architecture.removesuffix("a")],
                     default=0)
        over = spilled > budget
        wrong += over
        lines.append(f"{file:<20}{architecture:<8}{registers:>9}{shared:>8}{stack:>7}{spilled:>8}  "
                     f"{names[name]}{'   OVER ITS BUDGET of ' + str(budget) if over else ''}")
        if over:
            print(lines[-1])
    (folder / "registers.txt").write_text("\n".join(lines) + "\n")
    print(f"{len(rows)} kernels, {wrong - len(lost)} spill too much, {len(lost)} losses reported; "
          f"{folder}/registers.txt")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
