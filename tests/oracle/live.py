#!/usr/bin/env python3
"""The live comparisons: the engine beside bitsandbytes, transformers, PEFT and tokenizers, on real files.

    live.py --probe build/tests/oracle_probe [--data DIR] [--quick] [PART ...]

Parts: nf4, logits, generation, steps (with the trained adapter loaded by PEFT), tokenizers. Real checkpoints are
demo/base and, with --data or NIBBLE_TEST_DATA, those of the test data. Prints a table of figures; exits 1 when one is
out of its bound.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import tempfile

import torch

import check_adapter
import peer
import probe
import quantize

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Table:
    def __init__(self):
        self.rows, self.bad = [], 0

    def add(self, what, figure, bound, note=""):
        good = figure <= bound
        self.bad += not good
        self.rows.append((what, f"{figure:.3g}", f"<= {bound:.3g}", "ok" if good else "OUT OF BOUND", note))
        print("  ".join(filter(None, self.rows[-1])), flush=True)

    def show(self):
        widths = [max(len(row[i]) for row in self.rows) for i in range(4)]
        print()
        for row in self.rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)), row[4])
        print(f"{len(self.rows)} figures, {self.bad} out of bound")


def checkpoints(data):
    found = [ROOT / "demo" / "base"]
    if data:
        found += [path for path in sorted((data / "models").iterdir()) if (path / "config.json").exists()]
    return [path for path in found if (path / "config.json").exists()]


def compare_nf4(table, options, scratch):
    """Codes and absmax bit for bit; short last blocks and blocks of zeros are exempt."""
    for directory in checkpoints(options.data):
        elements = differing = absmax_differing = 0
        worst = 0.0
        for name, weight in sorted(peer.stored_weights(directory).items()):
            if name.split(".")[-2] not in quantize.LINEARS:
                continue
            theirs = quantize.quantize(weight)
            codes, absmax, nested = probe.nf4(options.probe, weight, scratch)
            blocks = weight.numel() // 64
            alive = (theirs["absmax"][:blocks] != 0).repeat_interleave(32)
            differing += (codes[:blocks * 32] != theirs["codes"][:blocks * 32])[alive].sum().item()
            absmax_differing += (absmax != theirs["absmax"]).sum().item()
            elements += weight.numel()
            # As near to the true scale as theirs, in units of the nested scale.
            scale = theirs["nested_absmax"].repeat_interleave(256)[:len(absmax)].clamp(min=1e-30)
            ours = (nested - absmax).abs()
            peers = (theirs["absmax_nested"] - absmax).abs()
            worst = max(worst, ((ours - peers).abs() / scale).max().item())
        table.add(f"nf4 {directory.name}: bytes of codes that differ", differing, 0, f"{elements} weights")
        table.add(f"nf4 {directory.name}: absmax that differ", absmax_differing, 0)
        table.add(f"nf4 {directory.name}: nested absmax against the peer's", worst, 2**-15 + 1e-6)


def documents_of(directory, data, count, length):
    """Token ids as the model meets them: real text through its own tokenizer."""
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    if directory.name == "base":
        lines = (ROOT / "demo/data/train.jsonl").read_text().splitlines()
        texts = [row["prompt"] + row["completion"] for row in map(json.loads, lines)]
        text = "\n".join(texts)
    else:
        text = (data / "datasets/tinyshakespeare/input.txt").read_text()
    ids = tokenizer.encode(text[:count * length * 8], add_special_tokens=False).ids
    return [ids[i * length:(i + 1) * length] for i in range(count)]


def compare_logits(table, options, scratch):
    for directory in checkpoints(options.data):
        documents = documents_of(directory, options.data, 3, 96)
        model = peer.load_base(directory, torch.float32)
        theirs = torch.cat([peer.logits_and_nll(model, ids)[0] for ids in documents])
        for kind, bound in (("ref", 1e-4), ("cpu", 2e-2)):
            ours = probe.logits(options.probe, directory, scratch, documents, kind, quant="bf16")
            table.add(f"logits {directory.name}, {kind} and fp32 transformers",
                      peer.relative_l2(ours, theirs), bound)


def compare_generation(table, options, scratch):
    """A token at a time, as generation comes by its logits: kernels of their own in every body."""
    for directory in checkpoints(options.data):
        documents = documents_of(directory, options.data, 3, 96)
        model = peer.load_quantized(directory, torch.float32)
        theirs = torch.cat([peer.logits_and_nll(model, ids)[0] for ids in documents])
        for device in probe.bodies(options.probe):
            one, many = probe.one_by_one(options.probe, directory, scratch, documents, device)
            table.add(f"one token {directory.name}, {device} and fp32 transformers", peer.relative_l2(one, theirs), 2e-2,
                      f"many at once: {peer.relative_l2(many, theirs):.2g}")


def compare_steps(table, options, scratch):
    """The parity rule of docs/numerics.md: ten optimizer steps, lr 2e-4, at least 2,000 target tokens."""
    for directory in checkpoints(options.data)[:2 if options.quick else 3]:
        if directory.name.endswith("sharded"):
            continue
        check_peer(table, directory)
        adapter = pathlib.Path(scratch, f"start-{directory.name}")
        peer.new_adapter(adapter, peer.load_base(directory), directory.name, r=8, alpha=16, seed=5,
                         b_std=0.02)
        documents = documents_of(directory, options.data, 160, 128)
        steps = [documents[i * 16:(i + 1) * 16] for i in range(10)]
        fp32 = peer.ten_steps(directory, adapter, steps, torch.float32)
        bf16 = peer.ten_steps(directory, adapter, steps, torch.bfloat16)
        note = f"loss {fp32[0]['loss']:.3f} to {fp32[-1]['loss']:.3f}"
        ours, trained = probe.steps(options.probe, directory, scratch, adapter, steps, "ref")
        table.add(f"ten steps {directory.name}, fp32: loss", worst(ours, fp32, "loss"), 1e-3, note)
        table.add(f"ten steps {directory.name}, fp32: gradient norm", worst(ours, fp32, "grad_norm"), 1e-2)
        ours, _ = probe.steps(options.probe, directory, scratch, adapter, steps, "cpu")
        table.add(f"ten steps {directory.name}, bf16: loss", worst(ours, bf16, "loss"), 1e-2)
        own = max(abs(b["grad_norm"] / f["grad_norm"] - 1) for b, f in zip(bf16, fp32))
        table.add(f"ten steps {directory.name}, bf16: gradient norm", worst(ours, bf16, "grad_norm"),
                  max(5e-2, 2 * own), f"the peer's own bf16 is {own:.2g} from its fp32")
        compare_adapter(table, options, directory, trained)


def check_peer(table, directory):
    """The dequantized base is what bitsandbytes' own Linear4bit computes with."""
    model = peer.load_quantized(directory, torch.float32)
    widths = {module.in_features for name, module in model.named_modules()
              if name.split(".")[-1] in quantize.LINEARS}
    if any(width % 16 == 0 and width % 64 != 0 for width in widths):
        return   # there its CPU code is wrong; see quantize.dequantize
    ids = list(range(3, 67))
    theirs = peer.logits_and_nll(peer.load_linear4bit(directory, torch.float32), ids)[0]
    table.add(f"peer {directory.name}: Linear4bit and the dequantized base",
              peer.relative_l2(peer.logits_and_nll(model, ids)[0], theirs), 1e-6)


def worst(ours, theirs, key):
    assert len(ours) == len(theirs) and all(
        a["target_tokens"] == b["target_tokens"] >= 2000 for a, b in zip(ours, theirs))
    return max(abs(a[key] / b[key] - 1) for a, b in zip(ours, theirs))


def compare_adapter(table, options, directory, adapter):
    """An adapter of ours, loaded by PEFT."""
    documents = documents_of(directory, options.data, 3, 96)
    distances, moved = check_adapter.compare(directory, adapter, options.probe, documents)
    for kind, distance in distances.items():
        table.add(f"adapter {directory.name} in PEFT, {kind} logits", distance, check_adapter.LIMITS[kind],
                  f"the adapter moves them by {moved:.2g}")


def mixed_lines(data, count):
    """Lines in many scripts, code, emoji, odd spaces; seeded."""
    generator = random.Random(4)
    ranges = [(0x20, 0x7E), (0xA0, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x5D0, 0x5EA), (0x620, 0x64A),
              (0x900, 0x96F), (0xE01, 0xE3A), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
              (0x1F300, 0x1F64F), (0x2000, 0x206F), (0x300, 0x36F)]
    pieces = ["  ", "\t", "\n", "\r\n", " \n ", "'s", "'LL", "don't", "...", "!?", "::", "->", "0123456789",
              "3.14", "1,000", "\u00a0", "\u3000", "\u200d", "\U0001F468\u200d\U0001F469\u200d\U0001F467",
              "e\u0301", "def f(x):\n    return x", "#include <a.h>", "</s>", "<s>", "_", "\u0130", "\ufffd"]
    texts = []
    for path in ("datasets/tinyshakespeare/input.txt", "datasets/gsm8k/train.jsonl"):
        if data and (data / path).exists():
            texts += [line for line in (data / path).read_text().splitlines() if line][:count // 4]
    for path in sorted(ROOT.rglob("*.cc"))[:40]:
        texts += path.read_text().splitlines()[:50]
    while len(texts) < count:
        parts = []
        for _ in range(generator.randrange(1, 12)):
            if generator.random() < 0.4:
                parts.append(generator.choice(pieces))
            else:
                low, high = generator.choice(ranges)
                parts.append("".join(chr(generator.randint(low, high))
                                     for _ in range(generator.randrange(1, 9))))
            parts.append(generator.choice(["", " ", ""]))
        texts.append("".join(parts))
    generator.shuffle(texts)
    return texts[:count]


def compare_tokenizers(table, options, scratch):
    from tokenizers import Tokenizer
    directories = [path for path in checkpoints(options.data) if (path / "tokenizer.json").exists()]
    if options.data:
        directories += sorted(path for path in (options.data / "tokenizers").iterdir()
                              if (path / "tokenizer.json").exists())
    texts = mixed_lines(options.data, 2000 if options.quick else 10000)
    for directory in directories:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        theirs = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        ours = probe.tokenize(options.probe, directory, scratch, texts)
        wrong = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        note = f"{len(texts)} lines" + (f", first {texts[wrong[0]]!r}" if wrong else "")
        table.add(f"tokenizer {directory.name}: lines that differ", len(wrong), 0, note)


PARTS = {"nf4": compare_nf4, "logits": compare_logits, "generation": compare_generation, "steps": compare_steps,
         "tokenizers": compare_tokenizers}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--probe", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("NIBBLE_TEST_DATA"))
    parser.add_argument("--quick", action="store_true", help="fewer checkpoints and lines")
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    options.data = pathlib.Path(options.data) if options.data else None
    table = Table()
    for part in options.parts:
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[part](table, options, scratch)
    table.show()
    return 1 if table.bad else 0


if __name__ == "__main__":
    sys.exit(main())
