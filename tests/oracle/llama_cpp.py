#!/usr/bin/env python3
"""An adapter as a user gets it, in llama.cpp: converted by its own script, then asked what it learned.

    python llama_cpp.py --adapter DIR --nibble BIN [--base demo/base] [--rows N] [--work DIR]

Fetches llama.cpp (in the source package of llama-cpp-python, from PyPI) into --work and builds its library
there, once; some minutes. Converts base and adapter, answers held-out rows greedily with both programs, and
compares the texts. Needs the packages of requirements.txt, cmake, ninja and a C++ compiler.
"""

import os
import sys
import tarfile

from answers import LONGEST_TOKENS, PLAIN_ROWS, compare, held_out, options, run

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
# What conversion and binding import beyond requirements.txt, and what the source package is built with.
EXTRA = ["sentencepiece==0.2.1", "diskcache==5.6.3", "scikit-build-core==0.11.6"]

# llama.cpp takes a tokenizer's splitting rule from a table of known tokenizers, which ours is not in. Its
# rule (single digits, then GPT-2's) is the one called starcoder there.
CONVERT_BASE = """
import runpy, sys
sys.path[:0] = [".", "gguf-py"]
import conversion.base as base
for kind in vars(base).values():
    if isinstance(kind, type) and "get_vocab_base_pre" in vars(kind):
        kind.get_vocab_base_pre = lambda self, tokenizer: "starcoder"
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[1:]]
runpy.run_path("convert_hf_to_gguf.py", run_name="__main__")
"""


def set_up(work):
    """llama.cpp's sources and its built library; (package directory, llama.cpp directory)."""
    extra = work / "python"
    sys.path.insert(0, str(extra))
    environment = {**os.environ, "PYTHONPATH": str(extra)}
    if not extra.is_dir():
        run(sys.executable, "-m", "pip", "install", "-q", "--target", extra, *EXTRA)
    package = work / f"llama_cpp_python-{VERSION}"
    if not package.is_dir():
        run(sys.executable, "-m", "pip", "download", "-q", "--no-binary", ":all:", "--no-deps",
            "--no-build-isolation", "-d", work, f"{PACKAGE}=={VERSION}", env=environment)
        with tarfile.open(next(work.glob(f"llama_cpp_python-{VERSION}.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
    sources = package / "vendor" / "llama.cpp"
    library = work / "build"
    if not (library / "bin" / "libllama.so").exists():
        off = ["TESTS", "TOOLS", "EXAMPLES", "SERVER", "COMMON"]
        run("cmake", "-S", sources, "-B", library, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DGGML_OPENMP=OFF", *[f"-DLLAMA_BUILD_{name}=OFF" for name in off])
        run("ninja", "-C", library, "llama")
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library / "bin")
    sys.path.insert(0, str(package))
    return sources


def convert(sources, base, adapter, work):
    environment = {**os.environ, "PYTHONPATH": f"gguf-py:{work / 'python'}"}
    files = work / "base.gguf", work / "adapter.gguf"
    run(sys.executable, "-c", CONVERT_BASE, base, "--outfile", files[0], "--outtype", "f32",
        cwd=sources, env=environment)
    run(sys.executable, "convert_lora_to_gguf.py", "--base", base, "--outfile", files[1], "--outtype",
        "f32", adapter, cwd=sources, env=environment)
    return files


def answer(base, adapter, rows):
    from llama_cpp import Llama

    model = Llama(str(base), lora_path=adapter and str(adapter), n_ctx=512, verbose=False, seed=1)
    return [model.create_completion(row["prompt"], max_tokens=LONGEST_TOKENS, temperature=0.0)["choices"][0]["text"]
            for row in rows]


def main():
    parsed = options(__doc__.split("\n")[0], "llama-cpp")
    sources = set_up(parsed.work)
    base, adapter = convert(sources, parsed.base, parsed.adapter, parsed.work)
    rows = held_out(parsed)
    theirs = answer(base, adapter, rows)
    return compare(parsed, f"{PACKAGE} {VERSION}", rows, theirs, answer(base, None, rows[:PLAIN_ROWS]))


if __name__ == "__main__":
    sys.exit(main())
