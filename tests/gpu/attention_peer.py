#!/usr/bin/env python3
"""cuDNN's attention, through PyTorch, at the shapes of nibble-bench-cuda's lines: milliseconds.

  attention_peer.py "8B 16384/4096 h32/8 d128" ...

A shape is a name, tokens/length of a document, heads/key heads, head size and perhaps a window, which PyTorch
cannot ask of cuDNN. bf16, causal, [token][head][element] in memory as ours; PyTorch is allowed no other backend
than cuDNN, so that a figure is cuDNN's or none. Its backward need not give the same bits twice; ours does.
Prints a JSON line after each shape, the last with all; {"skipped": why} when there is no PyTorch with a GPU.
"""

import json
import re
import statistics
import sys
import time

LEAST_SECONDS = 0.02  # of a batch of calls


def parse(shape):
    """Tokens, length, heads, key heads, head size, window of a shape's name."""
    found = re.fullmatch(r".* (\d+)/(\d+) h(\d+)/(\d+) d(\d+)(?: w(\d+))?", shape)
    if not found:
        raise ValueError(f"cannot read the shape {shape!r}")
    return tuple(int(number or 0) for number in found.groups())


def milliseconds(torch, run):
    """Of one call: the median of five batches, each long enough that starting it does not matter."""
    def timed(calls):
        torch.cuda.synchronize()
        began = time.monotonic()
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
        return time.monotonic() - began

    timed(2)
    calls = 1
    while calls < 1000 and timed(calls) < LEAST_SECONDS:
        calls *= 2
    return 1e3 * statistics.median(timed(calls) / calls for _ in range(5))


def measure(torch, shape):
    """Forward (which keeps what backward needs) and backward."""
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    tokens, length, heads, key_heads, dim, window = parse(shape)
    if window:
        return {"failed": "a window cannot be asked of cuDNN through PyTorch"}
    rows = tokens // length

    def tensor(count):
        made = torch.randn(rows, length, count, dim, device="cuda", dtype=torch.bfloat16)
        return made.transpose(1, 2).requires_grad_()

    result = {}
    q, k, v = tensor(heads), tensor(key_heads), tensor(key_heads)
    grouped = heads != key_heads

    def forward():
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        try:
            out = forward()
        except RuntimeError:
            if not grouped:
                raise
            # The nearest it can do: as many key heads as heads, repeated before the clock starts.
            k, v = tensor(heads), tensor(heads)
            grouped = False
            result["note"] = "as many key heads as heads: cuDNN did not take grouped ones from PyTorch"
            out = forward()
        result["forward_ms"] = milliseconds(torch, forward)
        grad = torch.randn_like(out)
        result["backward_ms"] = milliseconds(
            torch, lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True))
    return result


def main():
    try:
        import torch
    except ImportError:
        print(json.dumps({"skipped": "PyTorch is not installed here"}))
        return
    if not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch sees no GPU"}))
        return
    answer = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "shapes": {}}
    for shape in sys.argv[1:]:
        try:
            answer["shapes"][shape] = measure(torch, shape)
        except Exception as why:  # what cuDNN refuses is a result, too
            answer["shapes"][shape] = {"failed": f"{type(why).__name__}: {str(why)[:300]}"}
        torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
