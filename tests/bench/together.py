#!/usr/bin/env python3
"""Two trainings beside each other on the same cores, against one alone.

    together.py BIN_DIR [--shape 135m] [--steps 6] [--threads 2]

Two engine processes with as many threads as cores each: the machine has twice the threads it can run. One
JSON line: tokens/s alone, the sum of two together and the ratio (1 = nothing lost). Losses must be the same.
"""

import argparse
import json
import pathlib
import subprocess
import sys


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--shape", default="135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    command = [args.bin_dir / "nibble-bench-step", "--shape", args.shape, "--seq", "512", "--steps",
               str(args.steps), "--threads", str(args.threads)]

    def run(count):
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        return [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]

    alone, = run(1)
    pair = run(2)
    together = sum(item["tokens_per_second"] for item in pair)
    print(json.dumps({"together": args.shape, "threads": args.threads,
                      "alone_tokens_per_second": alone["tokens_per_second"],
                      "together_tokens_per_second": together,
                      "ratio": together / alone["tokens_per_second"]}))
    if any(item["losses"] != alone["losses"] for item in pair):
        sys.exit("together.py: losses differ from those of a training alone")


if __name__ == "__main__":
    main()
