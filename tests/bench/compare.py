#!/usr/bin/env python3
"""Prints the peer's and Nibble's figures of one run side by side: compare.py peer.json nibble.json."""

import json
import sys


def main():
    peer, ours = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:3])
    worst = max(abs(a - b) / abs(a) for a, b in zip(peer["losses"], ours["losses"]))
    print(f"peer: {peer['peer']}; {peer['threads']} threads, {peer['layers']} layers, "
          f"sequence {peer['sequence_len']}, micro-batch {peer['micro_batch_size']}, multiplies in {peer['compute']}")
    print(f"{'':24}{'peer':>14}{'nibble':>14}{'ratio':>9}")
    speed = ours["tokens_per_second"] / peer["tokens_per_second"]
    memory = ours["peak_rss_bytes"] / peer["peak_rss_bytes"]
    print(f"{'tokens/s':24}{peer['tokens_per_second']:14.1f}{ours['tokens_per_second']:14.1f}{speed:8.2f}x")
    print(f"{'peak memory, MB':24}{peer['peak_rss_bytes'] / 1e6:14.0f}{ours['peak_rss_bytes'] / 1e6:14.0f}"
          f"{memory:8.2f}x")
    print(f"losses: first {peer['losses'][0]:.4f} and {ours['losses'][0]:.4f}, "
          f"largest relative difference {worst:.2%}")
    if worst > 0.01:
        print("losses differ by more than 1 %: the two did not do the same work")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
