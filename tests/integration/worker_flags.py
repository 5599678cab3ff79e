#!/usr/bin/env python3
"""Every flag that nibble-worker's --help shows is one it takes.

  worker_flags.py PATH_OF_NIBBLE_WORKER
"""

import re
import subprocess
import sys


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
    print(f"{len(flags)} flags")


if __name__ == "__main__":
    main()
