#!/usr/bin/env python3
"""The sanitizers see what they are run for: mistakes planted in nibble-planted are reported, and nothing else.

    planted_test.py NIBBLE-PLANTED address|thread

Each mistake runs twice with the options and suppressions of tests/run_tests.py. As it is, it must end the process
with a report that names it; mended, it must end well and in silence.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import run_tests

# Mistake: words that its report must have.
PLANTED = {
    "thread": {
        "counter": ["data race", "AddPlanted"],
        "handler": ["data race", "AddPlanted", "CallbackUnaryHandler"],
        "on-done": ["data race", "AddPlanted", "CallOnDone"],
        "response": ["data race", "RunResponse", "CallOnDone"],
    },
    "address": {
        "overflow": ["heap-buffer-overflow", "RunOverflow"],
        "index": ["Assertion '__n < this->size()' failed", "RunIndex"],
        "sum": ["signed integer overflow", "RunSum"],
        "cast": ["is outside the range of representable values", "RunCast"],
        "gone": ["heap-use-after-free", "RunGone"],
        "leak": ["detected memory leaks", "RunLeak"],
    },
}


def run(binary, kind, mistake, mended, directory):
    """(exit code, everything it printed and reported)."""
    reports = pathlib.Path(directory, f"{mistake}{'-mended' if mended else ''}")
    environment = dict(os.environ)
    for name, value in run_tests.SANITIZERS[kind].items():
        environment[name] = f"{value}:log_path={reports}"
    done = subprocess.run([binary, mistake, *(["--mended"] if mended else [])], env=environment, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    found = "".join(path.read_text(errors="replace") for path in sorted(reports.parent.glob(reports.name + ".*")))
    return done.returncode, done.stdout, found


def main():
    binary, kind = sys.argv[1:]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="nibble-planted-") as directory:
        for mistake, words in PLANTED[kind].items():
            code, said, found = run(binary, kind, mistake, False, directory)
            lacking = [word for word in words if word not in said + found]
            if code == 0 or lacking:
                print(f"{mistake}: exit code {code}, the report lacks {lacking}\n{said}{found}")
                missed += 1
                continue
            code, said, found = run(binary, kind, mistake, True, directory)
            if code != 0 or found:
                print(f"{mistake}, mended: exit code {code}\n{said}{found}")
                missed += 1
                continue
            print(f"{mistake}: reported; mended, not")
    print(f"{len(PLANTED[kind]) - missed} of {len(PLANTED[kind])} planted mistakes are seen")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
