#!/usr/bin/env python3
"""Loads an adapter directory with PEFT onto its base and compares logits with the engine's.

    check_adapter.py --base DIR --adapter DIR --probe build/tests/oracle_probe [--tokens N]

The base goes through NF4 with double quantization on both sides. Says the relative L2 distance in fp32
(ref) and bf16 (cpu) and exits 1 when it is above 1e-3 or 5e-2.
"""

import argparse
import pathlib
import sys
import tempfile

import numpy
import torch
from peft import PeftModel

import peer
import probe

LIMITS = {"ref": 1e-3, "cpu": 5e-2}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--probe", required=True)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    vocab = peer.load_base(options.base).config.vocab_size
    distances, moved = compare(options.base, options.adapter, pathlib.Path(options.probe),
                               random_documents(vocab, 3, options.tokens))
    for table, distance in distances.items():
        verdict = "ok" if distance <= LIMITS[table] else "TOO FAR"
        print(f"{options.adapter}: {table} logits {distance:.2e} from PEFT's ({verdict})")
    print(f"the adapter itself moves them by {moved:.2e}")
    return 0 if all(d <= LIMITS[t] for t, d in distances.items()) else 1


if __name__ == "__main__":
    sys.exit(main())
