#!/usr/bin/env python3
"""Is the table of kernel bodies right for this machine? bodies.py BIN_DIR

Every body that runs here multiplies the same matrices on one thread; the one that the table (kernels/cpu/isa.cc)
chooses should be the fastest. Exit code 1 when another is faster by more than a tenth.
"""

import json
import pathlib
import statistics
import subprocess
import sys

BODIES = ("amx", "avx512_bf16", "avx512_vnni", "avx512", "avx2")
LINES = ("linear fwd 1.1B 512x2048x2048", "linear bwd 1.1B 512x2048x2048")
ROUNDS = 3


def measure(binary, line, body=None):
    """(body, GF/s), or None where the body doesn't run."""
    command = [binary, "--json", "1", *(["--body", body] if body else []), line]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    if done.returncode != 0:
        return None
    item = json.loads(done.stdout.splitlines()[-1])
    return item["body"], item["figure"]


def main():
    binary = pathlib.Path(sys.argv[1]) / "nibble-bench-kernels"
    chosen, _ = measure(binary, LINES[0])
    rates = {}
    for _ in range(ROUNDS):  # alternately, so that a busy minute hits all of them
        for body in BODIES:
            for line in LINES:
                measured = measure(binary, line, body)
                if measured:
                    rates.setdefault(body, {}).setdefault(line, []).append(measured[1])
    totals = {}
    for body, lines in rates.items():
        medians = [statistics.median(lines[line]) for line in LINES]
        totals[body] = sum(medians)
        print(f"{body:12}  forward {medians[0]:7.1f}  backward {medians[1]:7.1f} GF/s"
              f"{'  <- chosen' if body == chosen else ''}")
    best = max(totals, key=totals.get)
    if totals[best] > 1.1 * totals.get(chosen, 0):
        print(f"the table chooses {chosen}, but {best} is faster here: NIBBLE_CPU_ISA={best}")
        return 1
    print(f"the table's choice, {chosen}, is right for this machine")
    return 0


if __name__ == "__main__":
    sys.exit(main())
