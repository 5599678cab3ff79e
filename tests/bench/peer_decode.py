#!/usr/bin/env python3
"""How fast bitsandbytes decodes NF4 on one thread, at the shapes of the "decode" lines of
nibble-bench-kernels, as JSON lines: rows that fill 256 KiB, again and again (the second-level cache), and
whole matrices, from memory to memory."""

import json
import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"


def main():
    import bitsandbytes
    import bitsandbytes.functional as bnb
    import torch

    torch.set_num_threads(1)
    for k, n in ((576, 1536), (2048, 2048), (4096, 4096), (4096, 11008)):
        for name, rows in ((f"512x{k}x{n}", min(n, 131072 // k)), (f"{k}x{n}", n)):
            weight = torch.randn(rows, k, dtype=torch.bfloat16)
            codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
            rates = []
            for _ in range(30):
                began = time.perf_counter()
                bnb.dequantize_4bit(codes, state)
                rates.append(2 * rows * k / (time.perf_counter() - began))
            print(json.dumps({"peer_decode": name, "gb_per_second": sorted(rates)[len(rates) // 2] * 1e-9,
                              "versions": f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}"}))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
