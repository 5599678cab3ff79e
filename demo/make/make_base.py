"""Makes the demo base: trains the tokenizer, pretrains the model, writes both.

    python make_base.py --out ../base --work /tmp/demo-base --steps 5400
    python make_base.py --out ../base --work /tmp/demo-base --export   # the last checkpoint as it is

A checkpoint in --work lets a stopped run go on: the text depends on (seed, step) alone. The
learning rate is flat up to step FLAT and falls from there, so --steps may be changed on the way as long
as the fall has not begun.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import probes
import text
from card import write_card
from model import CONFIG, Llama, save_model
from muon import Muon

BATCH = 16
WARMUP = 200
FLAT = 4400  # the rate is flat up to this step, then falls to a hundredth at the last one
MUON_RATE = 0.02
ADAM_RATE = 3e-3


def rate(step, steps):
    """Factor on both learning rates."""
    return min(1.0, (step + 1) / WARMUP, max(0.01, (steps - step) / max(1, steps - FLAT)))


def loss_of(model, ids, weights):
    """Weighted mean cross-entropy of the next token."""
    logits = model.logits(model(ids[:, :-1])).float()
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    weights = weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


def save_checkpoint(path, step, seconds, model, muon, adam):
    """Written beside and renamed, so a kill never leaves half a checkpoint."""
    state = {"step": step, "seconds": seconds, "model": model.state_dict(),
             "muon": muon.state, "adam": adam.state_dict()}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def train(args, tokenizer, work):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model = Llama({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    outer = [p for n, p in model.named_parameters() if not (p.dim() == 2 and "layers" in n)]
    muon = Muon(inner)
    adam = torch.optim.AdamW(outer, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    step, before = 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        adam.load_state_dict(state["adam"])
        muon.state, step, before = state["muon"], state["step"], state["seconds"]
    compiled = torch.compile(loss_of, dynamic=False)
    start, mean = time.time(), None
    while step < args.steps:
        within = step % text.CHUNK_STEPS
        if within == 0 or mean is None:
            ids, weights = map(torch.from_numpy,
                               text.windows(tokenizer, args.seed, step - within, BATCH))
        rows = slice(within * BATCH, (within + 1) * BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            loss = compiled(model, ids[rows], weights[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(outer, 1.0)
        factor = rate(step, args.steps)
        muon.step(MUON_RATE * factor)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * factor
        adam.step()
        model.zero_grad(set_to_none=True)
        value = loss.item()
        mean = value if mean is None else 0.98 * mean + 0.02 * value
        step += 1
        if step % 50 == 0 or step == args.steps:
            row = {"step": step, "tokens": step * BATCH * text.WINDOW, "loss": round(mean, 4),
                   "seconds": round(before + time.time() - start)}
            if step % 500 == 0 or step == args.steps:
                row["held_out"] = probes.all_figures(model, tokenizer, 100)
            if step % 100 == 0 or step == args.steps:
                save_checkpoint(checkpoint, step, before + time.time() - start, model, muon, adam)
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def export(args, tokenizer, work):
    """Writes the last checkpoint as a model folder with its card."""
    state = torch.load(work / "checkpoint.pt", weights_only=True)
    model = Llama({**CONFIG, "vocab_size": tokenizer.get_vocab_size()})
    model.load_state_dict({k: v.bfloat16().float() for k, v in state["model"].items()})
    save_model(model, args.out)
    text.save_tokenizer(tokenizer, args.out)
    rows = [json.loads(line) for line in open(work / "log.jsonl")]
    last = [r for r in rows if r["step"] <= state["step"]][-1]
    write_card(Path(args.out), model, last, probes.all_figures(model, tokenizer, 500), args)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="../base")
    parser.add_argument("--work", default="/tmp/demo-base")
    parser.add_argument("--steps", type=int, default=5400)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--remark", default="", help="added to the model card's training line")
    parser.add_argument("--export", action="store_true")
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "tokenizer.json"
    if not kept.exists():
        text.train_tokenizer(args.seed, CONFIG["vocab_size"]).save(str(kept))
    tokenizer = Tokenizer.from_file(str(kept))
    if not args.export:
        train(args, tokenizer, work)
    export(args, tokenizer, work)


if __name__ == "__main__":
    main()
