"""Checks in PyTorch what the demo job will do: QLoRA on the base, then held-out reports.

    python try_finetune.py --base ../base --data ../data --seeds 1 2 3
    python try_finetune.py --epochs 0    # the base as it is, in four bits

Convention: ids = bos + prompt, then completion + eos, tokenized apart; the loss counts completion
and eos only. Rows are packed into windows and see only themselves.
"""

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import lora
from model import load_model
from text import BOS, EOS


def read(path):
    return [json.loads(line) for line in open(path)]


def encode(tokenizer, row):
    """(ids, labels); label -100 does not count."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    prompt, answer = (tokenizer.encode(row[k], add_special_tokens=False).ids
                      for k in ("prompt", "completion"))
    return [bos] + prompt + answer + [eos], [-100] * (len(prompt) + 1) + answer + [eos]


def pack(encoded, length):
    """First-fit packing into windows of at most `length` tokens."""
    bins = []
    for row in encoded:
        for held in bins[-20:]:
            if sum(len(i) for i, _ in held) + len(row[0]) <= length:
                held.append(row)
                break
        else:
            bins.append([row])
    return bins


def tensors(part, length):
    """ids, targets and the mask that keeps each row to itself.

    Positions run on over a window; rotary attention depends on distances only, so that is the
    same as starting each row at zero.
    """
    ids = torch.zeros(len(part), length, dtype=torch.long)
    targets = torch.full((len(part), length), -100)
    owner = torch.full((len(part), length), -1)
    for b, window in enumerate(part):
        at = 0
        for number, (row, labels) in enumerate(window):
            ids[b, at:at + len(row)] = torch.tensor(row)
            targets[b, at:at + len(row) - 1] = torch.tensor(labels[1:])
            owner[b, at:at + len(row)] = number
            at += len(row)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (owner[:, None, :, None] == owner[:, None, None, :]) & causal
    return ids, targets, mask


def train(model, params, rows, args, seed):
    """One fine-tuning: (steps, tokens, first loss in a list, mean of the last ten, seconds)."""
    rng = random.Random(seed)
    adam = torch.optim.AdamW(params, lr=args.rate, weight_decay=args.decay)
    batches = []
    for _ in range(args.epochs):
        rng.shuffle(rows)
        bins = pack(rows, args.length)
        rng.shuffle(bins)
        batches += [bins[i:i + args.batch] for i in range(0, len(bins), args.batch)]
    total, tokens, losses, start = len(batches), 0, [], time.time()
    warm = max(1, round(args.warmup * total))
    model.train()
    for step, part in enumerate(batches):
        past = (step - warm) / max(1, total - warm)
        factor = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * past))
        for group in adam.param_groups:
            group["lr"] = args.rate * factor
        ids, targets, mask = tensors(part, args.length)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            hidden = model(ids, mask)
        keep = targets != -100
        loss = F.cross_entropy(model.logits(hidden[keep].float()), targets[keep])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, args.clip)
        adam.step()
        adam.zero_grad()
        tokens += sum(len(r) for window in part for r, _ in window)
        losses.append(loss.item())
    tail = losses[-10:]
    return total, tokens, losses[:1], sum(tail) / max(1, len(tail)), time.time() - start


@torch.no_grad()
def spells_out(model, tokenizer, rows):
    """For each row, whether greedy decoding gives its completion and stops: every argmax is right.

    One pass over all answers says so; only the others have to be decoded token by token.
    """
    encoded = [encode(tokenizer, row) for row in rows]
    longest = max(len(ids) for ids, _ in encoded)
    ids, targets, mask = tensors([[e] for e in encoded], longest)
    best = model.logits(model(ids, mask)).argmax(-1)
    return ((best == targets) | (targets == -100)).all(dim=1).tolist()


@torch.no_grad()
def decode(model, tokenizer, prompt, limit=64):
    """One greedy completion."""
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    row = [bos] + tokenizer.encode(prompt, add_special_tokens=False).ids
    start = len(row)
    while len(row) < start + limit:
        row.append(int(model.logits(model(torch.tensor([row]))[0, -1]).argmax()))
        if row[-1] == eos:
            break
    return tokenizer.decode(row[start:])


def complete(model, tokenizer, rows):
    """Greedy completions of all rows."""
    model.eval()
    told = spells_out(model, tokenizer, rows)
    return [row["completion"] if right else decode(model, tokenizer, row["prompt"])
            for row, right in zip(rows, told)]


def judge(answers, wanted):
    """(share of valid JSON, share of exact records, share right per field, examples of misses)."""
    valid = exact = 0
    fields, misses = {}, []
    for answer, want in zip(answers, wanted):
        truth = json.loads(want["completion"])
        try:
            got = json.loads(answer)
            valid += isinstance(got, dict)
        except ValueError:
            got = None
        right = got == truth
        exact += right
        if not right:
            misses.append((want["prompt"], answer))
        for key, value in truth.items():
            fields[key] = fields.get(key, 0) + (isinstance(got, dict) and got.get(key) == value)
    n = len(answers)
    return valid / n, exact / n, {k: v / n for k, v in fields.items()}, misses


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="../base")
    parser.add_argument("--data", default="../data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--warmup", type=float, default=0.1)
    parser.add_argument("--decay", type=float, default=0.0)
    parser.add_argument("--clip", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--show", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = Tokenizer.from_file(str(Path(args.base) / "tokenizer.json"))
    rows = [encode(tokenizer, r) for r in read(Path(args.data) / "train.jsonl")[:args.rows]]
    held = read(Path(args.data) / "heldout.jsonl")[:args.reports]
    for seed in args.seeds:
        torch.manual_seed(seed)
        model = load_model(args.base)
        params = lora.attach(model, args.rank, args.alpha, args.dropout, seed)
        steps, tokens, first, last, seconds = train(model, params, list(rows), args, seed)
        answers = complete(model, tokenizer, held)
        valid, exact, fields, misses = judge(answers, held)
        print(json.dumps({"seed": seed, "rate": args.rate, "steps": steps, "tokens": tokens,
                          "first_loss": first and round(first[0], 3), "last_loss": round(last, 4),
                          "seconds": round(seconds), "valid": round(valid, 3),
                          "exact": round(exact, 3),
                          "fields": {k: round(v, 3) for k, v in fields.items()}}), flush=True)
        for prompt, answer in misses[:args.show]:
            print(prompt, "=>", answer, "\n")


if __name__ == "__main__":
    main()
