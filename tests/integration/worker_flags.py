#!/usr/bin/env python3
"""Every flag that nibble-worker's --help shows is one it takes; what --pinned-memory does.

  worker_flags.py PATH_OF_NIBBLE_WORKER PATH_OF_NIBBLE_FAKE_ENGINE
"""

import json
import re
import subprocess
import sys
import tempfile


def pinned_bytes(worker, engine, *flags):
    """Page-locked memory that a worker with one GPU, which the engine plays, offers."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [worker, "--engine", engine, "--device", "cuda", "--server", "127.0.0.1:1", "--data-dir", folder,
             "--log", "json", *flags], stderr=subprocess.PIPE, text=True)
        try:
            for line in process.stderr:
                if '"worker.device"' in line:
                    return int(json.loads(line)["pinned_capacity_bytes"])
            raise AssertionError(f"no device; code {process.wait(20)}")
        finally:
            process.kill()
            process.wait(20)


def check_pinned(worker, engine):
    usual = pinned_bytes(worker, engine)
    assert usual > 0, usual
    for size, count in (("192MiB", 192 << 20), ("256MiB", 256 << 20)):
        found = pinned_bytes(worker, engine, "--pinned-memory", size)
        assert found == count, f"--pinned-memory {size} offers {found}, without it {usual}"


def main():
    worker = sys.argv[1]
    shown = subprocess.run([worker, "--help"], capture_output=True, text=True, check=True).stdout
    flags = re.findall(r"^  --([a-z-]+)", shown, re.M)
    if len(flags) < 10:
        sys.exit(f"--help shows {flags} only")
    for flag in flags:
        wants_value = re.search(rf"^  --{flag} ([A-Z]|json)", shown, re.M)
        words = [f"--{flag}=1"] if wants_value else [f"--{flag}"]
        # Flags are read in order, so it is the second that is refused.
        done = subprocess.run([worker, *words, "--no-such-flag=1"], capture_output=True, text=True, check=False)
        if done.returncode != 2 or "unknown flag --no-such-flag" not in done.stderr:
            sys.exit(f"--{flag} is shown and not taken: {done.stderr.strip()}")
    check_pinned(worker, sys.argv[2])
    print(f"{len(flags)} flags")


if __name__ == "__main__":
    main()
