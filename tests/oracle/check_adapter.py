#!/usr/bin/env python3
"""Loads an adapter directory with PEFT onto its base and compares logits with the engine's.

    check_adapter.py --base DIR --adapter DIR --probe build/tests/oracle_probe [--nibble build/bin/nibble] [--tokens N]

The base goes through NF4 with double quantization on both sides. Says the relative L2 distance in fp32
(ref) and bf16 (cpu) and exits 1 when it is above 1e-3 or 5e-2. With --nibble, `nibble merge` makes models of both
kinds too, which transformers loads: within 1e-2 of PEFT's adapter on the same weights (they are rounded to 16 bits).
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers
from peft import PeftModel

import peer
import probe

LIMITS = {"ref": 1e-3, "cpu": 5e-2}
MERGED_LIMIT = 1e-2


def random_documents(vocab, count, length, seed=3):
    generator = numpy.random.default_rng(seed)
    return [generator.integers(3, vocab, length).tolist() for _ in range(count)]


def compare(base, adapter, probe_path, documents):
    """{table: relative L2} of the logits with the adapter, and how far the adapter moved them."""
    model = peer.load_quantized(base, torch.float32)
    plain = torch.cat([peer.logits_and_nll(model, ids)[0] for ids in documents])
    model = PeftModel.from_pretrained(model, adapter).eval()
    theirs = torch.cat([peer.logits_and_nll(model, ids)[0] for ids in documents])
    distances = {}
    with tempfile.TemporaryDirectory() as scratch:
        for table in LIMITS:
            ours = probe.logits(probe_path, base, scratch, documents, table, adapter=adapter)
            distances[table] = peer.relative_l2(ours, theirs)
    return distances, peer.relative_l2(theirs, plain)


def compare_merged(base, adapter, nibble, documents):
    """{what it was merged onto: relative L2} of a merged model's logits from those of PEFT's adapter."""
    distances = {}
    for onto, load in (("original", peer.load_base), ("quantized", peer.load_quantized)):
        theirs = PeftModel.from_pretrained(load(base, torch.float32), adapter).eval()
        with tempfile.TemporaryDirectory() as scratch:
            out = pathlib.Path(scratch) / "merged"
            subprocess.run([nibble, "merge", "--base", base, "--adapter", adapter, "--out", str(out), "--onto", onto],
                           check=True, stdout=subprocess.DEVNULL)
            ours = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        distances[onto] = peer.relative_l2(*(torch.cat([peer.logits_and_nll(model, ids)[0] for ids in documents])
                                             for model in (ours, theirs)))
    return distances


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--probe", required=True)
    parser.add_argument("--nibble")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    vocab = peer.load_base(options.base).config.get_text_config().vocab_size
    documents = random_documents(vocab, 3, options.tokens)
    distances, moved = compare(options.base, options.adapter, pathlib.Path(options.probe), documents)
    for table, distance in distances.items():
        verdict = "ok" if distance <= LIMITS[table] else "TOO FAR"
        print(f"{options.adapter}: {table} logits {distance:.2e} from PEFT's ({verdict})")
    print(f"the adapter itself moves them by {moved:.2e}")
    merged = compare_merged(options.base, options.adapter, options.nibble, documents) if options.nibble else {}
    for onto, distance in merged.items():
        verdict = "ok" if distance <= MERGED_LIMIT else "TOO FAR"
        print(f"{options.adapter}: merged onto {onto}, loaded by transformers, {distance:.2e} from PEFT's ({verdict})")
    good = all(d <= LIMITS[t] for t, d in distances.items()) and all(d <= MERGED_LIMIT for d in merged.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
