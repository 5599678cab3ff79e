"""Answers to held-out rows from another program with our adapter, beside those of `nibble generate`.

Shared by llama_cpp.py and vllm_peer.py. Both compute with the base as it is, so `nibble generate` does too
(--quant bf16).
"""

import argparse
import json
import pathlib
import subprocess
import sys

LEAST_EQUAL_SHARE = 0.9   # of the answers, character by character: both round differently
LONGEST_TOKENS = 80
PLAIN_ROWS = 20           # answered without the adapter, too: it must have changed something
ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


def options(description, cache):
    """Parsed arguments; work, base and adapter are absolute and work exists."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--adapter", type=pathlib.Path, required=True)
    parser.add_argument("--nibble", type=pathlib.Path, required=True, help="the command nibble")
    parser.add_argument("--base", type=pathlib.Path, default=ROOT / "demo" / "base")
    parser.add_argument("--prompts", type=pathlib.Path, default=ROOT / "demo" / "data" / "heldout.jsonl")
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path.home() / ".cache" / "nibble" / cache)
    parsed = parser.parse_args()
    for name in ("work", "base", "adapter", "nibble", "prompts"):
        setattr(parsed, name, getattr(parsed, name).resolve())
    parsed.work.mkdir(parents=True, exist_ok=True)
    return parsed


def held_out(parsed):
    return [json.loads(line) for line in parsed.prompts.read_text().splitlines()][:parsed.rows]


def compare(parsed, peer, rows, theirs, plain):
    """Prints one line; the process's exit status. `plain`: their answers without the adapter, PLAIN_ROWS of them."""
    ours = [json.loads(line)["text"] for line in run(
        parsed.nibble, "generate", "--base", parsed.base, "--adapter", parsed.adapter, "--quant", "bf16",
        "--prompts", parsed.prompts, "--limit", len(rows), "--max-tokens", LONGEST_TOKENS, "--json").splitlines()]
    right = [sum(text.strip() == row["completion"].strip() for text, row in zip(texts, rows))
             for texts in (theirs, ours)]
    equal = sum(a.strip() == b.strip() for a, b in zip(theirs, ours))
    changed = sum(a != b for a, b in zip(theirs, plain))
    print(f"{peer}: {equal} of {len(rows)} answers equal ours; right: {right[0]} there, "
          f"{right[1]} here; the adapter changed {changed} of {len(plain)}")
    return 0 if equal >= LEAST_EQUAL_SHARE * len(rows) and changed > 0 else 1
