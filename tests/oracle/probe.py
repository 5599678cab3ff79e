"""Asks oracle_probe (the engine) what the peer was asked."""

import json
import pathlib
import subprocess
import tempfile

import numpy
import torch


def ask(probe, request):
    """Runs one request; returns what the probe printed."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(request, file)
        file.flush()
        done = subprocess.run([str(probe), file.name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"oracle_probe {request['op']}: {done.stderr.strip()}")
    return done.stdout


def logits(probe, model, scratch, documents, table, quant="nf4", adapter=""):
    """fp32 [tokens, vocabulary], documents one behind the other."""
    out = pathlib.Path(scratch, "logits.f32")
    ask(probe, {"op": "logits", "model": str(model), "cache": str(pathlib.Path(scratch, "cache")),
                "adapter": str(adapter), "table": table, "quant": quant, "documents": documents,
                "tokens": max(len(ids) for ids in documents), "out": str(out)})
    values = torch.from_numpy(numpy.fromfile(out, dtype=numpy.float32))
    return values.reshape(sum(len(ids) for ids in documents), -1)


def bodies(probe):
    """Names of the kernel bodies this machine has, as devices."""
    return ask(probe, {"op": "bodies"}).split()


def one_by_one(probe, model, scratch, documents, device):
    """Logits over the NF4 base as above, of tokens fed one at a time, as generation does, and all at once."""
    out = pathlib.Path(scratch, "logits")
    ask(probe, {"op": "one_by_one", "model": str(model), "cache": str(pathlib.Path(scratch, "cache")),
                "device": device, "documents": documents, "out": str(out)})
    tokens = sum(len(ids) for ids in documents)
    return tuple(torch.from_numpy(numpy.fromfile(f"{out}.{way}", dtype=numpy.float32)).reshape(tokens, -1)
                 for way in ("one", "many"))


def steps(probe, model, scratch, adapter, documents_per_step, table, learning_rate=2e-4,
          max_grad_norm=1.0):
    """Rows of loss and gradient norm, and the directory of the trained adapter."""
    out = pathlib.Path(scratch, f"trained-{table}")
    longest = max(len(ids) for documents in documents_per_step for ids in documents)
    printed = ask(probe, {
        "op": "steps", "model": str(model), "cache": str(pathlib.Path(scratch, "cache")),
        "adapter": str(adapter), "table": table, "learning_rate": learning_rate,
        "max_grad_norm": max_grad_norm, "tokens": longest, "steps": documents_per_step,
        "out": str(out)})
    return [json.loads(line) for line in printed.splitlines()], out


def nf4(probe, weight, scratch):
    """codes, absmax and the double-quantized absmax of a tensor."""
    prefix = pathlib.Path(scratch, "nf4")
    raw = pathlib.Path(scratch, "nf4.input")
    weight.float().contiguous().numpy().tofile(raw)
    ask(probe, {"op": "nf4", "input": str(raw), "out": str(prefix)})
    return (torch.from_numpy(numpy.fromfile(f"{prefix}.codes", dtype=numpy.uint8)),
            torch.from_numpy(numpy.fromfile(f"{prefix}.absmax", dtype=numpy.float32)),
            torch.from_numpy(numpy.fromfile(f"{prefix}.absmax_nested", dtype=numpy.float32)))


def tokenize(probe, model, scratch, texts):
    source, out = pathlib.Path(scratch, "texts.jsonl"), pathlib.Path(scratch, "ids.jsonl")
    source.write_text("".join(json.dumps(text) + "\n" for text in texts))
    ask(probe, {"op": "tokenize", "model": str(model), "input": str(source), "out": str(out)})
    return [json.loads(line) for line in out.read_text().splitlines()]
