#!/usr/bin/env python3
"""Prints the peer's and Nibble's figures of one run side by side.

    compare.py peer.json nibble.json [own_choice.json]

The third is Nibble with the recomputation it chooses by itself, as a user gets it; the second recomputes as much as
the peer does.
"""

import json
import sys


def processor_seconds(run):
    """Of the median step: what other programs on the machine disturb least."""
    steps = sorted(run["step_processor_seconds"][1:])
    return steps[len(steps) // 2]


def print_speed(peer, ours):
    speed = ours["tokens_per_second"] / peer["tokens_per_second"]
    print(f"{'tokens/s':24}{peer['tokens_per_second']:14.1f}{ours['tokens_per_second']:14.1f}{speed:8.2f}x")
    theirs, mine = processor_seconds(peer), processor_seconds(ours)
    print(f"{'processor s a step':24}{theirs:14.2f}{mine:14.2f}{theirs / mine:8.2f}x")


def main():
    peer, ours = (json.load(open(path, encoding="utf-8")) for path in sys.argv[1:3])
    worst = max(abs(a - b) / abs(a) for a, b in zip(peer["losses"], ours["losses"]))
    print(f"peer: {peer['peer']}; {peer['threads']} threads, {peer['layers']} layers, "
          f"sequence {peer['sequence_len']}, micro-batch {peer['micro_batch_size']}, multiplies in {peer['compute']}")
    print(f"{'':24}{'peer':>14}{'nibble':>14}{'ratio':>9}")
    print_speed(peer, ours)
    memory = ours["peak_rss_bytes"] / peer["peak_rss_bytes"]
    print(f"{'peak memory, MB':24}{peer['peak_rss_bytes'] / 1e6:14.0f}{ours['peak_rss_bytes'] / 1e6:14.0f}"
          f"{memory:8.2f}x")
    print(f"losses: first {peer['losses'][0]:.4f} and {ours['losses'][0]:.4f}, "
          f"largest relative difference {worst:.2%}")
    if len(sys.argv) > 3:
        with open(sys.argv[3], encoding="utf-8") as file:
            own = json.load(file)
        print(f"Nibble's own choice, a recipe's default (recompute: {own['recompute']}), beside the same peer:")
        print_speed(peer, own)
        print(f"{'peak memory, MB':24}{peer['peak_rss_bytes'] / 1e6:14.0f}{own['peak_rss_bytes'] / 1e6:14.0f}")
    if worst > 0.01:
        print("losses differ by more than 1 %: the two did not do the same work")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
